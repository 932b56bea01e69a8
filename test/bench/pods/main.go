// Command pods measures the adapter, the real process, while it asks many pods for their metrics: what that costs beside
// a bare HTTP client that fetches the same answers and reads nothing in them, how old the values get, and how long reads
// take meanwhile.
//
// It runs in a network namespace of its own, which ends with its last process: in it a whole range of addresses leads to
// one process, and EndpointSlices can name 20,000 pods. That, and only that, needs root. The pods, the activators' stand-ins
// and the bare client are processes of their own. Only ratios of one run mean anything: machines differ, and one
// machine differs from itself.
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
	state, adapter, out string
	pods, perFunction   int
	rounds              int
	interval, span      time.Duration
	profiling           time.Duration

	// Of the roles that the program plays for itself.
	role, dir, address   string
	functions, processes int
}

func main() {
	var o options
	flag.StringVar(&o.state, "state", "", "directory with the programs of the test cluster")
	flag.StringVar(&o.adapter, "adapter", "", "the adapter's program")
	flag.StringVar(&o.out, "out", "", "directory for profiles and the adapter's log")
	flag.IntVar(&o.pods, "pods", 20000, "how many pods there are")
	flag.IntVar(&o.perFunction, "per-function", 2, "pods of each function")
	flag.DurationVar(&o.interval, "interval", 5*time.Second, "how often each pod is asked")
	flag.DurationVar(&o.span, "span", time.Minute, "how long the adapter, and then the bare client, is watched")
	flag.IntVar(&o.rounds, "rounds", 1, "how often the adapter and the bare client are watched, by turns")
	flag.DurationVar(&o.profiling, "profiling", 20*time.Second, "how long the adapter is profiled, after it was watched")
	flag.StringVar(&o.role, "role", "", "of a process that the benchmark starts: inside, pods, gates or floor")
	flag.StringVar(&o.dir, "dir", "", "of the role inside: directory of the control plane")
	flag.StringVar(&o.address, "address", "", "of a role: where it listens")
	flag.IntVar(&o.functions, "functions", 0, "of the role gates: how many functions there are")
	flag.IntVar(&o.processes, "processes", 0, "of the role floor: over how many processes the pods are spread")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench pods:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	switch o.role {
	case "inside":
		return inside(ctx, o)
	case "pods":
		return servePods(ctx, o.address)
	case "gates":
		// One function in a hundred is busy, so that there is always something new: the worst case of a scrape.
		gates := world.Gates{Addresses: strings.Split(o.address, ","), Functions: o.functions, Busy: (o.functions + 99) / 100}
		return gates.Serve(ctx)
	case "floor":
		return floor(ctx, o)
	case "":
		return outside(ctx, o)
	default:
		return fmt.Errorf("there is no role %q", o.role)
	}
}

// outside runs the benchmark in a network namespace of its own.
func outside(ctx context.Context, o options) error {
	switch {
	case o.state == "" || o.adapter == "" || o.out == "":
		return errors.New("run it with `make bench-pods`: -state, -adapter or -out is missing")
	case os.Geteuid() != 0:
		return errors.New("it needs root, for a network namespace in which 20,000 addresses are its own: sudo make bench-pods")
	case o.perFunction < 1 || o.pods < o.perFunction || o.pods%o.perFunction != 0 || o.pods > mostPods:
		return fmt.Errorf("-pods=%d -per-function=%d: want as many pods for each function, and %d at most", o.pods, o.perFunction, mostPods)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	return world.Isolated(ctx, o.state)
}
