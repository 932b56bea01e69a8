package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
	"github.com/sluice-dev/sluice/test/port"
)

const (
	// settling is how long the adapter has for its first rounds, which have all connections to make.
	settling = 5 * time.Minute
	rounds   = 3
	// memoryLimit is the GOMEMLIMIT of manifests/base.
	memoryLimit = "1800MiB"
)

// bench is a run of the benchmark.
type bench struct {
	options
	world     *world.World
	functions int
	rate      float64 // of a pod
	addresses []netip.AddrPort
	servers   []*world.Process // the pods
	adapter   *world.Server
}

// inside is the whole benchmark, in a network namespace of its own.
func inside(ctx context.Context, o options) (err error) {
	if err := world.PrepareNetwork(ctx, network); err != nil {
		return err
	}
	b := &bench{options: o, functions: o.pods / o.perFunction}
	if b.world, err = world.New(ctx, o.state, o.dir); err != nil {
		return err
	}
	defer func() { _ = b.world.Stop(ctx) }()
	if err := b.startPods(ctx); err != nil {
		return err
	}
	gates := gateAddresses()
	seen, err := world.StartSelf(ctx, "gates", "-address", join(gates), "-functions", fmt.Sprint(b.functions))
	if err != nil {
		return err
	}
	defer seen.Stop()
	began := time.Now()
	if err := b.world.Activators(ctx, gates); err != nil {
		return err
	}
	if err := b.world.Awake(ctx, b.functions, b.addresses, metrics); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d functions with %d pods were made in %.0f s\n", b.functions, o.pods, time.Since(began).Seconds())
	for range o.rounds {
		ours, err := b.watchAdapter(ctx)
		if err != nil {
			return fmt.Errorf("adapter: %w", err)
		}
		theirs, err := b.watchFloor(ctx)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		if err := b.report(ours, theirs); err != nil {
			return err
		}
	}
	return nil
}

func join(addresses []netip.AddrPort) string {
	var all []string
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return strings.Join(all, ",")
}

// startPods starts as many processes as it takes for each to stay well below its limit of open files. They end with this
// one.
func (b *bench) startPods(ctx context.Context) (err error) {
	if _, b.rate, err = podAnswer(); err != nil {
		return err
	}
	limit, err := openFiles()
	if err != nil {
		return err
	}
	b.processes = 1 + b.pods/(limit*2/3)
	b.addresses = podAddresses(b.pods, b.perFunction, b.processes)
	for i := range b.processes {
		p, err := world.StartSelf(ctx, "pods", "-address", fmt.Sprintf(":%d", firstPort+i))
		if err != nil {
			return err
		}
		b.servers = append(b.servers, p)
	}
	return nil
}

// startAdapter starts the adapter, and waits for its first rounds.
func (b *bench) startAdapter(ctx context.Context) (*os.File, error) {
	log, err := os.Create(filepath.Join(b.out, "adapter.log"))
	if err != nil {
		return nil, err
	}
	addresses, err := port.Free(ctx, "127.0.0.1", 1)
	if err != nil {
		return log, err
	}
	cmd := exec.CommandContext(ctx, b.options.adapter, "--kubeconfig="+b.world.Kubeconfig(),
		"--bind-address=127.0.0.1", "--secure-port="+strings.TrimPrefix(addresses[0], "127.0.0.1:"),
		"--pod-interval="+b.interval.String())
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+memoryLimit)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := world.Start("adapter", cmd)
	if err != nil {
		return log, err
	}
	b.adapter = b.world.Server(p, addresses[0])
	return log, world.Eventually(ctx, settling, "the adapter's first rounds", func(ctx context.Context) error {
		samples, err := b.scrapeMetrics(ctx)
		if err != nil {
			return err
		}
		ok, failed := outcomes(samples)
		if ok < float64(rounds*b.pods) {
			return fmt.Errorf("%.0f answers of pods, want %d; and %v", ok, rounds*b.pods, failed)
		}
		return nil
	})
}

// watchAdapter measures the adapter.
func (b *bench) watchAdapter(ctx context.Context) (s sighting, err error) {
	log, err := b.startAdapter(ctx)
	if log != nil {
		defer func() { _ = log.Close() }()
	}
	if b.adapter != nil {
		defer b.adapter.Stop()
	}
	if err != nil {
		return s, fmt.Errorf("%w; its log is %s", err, log.Name())
	}
	if err := world.Pause(ctx, 2*b.interval); err != nil {
		return s, err
	}
	if s, err = b.watch(ctx, b.adapter.Process, b.readRates); err != nil {
		return s, err
	}
	if err := b.ages(ctx, &s); err != nil {
		return s, err
	}
	if err := b.adapter.Profile(ctx, fmt.Sprintf("profile?seconds=%d", int(b.profiling.Seconds())),
		filepath.Join(b.out, "pods-cpu.pprof"), "-cum", "-nodecount=70"); err != nil {
		return s, err
	}
	return s, b.adapter.Profile(ctx, "heap?gc=1", filepath.Join(b.out, "pods-heap.pprof"), "-nodecount=25")
}

// watchFloor measures the bare client, which does as the adapter does.
func (b *bench) watchFloor(ctx context.Context) (s sighting, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	var counts counts
	cmd := exec.CommandContext(ctx, self, "-role=floor", fmt.Sprintf("-pods=%d", b.pods),
		fmt.Sprintf("-per-function=%d", b.perFunction), fmt.Sprintf("-processes=%d", b.processes),
		fmt.Sprintf("-interval=%s", b.interval))
	cmd.Stdout, cmd.Stderr = &counts, os.Stderr
	p, err := world.Start("floor", cmd)
	if err != nil {
		return s, err
	}
	defer p.Stop()
	if err := world.Pause(ctx, 3*b.interval); err != nil {
		return s, err
	}
	doneBefore, failedBefore := counts.last()
	if s, err = b.watch(ctx, p, func(ctx context.Context, _ *sighting) error { return world.Pause(ctx, b.span) }); err != nil {
		return s, err
	}
	done, failed := counts.last()
	s.ok, s.failed = float64(done-doneBefore), map[string]float64{"error": float64(failed - failedBefore)}
	return s, nil
}

// watch says what p, and the pods, use while do does what it does for the span.
func (b *bench) watch(ctx context.Context, p *world.Process, do func(context.Context, *sighting) error) (s sighting, err error) {
	processes := append(slices.Clone(b.servers), p)
	used := make([]time.Duration, len(processes))
	for i, p := range processes {
		if used[i], err = p.CPU(); err != nil {
			return s, err
		}
	}
	s.load = world.LoadAverage()
	began := time.Now()
	if err := do(ctx, &s); err != nil {
		return s, err
	}
	s.took = time.Since(began)
	for i, p := range processes {
		now, err := p.CPU()
		if err != nil {
			return s, err
		}
		if i < len(b.servers) {
			s.podsCPU += now - used[i]
		} else {
			s.cpu = now - used[i]
		}
	}
	if s.resident, s.most, err = p.Resident(); err != nil {
		return s, err
	}
	s.files, err = p.OpenFiles()
	return s, err
}
