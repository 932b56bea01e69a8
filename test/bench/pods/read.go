package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/bench/world"
)

const (
	// readEvery is the time between two reads while the adapter is watched.
	readEvery = 20 * time.Millisecond
	// looks is how often the ages of all pods' samples are looked at.
	looks = 3
	// near is how far from the truth a rate may be.
	near = 0.02
)

// sighting is what was seen of the adapter, or of the floor.
type sighting struct {
	load           string
	took           time.Duration
	cpu, podsCPU   time.Duration
	resident, most int64
	files          int
	ok             float64
	failed         map[string]float64 // by outcome

	// Of the adapter alone:
	reads                    []time.Duration // how long they took
	unknown                  int             // reads without a value
	ages                     []time.Duration // of the values of functions
	podAges                  []time.Duration // of the values of pods
	old                      int             // pods, in all looks, without a sample of the last two intervals
	near, far                int             // rates, by their distance from the truth
	gcs                      float64
	gcPauses                 time.Duration
	goroutines, heap, stacks float64
}

// readRates reads the rates of functions at random, for the span.
func (b *bench) readRates(ctx context.Context, s *sighting) error {
	before, err := b.scrapeMetrics(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < b.span; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		body, took, err := b.adapter.Get(ctx, world.RatePath(rand.IntN(b.functions)), world.JSON)
		if err != nil && ctx.Err() == nil {
			s.unknown++
			continue
		}
		values, err := parse(body)
		if err != nil || len(values) != 1 {
			return fmt.Errorf("%.200s: %w", body, err)
		}
		s.reads = append(s.reads, took)
		s.ages = append(s.ages, time.Since(values[0].Timestamp.Time))
	}
	after, err := b.scrapeMetrics(ctx)
	if err != nil {
		return err
	}
	okBefore, failedBefore := outcomes(before)
	s.ok, s.failed = outcomes(after)
	s.ok -= okBefore
	for outcome := range s.failed {
		s.failed[outcome] -= failedBefore[outcome]
	}
	s.goroutines = after["go_goroutines"]
	s.heap, s.stacks = after["go_memstats_heap_inuse_bytes"], after["go_memstats_stack_inuse_bytes"]
	s.gcs = after["go_gc_duration_seconds_count"] - before["go_gc_duration_seconds_count"]
	s.gcPauses = time.Duration((after["go_gc_duration_seconds_sum"] - before["go_gc_duration_seconds_sum"]) * 1e9)
	return nil
}

// outcomes are how often pods were asked in all, by what came of it.
func outcomes(samples map[string]float64) (ok float64, failed map[string]float64) {
	failed = map[string]float64{}
	for name, n := range samples {
		outcome, found := strings.CutPrefix(name, `sluice_adapter_scrapes_total{kind="pod",outcome="`)
		switch outcome = strings.TrimSuffix(outcome, `"}`); {
		case found && outcome == "ok":
			ok = n
		case found:
			failed[outcome] = n
		}
	}
	return ok, failed
}

// scrapeMetrics reads the adapter's own metrics, by name and labels.
func (b *bench) scrapeMetrics(ctx context.Context) (map[string]float64, error) {
	body, _, err := b.adapter.Get(ctx, "/metrics", "text/plain")
	if err != nil {
		return nil, err
	}
	samples := map[string]float64{}
	for line := range bytes.Lines(body) {
		name, value, found := strings.Cut(strings.TrimSpace(string(line)), "} ")
		if found {
			name += "}"
		} else {
			name, value, _ = strings.Cut(name, " ")
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			samples[name] = v
		}
	}
	return samples, nil
}

// ages looks at all pods and functions, a few times.
func (b *bench) ages(ctx context.Context, s *sighting) error {
	for range looks {
		if err := world.Pause(ctx, 2*time.Second); err != nil {
			return err
		}
		pods, err := b.list(ctx, "pods")
		if err != nil {
			return err
		}
		now := time.Now()
		s.old += b.pods - len(pods)
		for _, pod := range pods {
			age := now.Sub(pod.Timestamp.Time)
			s.podAges = append(s.podAges, age)
			if age > 2*b.interval+time.Second { // timestamps are of whole seconds
				s.old++
			}
		}
	}
	functions, err := b.list(ctx, v1alpha1.FunctionResource.String())
	if err != nil {
		return err
	}
	for _, f := range functions {
		if want := b.rate * float64(b.perFunction); math.Abs(f.Value.AsApproximateFloat64()-want) <= near*want {
			s.near++
		}
	}
	s.far = b.functions - s.near
	return nil
}

// list reads the rates of all objects of a resource.
func (b *bench) list(ctx context.Context, resource string) ([]v1beta2.MetricValue, error) {
	path := fmt.Sprintf("%s/namespaces/%s/%s/*/%s", world.Group, world.Namespace, resource, v1alpha1.RequestsPerSecond)
	body, _, err := b.adapter.Get(ctx, path, world.JSON)
	if err != nil {
		return nil, err
	}
	return parse(body)
}

func parse(body []byte) ([]v1beta2.MetricValue, error) {
	var list v1beta2.MetricValueList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%.200s: %w", body, err)
	}
	return list.Items, nil
}

// counts keeps the last line that the floor has printed.
type counts struct {
	mu           sync.Mutex // protects following
	done, failed int64
}

// Write takes whole lines.
func (c *counts) Write(p []byte) (int, error) {
	var done, failed int64
	if _, err := fmt.Sscan(string(p), &done, &failed); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.failed = done, failed
	return len(p), nil
}

func (c *counts) last() (done, failed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done, c.failed
}
