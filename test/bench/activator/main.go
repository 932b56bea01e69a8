// Command activator measures the activator, the real process, and prints what it costs beside a floor of the same run:
//
//   - warm: a request through a gate port against the same request straight to the back end, through the least that
//     net/http/httputil needs for a proxy, and through a relay of bytes, which shows what one more program in the way
//     costs on this machine whatever it does;
//   - held: what 10,000 requests cost that wait for one function's pod, and how soon all are on their way when it is
//     ready;
//   - wakes: 500 functions that are woken in one second, with a node that only pretends, and the same with slow ones among them;
//   - cold: a request to a sleeping function on a real cluster, against a bare write of the scale and a tight loop that
//     probes the pod.
//
// The first three run in a network namespace of their own, with a real etcd and API server, which needs root:
// EndpointSlices may not name loopback addresses. The last is the role cold, in the network of the test cluster. The
// activator, the proxy and the back ends are processes of their own, and each is measured by turns with its floor. Only
// ratios of one run mean anything: machines differ, and one machine differs from itself.
//
// It fails when a request fails or is lost, or when the writes to the API are not as many as the wakes. It does not fail
// for times, which it prints beside their targets.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// options of a run.
type options struct {
	state, activator, out string
	parts                 string
	rounds                int
	span                  time.Duration
	connections           int
	rate                  float64
	held, wakes           int
	atOnce                int // requests at once to the floors of held ones
	profiling             time.Duration

	// Of the roles that the program plays for itself.
	role, dir, address, target string

	// Of the role cold.
	kubeconfig, audit string
	colds             int
}

func main() {
	var o options
	flag.StringVar(&o.state, "state", "", "directory with the programs of the test cluster")
	flag.StringVar(&o.activator, "activator", "", "the activator's program")
	flag.StringVar(&o.out, "out", "", "directory for profiles and logs")
	flag.StringVar(&o.parts, "parts", "warm,held,wakes", "what is measured")
	flag.IntVar(&o.rounds, "rounds", 10, "how often each is measured warm, by turns")
	flag.DurationVar(&o.span, "span", 4*time.Second, "how long each is measured in a round: half of it for throughput, half for latencies")
	flag.IntVar(&o.connections, "connections", 32, "connections of the load")
	flag.Float64Var(&o.rate, "rate", 1000, "requests per second of which the latencies are taken")
	flag.IntVar(&o.held, "held", 10000, "requests held at once")
	flag.IntVar(&o.wakes, "wakes", 500, "functions woken in one second")
	flag.DurationVar(&o.profiling, "profiling", 0, "how long an activator within this program is profiled before the warm part")
	flag.StringVar(&o.role, "role", "", "of a process that the benchmark starts: inside, backend, proxy, relay or profiled; or cold")
	flag.StringVar(&o.dir, "dir", "", "of the role inside: directory of the control plane")
	flag.StringVar(&o.address, "address", "", "of a role: where it listens")
	flag.StringVar(&o.target, "target", "", "of the roles proxy and relay: where it leads to")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "of the role cold: the cluster's")
	flag.StringVar(&o.audit, "audit", "", "of the role cold: the API server's audit log")
	flag.IntVar(&o.colds, "colds", 12, "of the role cold: how often each is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench activator:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	klog.SetLogger(logr.Discard())
	ctrllog.SetLogger(logr.Discard())
	switch o.role {
	case "inside":
		return inside(ctx, o)
	case "backend":
		return backend(ctx, o.address)
	case "proxy":
		return proxy(ctx, o.address, o.target)
	case "relay":
		return relay(ctx, o.address, o.target)
	case "cold":
		return cold(ctx, o)
	case "profiled":
		return profiled(ctx, o.kubeconfig, o.address)
	case "":
	default:
		return fmt.Errorf("there is no role %q", o.role)
	}
	switch {
	case o.state == "" || o.activator == "" || o.out == "":
		return errors.New("run it with `make bench-activator`: -state, -activator or -out is missing")
	case os.Geteuid() != 0:
		return errors.New("it needs root, for a network namespace in which pods have addresses: sudo make bench-activator")
	case o.rounds < 1 || o.span < 100*time.Millisecond || o.connections < 1 || o.rate < 1 || o.held < 1 || o.wakes < 1 || o.wakes > mostWakes:
		return fmt.Errorf("-rounds, -connections, -rate, -held and -wakes must be 1 or more, -span 100ms or more, and -wakes %d at most", mostWakes)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	return world.Isolated(ctx, o.state)
}

// spareFiles are open files beside those that requests need: the activator's connections to the pod among them, which are
// far fewer than requests to it.
const spareFiles = 2000

// raiseFiles raises the limit of open files, of this process and those that it starts, to so many where that is allowed, and
// returns what it is then.
func raiseFiles(want int) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	more := limit
	more.Max = max(limit.Max, uint64(want)) //nolint:gosec // flags are checked
	more.Cur = more.Max
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
		return int(min(more.Max, math.MaxInt32)), nil
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("set the limit of open files to %d: %w", limit.Max, err)
	}
	return int(min(limit.Max, math.MaxInt32)), nil
}

// inside is the benchmark without a node, in a network namespace of its own.
func inside(ctx context.Context, o options) error {
	if err := world.PrepareNetwork(ctx, network); err != nil {
		return err
	}
	files, err := raiseFiles(2*o.held + spareFiles)
	if err != nil {
		return err
	}
	if held := max(1, min(o.held, files-spareFiles)); held < o.held {
		fmt.Printf("%d requests are held at once, not %d: the limit of open files (ulimit -Hn) allows no more\n", held, o.held)
		o.held = held
	}
	// The minimal proxy makes a connection to the pod for each.
	if o.atOnce = max(1, min(o.held, (files-spareFiles)/2)); o.atOnce < o.held {
		fmt.Printf("%d requests come at once to the floors of the held ones, not %d, for the same limit\n", o.atOnce, o.held)
	}
	w, err := world.New(ctx, o.state, o.dir)
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop(ctx) }()
	b := &bench{options: o, world: w}
	var all report
	for part := range strings.SplitSeq(o.parts, ",") {
		measure, known := map[string]func(context.Context) (report, error){"warm": b.warm, "held": b.holding, "wakes": b.waking}[part]
		if !known {
			return fmt.Errorf("-parts: there is no %q", part)
		}
		rows, err := measure(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		all = append(all, rows...)
	}
	return all.print(os.Stdout)
}
