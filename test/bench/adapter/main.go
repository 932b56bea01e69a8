// Command adapter measures the adapter beside its floor, and prints the ratios: a read of a function's value against
// the same read of custom-metrics-apiserver with a provider that does nothing, with one function and with many; what
// discovery costs; and what the process costs while every function sleeps.
//
// It starts a real etcd and kube-apiserver on loopback, creates the objects of sleeping functions there, and runs the
// adapter, the floor and three stand-ins for activators as processes of their own, so that what is measured of one is
// not another's. Only ratios of one run mean anything: machines differ, and one machine differs from itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// options of a run.
type options struct {
	state     string
	functions int
	reads     int
	idle      time.Duration
	profile   string
	profiling time.Duration

	// Of the roles that the program plays for itself.
	role, kubeconfig, address, gates string
}

func main() {
	var o options
	flag.StringVar(&o.state, "state", "", "directory with the programs of the test cluster")
	flag.IntVar(&o.functions, "functions", 10000, "how many functions many are")
	flag.IntVar(&o.reads, "reads", 20000, "reads of each kind")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long the idle adapter is watched")
	flag.StringVar(&o.profile, "profile", "", "file for a CPU profile of plain reads; none without it")
	flag.DurationVar(&o.profiling, "profiling", 20*time.Second, "how long is profiled")
	flag.StringVar(&o.role, "role", "", "of a process that the benchmark starts: subject, floor or gates")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "of a role")
	flag.StringVar(&o.address, "address", "", "of a role: where it listens")
	flag.StringVar(&o.gates, "gates", "", "of the role subject: addresses of the activators' stand-ins")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench adapter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	switch o.role {
	case "subject":
		return subject(ctx, o.kubeconfig, o.address, strings.Split(o.gates, ","))
	case "floor":
		return floor(ctx, o.kubeconfig, o.address)
	case "gates":
		return world.Gates{Addresses: strings.Split(o.address, ","), Functions: o.functions}.Serve(ctx)
	case "":
	default:
		return fmt.Errorf("there is no role %q", o.role)
	}
	if o.state == "" {
		return errors.New("run it with `make bench-adapter`: -state is missing")
	}
	return measure(ctx, o)
}
