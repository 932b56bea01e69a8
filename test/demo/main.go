// Command demo shows Sluice at work on one function, and checks every step of it: a request wakes the function from
// zero replicas, a growing load raises its replicas as far as the measured rate asks for, and without load it goes
// back to sleep. It reads everything from the API server, as any user could, and sends its requests to the Service that
// Sluice made for the function; so it runs where both can be reached. `make demo` prepares that and starts it.
//
// It exits with 1, naming the stage, as soon as a stage is not observed in its time, or any request fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/term"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	os.Exit(run())
}

func run() int {
	kubeconfig, opts, err := parse(os.Args[1:])
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 2
	}
	// The libraries' own logs would break the tables; what goes wrong is told by the stages.
	ctrllog.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	c, err := connect(kubeconfig)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	if err := New(c, terminal{w: os.Stdout, colour: colour(os.Stdout, os.Getenv)}, opts).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// colour follows the convention of no-color.org.
func colour(f *os.File, getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

func parse(args []string) (kubeconfig string, opts Options, err error) {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.StringVar(&kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig of the cluster; default $KUBECONFIG")
	fs.StringVar(&opts.Function.Namespace, "namespace", "default", "namespace of the function")
	fs.StringVar(&opts.Function.Name, "function", "hello", "name of the function")
	fs.StringVar(&opts.System, "system", "sluice-system", "namespace of Sluice")
	fs.StringVar(&opts.Kubectl, "kubectl", ".cluster/bin/kubectl", "kubectl to name in the commands to try")
	fs.Float64Var(&opts.RampFrom, "ramp-from", 5, "requests per second at the beginning of the load")
	fs.Float64Var(&opts.RampTo, "ramp-to", 200, "requests per second at the end of the ramp")
	fs.DurationVar(&opts.Ramp, "ramp", time.Minute, "length of the ramp")
	fs.DurationVar(&opts.Hold, "hold", 20*time.Second, "least time that the load stays after the ramp")
	allow := fs.String("allow", "10.244.0.0/16,10.96.0.0/16", "networks that may be sent requests, comma-separated")
	if err := fs.Parse(args); err != nil {
		return "", opts, err
	}
	if fs.NArg() > 0 {
		return "", opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	for cidr := range strings.SplitSeq(*allow, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil {
			return "", opts, fmt.Errorf("--allow: %w", err)
		}
		opts.Allow = append(opts.Allow, prefix)
	}
	return kubeconfig, opts, nil
}
