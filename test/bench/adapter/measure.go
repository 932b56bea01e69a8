package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/bench/world"
	"github.com/sluice-dev/sluice/test/port"
)

const (
	// block is how many reads of one server come before those of the other: few enough that both see the same machine.
	block = 50
	// settling is how long the adapter has to be ready, and to see every activator a few times.
	settling = 2 * time.Minute
)

// measure is the whole benchmark.
func measure(ctx context.Context, o options) error {
	w, err := world.New(ctx, o.state, "")
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop(ctx) }()
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "functions\twhat\tadapter p50\tfloor p50\tratio\tadapter p99\tfloor p99\tratio\t")
	have := 0
	for _, n := range []int{1, o.functions} {
		if err := w.Sleeping(ctx, have, n); err != nil {
			return err
		}
		have = n
		if err := measureWith(ctx, o, w, n, out); err != nil {
			return fmt.Errorf("with %d functions: %w", n, err)
		}
	}
	return out.Flush()
}

// measureWith measures with n functions, in processes that have seen nothing else.
func measureWith(ctx context.Context, o options, w *world.World, n int, out *tabwriter.Writer) error {
	addresses, err := port.Free(ctx, "127.0.0.1", 5)
	if err != nil {
		return err
	}
	activators := strings.Join(addresses[2:], ",")
	seen, err := world.StartSelf(ctx, "gates", "-address", activators, "-functions", fmt.Sprint(n))
	if err != nil {
		return err
	}
	defer seen.Stop()
	subject, err := serve(ctx, w, "subject", addresses[0], "-gates", activators)
	if err != nil {
		return err
	}
	defer subject.Stop()
	floor, err := serve(ctx, w, "floor", addresses[1])
	if err != nil {
		return err
	}
	defer floor.Stop()

	reads := []struct {
		name string
		path func() string
	}{
		{"a function's rate", func() string { return world.RatePath(rand.IntN(n)) }},
		{"discovery", func() string { return world.Group }},
	}
	for _, s := range []*named{subject, floor} {
		for i := range n { // all of them: the authorization of each is known then
			if i%100 != 0 && i != n-1 {
				continue
			}
			if err := world.Eventually(ctx, settling, s.name+" to answer", func(ctx context.Context) error {
				_, _, err := s.Get(ctx, world.RatePath(i), world.Protobuf)
				return err
			}); err != nil {
				return err
			}
		}
	}
	for _, r := range reads {
		ours, theirs, err := compare(ctx, o.reads, subject, floor, r.path)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		fmt.Fprintf(out, "%d\t%s\t%v\t%v\t%.3f\t%v\t%v\t%.3f\t\n", n, r.name,
			micro(world.At(ours, 50)), micro(world.At(theirs, 50)), ratio(world.At(ours, 50), world.At(theirs, 50)),
			micro(world.At(ours, 99)), micro(world.At(theirs, 99)), ratio(world.At(ours, 99), world.At(theirs, 99)))
	}
	if err := idle(ctx, o.idle, n, subject); err != nil {
		return err
	}
	return profile(ctx, o, n, subject)
}

// named is a server and its role.
type named struct {
	*world.Server
	name string
}

// serve starts a server in a role.
func serve(ctx context.Context, w *world.World, role, address string, args ...string) (*named, error) {
	p, err := world.StartSelf(ctx, role, append([]string{"-address", address, "-kubeconfig", w.Kubeconfig()}, args...)...)
	if err != nil {
		return nil, err
	}
	return &named{w.Server(p, address), role}, nil
}

// compare reads both servers by turns, n times each, and returns the durations in order of size.
func compare(ctx context.Context, n int, a, b *named, path func() string) (ofA, ofB []time.Duration, err error) {
	for len(ofA) < n {
		paths := make([]string, block)
		for i := range paths {
			paths[i] = path()
		}
		for _, turn := range []struct {
			server *named
			took   *[]time.Duration
		}{{a, &ofA}, {b, &ofB}} {
			for _, p := range paths {
				_, took, err := turn.server.Get(ctx, p, world.Protobuf)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", turn.server.name, err)
				}
				*turn.took = append(*turn.took, took)
			}
		}
	}
	return ofA, ofB, nil
}

func micro(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// idle says what the adapter costs while nothing happens.
func idle(ctx context.Context, span time.Duration, n int, s *named) error {
	before, err := s.CPU()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := world.Pause(ctx, span); err != nil {
		return err
	}
	after, err := s.CPU()
	if err != nil {
		return err
	}
	now, most, err := s.Resident()
	if err != nil {
		return err
	}
	fmt.Printf("%d functions asleep: %.2f %% of a core over %s; resident %d MB, %d MB at most\n",
		n, 100*float64(after-before)/float64(time.Since(began)), span, now>>20, most>>20)
	return nil
}

// profile tells where the time of plain reads goes, which are made for as long as the profile takes.
func profile(ctx context.Context, o options, n int, s *named) error {
	if n != o.functions || o.profile == "" {
		return nil
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var running errgroup.Group
	running.Go(func() error {
		for reading.Err() == nil {
			if _, _, err := s.Get(reading, world.RatePath(rand.IntN(n)), world.Protobuf); err != nil && reading.Err() == nil {
				return err
			}
		}
		return nil
	})
	err := s.Profile(ctx, fmt.Sprintf("profile?seconds=%d", int(o.profiling.Seconds())), o.profile, "-cum", "-nodecount=60")
	stop()
	return errors.Join(err, running.Wait())
}
