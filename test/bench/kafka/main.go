// Command kafka measures what the lag of many consumer groups costs, beside the usual design, a client for each trigger
// (command usual): how long it takes to measure all groups, processor time, memory, connections and requests to the
// broker, and whether each lag is the true one.
//
// It starts a real broker on loopback, makes topics, records and groups there by a third client, and runs the two subjects
// one after the other, as processes of their own, so that what is measured of one is not another's. Connections and
// processor time are the kernel's word. Only ratios of one run mean anything: machines differ, and one machine differs from
// itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/test/bench/kafka/subject"
)

// options of a run.
type options struct {
	subject.Options
	partitions   int
	triggers     int
	state, usual string
	span         time.Duration
	profile      string
	profiling    time.Duration

	role string // that the program plays for itself
}

func main() {
	var o options
	o.Flags()
	flag.IntVar(&o.partitions, "partitions", 12, "of each topic")
	flag.IntVar(&o.triggers, "triggers", 0, "how many of the groups have a client of their own in the usual design; all without it")
	flag.StringVar(&o.state, "state", "", "directory for Kafka's jars")
	flag.StringVar(&o.usual, "usual", "", "the program of the usual design")
	flag.DurationVar(&o.span, "span", time.Minute, "how long each subject is watched")
	flag.StringVar(&o.profile, "profile", "", "file for a CPU profile of ours, after it was watched; none without it")
	flag.DurationVar(&o.profiling, "profiling", 20*time.Second, "how long is profiled")
	flag.StringVar(&o.role, "role", "", "of a process that the benchmark starts: sluice")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench kafka:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.triggers == 0 {
		o.triggers = o.Groups
	}
	switch {
	case o.role == "sluice":
		return serveSluice(ctx, o.Options)
	case o.role != "":
		return fmt.Errorf("there is no role %q", o.role)
	case o.state == "" || o.usual == "":
		return errors.New("run it with `make bench-kafka`: -state or -usual is missing")
	case o.Groups < 1 || o.Topics < 1 || o.partitions < 1 || o.span < 2*o.Interval:
		return fmt.Errorf("-groups=%d -topics=%d -partitions=%d -span=%s -interval=%s: want one of each at least, and two intervals",
			o.Groups, o.Topics, o.partitions, o.span, o.Interval)
	case o.triggers < 0 || o.triggers > o.Groups:
		return fmt.Errorf("-triggers=%d: want as many as there are groups at most, %d", o.triggers, o.Groups)
	}
	return measure(ctx, o)
}
