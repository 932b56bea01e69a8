package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/bench/world"
)

// Targets of held requests.
const (
	maxPerHeld  = 20 << 10 // bytes
	maxReleased = time.Second
)

// holding measures what it costs to hold requests of one function, and how soon they are on their way when its pod is
// ready. The floor is what the pod itself, and the minimal proxy, make of as many requests at once.
func (b *bench) holding(ctx context.Context) (report, error) {
	names, gates, err := b.newFunctions(ctx, 1)
	if err != nil {
		return nil, err
	}
	direct, err := b.burst(ctx, podAddress)
	if err != nil {
		return nil, fmt.Errorf("direct: %w", err)
	}
	proxied, err := b.burst(ctx, proxyAddress)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	pod, err := b.startPod(ctx)
	if err != nil {
		return nil, err
	}
	defer pod.Stop()
	a, err := b.startActivator(ctx)
	if err != nil {
		return nil, err
	}
	defer a.Stop()
	before, _, err := a.Resident()
	if err != nil {
		return nil, err
	}
	links, err := connect(ctx, gates[0], b.held)
	if err != nil {
		return nil, err
	}
	defer disconnect(links)
	answered := askAll(links)
	if err := world.Eventually(ctx, time.Minute, "all requests to be held", func(ctx context.Context) error {
		held, err := figure(ctx, v1alpha1.ActivatorHeld, names[0])
		if err == nil && held != b.held {
			err = fmt.Errorf("%d of %d are held", held, b.held)
		}
		return err
	}); err != nil {
		return nil, err
	}
	after, _, err := a.Resident()
	if err != nil {
		return nil, err
	}

	began := time.Now()
	if err := b.world.PodReady(ctx, names[0], podAddress); err != nil {
		return nil, err
	}
	written := time.Since(began)
	last, err := answered(began)
	if err != nil {
		return nil, err
	}
	arrived, err := seen(ctx)
	if err != nil {
		return nil, err
	}
	if arrived.Requests != int64(b.held) {
		return nil, fmt.Errorf("the pod has seen %d requests, of %d that were held", arrived.Requests, b.held)
	}
	_, most, err := a.Resident()
	if err != nil {
		return nil, err
	}
	return b.heldReport(float64(after-before)/float64(b.held), most, written, time.Unix(0, arrived.Last).Sub(began), last, direct, proxied), nil
}

func (b *bench) heldReport(each float64, most int64, written, arrived, answered, direct, proxied time.Duration) report {
	memory := atMost(fmt.Sprintf("held: resident bytes of each of %d requests", b.held), each, maxPerHeld, whole)
	released := atMost("held: from before the pod's endpoint was written to the last at the pod", arrived, maxReleased, brief)
	released.floor, released.ratio = brief(proxied), times(float64(arrived)/float64(proxied))
	return report{
		memory, released,
		{what: fmt.Sprintf("held: to the last answer; floor: %d at once through the minimal proxy", b.atOnce), figure: brief(answered), floor: brief(proxied), ratio: times(float64(answered) / float64(proxied))},
		{what: "held: the same; floor: as many straight to the pod", figure: brief(answered), floor: brief(direct), ratio: times(float64(answered) / float64(direct))},
		{what: "held: of that, the write of the endpoint took", figure: brief(written)},
		{what: "held: resident at most, all of them under way", figure: fmt.Sprintf("%d MB", most>>20)},
	}
}

// burst sends as many requests as are held, or as there are files for, to the pod or to the minimal proxy, in processes that
// have seen nothing else, and returns how long it takes until all are answered.
func (b *bench) burst(ctx context.Context, at netip.AddrPort) (time.Duration, error) {
	for _, start := range []func(context.Context) (*world.Process, error){b.startPod, b.startProxy} {
		p, err := start(ctx)
		if err != nil {
			return 0, err
		}
		defer p.Stop()
	}
	links, err := connect(ctx, at, b.atOnce)
	if err != nil {
		return 0, err
	}
	defer disconnect(links)
	began := time.Now()
	return askAll(links)(began)
}

// askAll sends a request on each connection, in order. What it returns waits for the answers, and tells when, since a
// time, the last came.
func askAll(links []*link) (answered func(since time.Time) (time.Duration, error)) {
	errs, ends := make([]error, len(links)), make([]time.Time, len(links))
	var running sync.WaitGroup
	for i, l := range links {
		if errs[i] = l.send(); errs[i] != nil {
			continue
		}
		running.Go(func() {
			errs[i] = l.receive()
			ends[i] = time.Now()
		})
	}
	return func(since time.Time) (time.Duration, error) {
		limit := time.AfterFunc(time.Minute, func() { disconnect(links) })
		defer limit.Stop()
		running.Wait()
		if failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil }); len(failed) > 0 {
			return 0, fmt.Errorf("%d of %d requests failed, such as: %w", len(failed), len(links), errors.Join(failed[:min(3, len(failed))]...))
		}
		return slices.MaxFunc(ends, time.Time.Compare).Sub(since), nil
	}
}

// figure reads what the activator says of a function.
func figure(ctx context.Context, metric, function string) (int, error) {
	text, err := get(ctx, "http://"+adminAddress.String()+"/metrics")
	if err != nil {
		return 0, err
	}
	prefix := fmt.Sprintf("%s{function=%q,namespace=%q} ", metric, function, world.Namespace)
	for line := range bytes.Lines(text) {
		if value, found := strings.CutPrefix(string(line), prefix); found {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(v), err
		}
	}
	return 0, nil // no request has come
}
