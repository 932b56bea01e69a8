package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// Targets of warm requests.
const (
	minThroughput = 0.95 // of the minimal proxy's
	maxAdded      = 60 * time.Microsecond
	maxTail       = 1.3 // of the minimal proxy's p99
)

// subject is something that answers requests, and what was seen of it: one value for each round.
type subject struct {
	name    string
	at      netip.AddrPort
	process *world.Process

	throughput []float64 // answers per second
	cpu        []float64 // of its process, in microseconds per answer
	p50, p99   []float64 // in microseconds
}

// warm compares a request to an awake function through its gate port with one straight to the pod, and with one through
// a minimal proxy and a relay of bytes. All are measured by turns, and what is compared is of the same round.
func (b *bench) warm(ctx context.Context) (report, error) {
	names, gates, err := b.newFunctions(ctx, 1)
	if err != nil {
		return nil, err
	}
	if err := b.world.PodReady(ctx, names[0], podAddress); err != nil {
		return nil, err
	}
	subjects := []*subject{
		{name: "direct", at: podAddress}, {name: "relay", at: relayAddress}, {name: "proxy", at: proxyAddress}, {name: "activator", at: gates[0]},
	}
	if b.profiling > 0 {
		if err := b.profile(ctx, gates[0]); err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
	}
	for i, start := range []func(context.Context) (*world.Process, error){b.startPod, b.startRelay, b.startProxy, b.startActivator} {
		if subjects[i].process, err = start(ctx); err != nil {
			return nil, err
		}
		defer subjects[i].process.Stop()
	}
	// A first time for all that is only done once.
	for _, s := range subjects {
		if _, err := hurry(ctx, s.at, b.connections, b.span/4); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for range b.rounds {
		for _, s := range subjects {
			if err := b.look(ctx, s); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return compare(subjects[0], subjects[1], subjects[2], subjects[3])
}

// look measures s for a round.
func (b *bench) look(ctx context.Context, s *subject) error {
	before, err := s.process.CPU()
	if err != nil {
		return err
	}
	answered, err := hurry(ctx, s.at, b.connections, b.span/2)
	if err != nil {
		return err
	}
	after, err := s.process.CPU()
	if err != nil {
		return err
	}
	latencies, err := pace(ctx, s.at, b.connections, b.rate, b.span/2)
	if err != nil {
		return err
	}
	s.throughput = append(s.throughput, float64(answered)/(b.span/2).Seconds())
	s.cpu = append(s.cpu, micro(after-before)/float64(max(1, answered)))
	s.p50 = append(s.p50, micro(quantile(latencies, 50)))
	s.p99 = append(s.p99, micro(quantile(latencies, 99)))
	return nil
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func microText(us float64) string { return brief(time.Duration(us * float64(time.Microsecond))) }

// compare prints what was seen round by round and returns the medians.
func compare(direct, relay, proxy, ours *subject) (report, error) {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "round\tof\tper second\tCPU per answer\tp50\tp99\t")
	for i := range ours.p50 {
		for _, s := range []*subject{direct, relay, proxy, ours} {
			fmt.Fprintf(out, "%d\t%s\t%.0f\t%s\t%s\t%s\t\n", i+1, s.name, s.throughput[i], microText(s.cpu[i]), microText(s.p50[i]), microText(s.p99[i]))
		}
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	ratios := func(of func(*subject) []float64) float64 {
		var r []float64
		for i := range of(ours) {
			r = append(r, of(ours)[i]/of(proxy)[i])
		}
		return median(r)
	}
	added := func(s *subject) float64 {
		var d []float64
		for i := range s.p50 {
			d = append(d, s.p50[i]-direct.p50[i])
		}
		return median(d)
	}
	throughput := atLeast("warm: throughput, of the minimal proxy's", ratios(func(s *subject) []float64 { return s.throughput }), minThroughput, times)
	throughput.ratio, throughput.figure = throughput.figure, whole(median(ours.throughput))+"/s"
	throughput.floor = whole(median(proxy.throughput)) + "/s"

	more := atMost("warm: p50 above direct; floor: of the minimal proxy", added(ours), micro(maxAdded), microText)
	more.floor, more.ratio = microText(added(proxy)), times(added(ours)/added(proxy))
	least := row{what: "warm: the same; floor: of a relay of bytes", figure: microText(added(ours)), floor: microText(added(relay))}
	least.ratio = times(added(ours) / added(relay))

	tail := atMost("warm: p99, of the minimal proxy's", ratios(func(s *subject) []float64 { return s.p99 }), maxTail, times)
	tail.ratio, tail.figure, tail.floor = tail.figure, microText(median(ours.p99)), microText(median(proxy.p99))

	cpu := row{what: "warm: processor time of a request, of the minimal proxy's"}
	cpu.ratio = times(ratios(func(s *subject) []float64 { return s.cpu }))
	cpu.figure, cpu.floor = microText(median(ours.cpu)), microText(median(proxy.cpu))
	return report{throughput, more, least, tail, cpu}, nil
}
