// Command load sends requests to a loopback or allowed address at a rate that rises from --from to --to during --ramp
// and stays there for --hold, prints a line each second, and exits with 1 if any request failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/test/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	opts, err := parse(args)
	if err != nil {
		return err
	}
	l, err := load.New(ctx, opts)
	if err != nil {
		return err
	}
	watching, done := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(watching, l)
	}()
	result, err := l.Run(ctx)
	done()
	<-watched
	if err != nil {
		return err
	}
	lat := result.Latency
	fmt.Printf("sent %d, answered %d, failed %d, resent %d; p50 %s, p90 %s, p99 %s, max %s; generator late by at most %s\n",
		result.Sent, result.Answered(), result.Failed(), result.Resent, lat.P50, lat.P90, lat.P99, lat.Max, result.Late)
	return result.Err()
}

func watch(ctx context.Context, l *load.Load) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s := l.Snapshot()
			fmt.Printf("%4.0fs  %8.1f rps  %7d sent  %4d in flight  %d failed\n",
				s.Elapsed.Seconds(), s.Rate, s.Sent, s.InFlight, s.Failed)
		}
	}
}

func parse(args []string) (load.Options, error) {
	var opts load.Options
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.StringVar(&opts.URL, "url", "", "target, http://host:port/path")
	fs.StringVar(&opts.Method, "method", "GET", "method")
	fs.StringVar(&opts.Host, "host", "", "Host header; default the URL's")
	fs.IntVar(&opts.MaxRequests, "max-requests", 100_000, "refuse to send more")
	fs.IntVar(&opts.MaxInFlight, "max-in-flight", 1000, "requests under way at most; those beyond count as failed")
	fs.DurationVar(&opts.Timeout, "timeout", 10*time.Second, "time that one request may take")
	fs.BoolVar(&opts.FreshConnections, "fresh", false, "a new connection for each request")
	from := fs.Float64("from", 10, "requests per second at the beginning of the ramp")
	to := fs.Float64("to", 10, "requests per second at its end, and after it")
	ramp := fs.Duration("ramp", 0, "length of the ramp")
	hold := fs.Duration("hold", 10*time.Second, "length of the load after the ramp")
	allow := fs.String("allow", "", "networks that may be loaded besides loopback, comma-separated")
	if err := fs.Parse(args); err != nil {
		return opts, err
	}
	for cidr := range strings.SplitSeq(*allow, ",") {
		if cidr == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return opts, fmt.Errorf("--allow: %w", err)
		}
		opts.Allow = append(opts.Allow, prefix)
	}
	opts.Steps = slices.DeleteFunc([]load.Step{load.Ramp(*from, *to, *ramp), load.Constant(*to, *hold)},
		func(s load.Step) bool { return s.For == 0 })
	return opts, nil
}
