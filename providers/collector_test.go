package providers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// discoveryFunc tells what a test wants told.
type discoveryFunc func(ctx context.Context, sink Sink) error

func (f discoveryFunc) Run(ctx context.Context, sink Sink) error { return f(ctx, sink) }

// sourceFunc answers for a test, and notes how often each target was asked and how many at a time.
type sourceFunc struct {
	answer func(ctx context.Context, t Target) (*Measurement, error)

	mu      sync.Mutex // protects following
	asked   map[Target][]time.Time
	now     map[Target]int
	overlap bool
}

func (s *sourceFunc) Measure(ctx context.Context, t Target) (*Measurement, error) {
	s.mu.Lock()
	if s.asked == nil {
		s.asked, s.now = map[Target][]time.Time{}, map[Target]int{}
	}
	s.asked[t] = append(s.asked[t], time.Now())
	s.now[t]++
	s.overlap = s.overlap || s.now[t] > 1
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now[t]--
		s.mu.Unlock()
	}()
	return s.answer(ctx, t)
}

func (s *sourceFunc) times(t Target) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Time(nil), s.asked[t]...)
}

func activators(n int) []Endpoint {
	es := make([]Endpoint, n)
	for i := range es {
		es[i] = Endpoint{Target: Target{Kind: Activator, Address: fmt.Sprintf("10.0.0.%d:9090", i)}, Ready: true, Expected: true}
	}
	return es
}

func newCollector(t *testing.T, d Discovery, s Source) (*Collector, *Store, *prometheus.Registry) {
	t.Helper()
	store, registry := NewStore(Intervals{}), prometheus.NewRegistry()
	c, err := NewCollector(Options{
		Store: store, Discovery: d, Registerer: registry, Sources: map[Kind]Source{Activator: s, Pod: s},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, store, registry
}

// TestOneHangingTargetDelaysNobody also shows that Run ends only when all of its goroutines have: a bubble with
// goroutines left does not end.
func TestOneHangingTargetDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		targets := activators(20)
		bad := targets[7].Target
		source := &sourceFunc{answer: func(ctx context.Context, t Target) (*Measurement, error) {
			if t == bad {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &Measurement{Functions: map[types.NamespacedName]Reading{hello: {Started: 1}}}, nil
		}}
		c, store, registry := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
			sink.SetFunction(proxied, nil)
			sink.SetActivators(targets)
			sink.Synced()
			<-ctx.Done()
			return nil
		}), source)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		pass(10*time.Second - time.Nanosecond)

		phases := map[time.Duration]bool{}
		for _, e := range targets {
			times := source.times(e.Target)
			if len(times) != 10 {
				t.Errorf("%s was asked %d times in 10 s, want 10", e.Target, len(times))
			}
			phases[times[0].Sub(store.epoch)/(100*time.Millisecond)] = true
		}
		if source.overlap {
			t.Error("a target was asked twice at a time")
		}
		if len(phases) < 4 {
			t.Errorf("20 targets are asked in %d of ten tenths of the interval: they are not spread", len(phases))
		}
		u := &Unknown{}
		if _, err := store.Value(hello, v1alpha1.RequestsPerSecond); !errors.As(err, &u) || u.Source != bad.String() {
			t.Errorf("error = %v, want one that names %s", err, bad)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n, err := testutil.GatherAndCount(registry, "sluice_adapter_scrape_duration_seconds"); err != nil || n != 1 {
			t.Errorf("durations of %d kinds, %v; want 1", n, err)
		}
		if got := testutil.ToFloat64(c.metrics.scrapes.WithLabelValues("activator", "timeout")); got < 9 {
			t.Errorf("%v timeouts counted, want at least 9", got)
		}
		want := "# HELP sluice_adapter_functions Functions known.\n# TYPE sluice_adapter_functions gauge\nsluice_adapter_functions 1\n"
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_adapter_functions"); err != nil {
			t.Error(err)
		}
	})
}

func TestTargetsThatGoAreAskedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &sourceFunc{answer: func(context.Context, Target) (*Measurement, error) { return &Measurement{}, nil }}
		pods := []Endpoint{
			{Target: Target{Kind: Pod, Function: hello, Address: "10.0.1.1:80"}, Ready: true, Expected: true},
			{Target: Target{Kind: Pod, Function: hello, Address: "10.0.1.2:80"}, Ready: true, Expected: true},
		}
		c, _, _ := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
			sink.SetActivators(activators(1))
			sink.SetFunction(direct, pods)
			sink.Synced()
			pass(10 * time.Second)
			sink.SetFunction(direct, pods[1:])
			pass(10 * time.Second)
			sink.DeleteFunction(hello)
			sink.SetActivators(activators(1)) // unchanged: its loop goes on
			<-ctx.Done()
			return nil
		}), source)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second-time.Nanosecond)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		for target, want := range map[Target]int{pods[0].Target: 5, pods[1].Target: 10, activators(1)[0].Target: 30} {
			if got := len(source.times(target)); got != want {
				t.Errorf("%s was asked %d times, want %d", target, got, want)
			}
		}
	})
}

func TestReady(t *testing.T) {
	tests := []struct {
		name   string
		after  time.Duration
		answer func(ctx context.Context, t Target) (*Measurement, error)
	}{
		{
			name: "all answered often enough for a rate", after: firstRounds * time.Second,
			answer: func(context.Context, Target) (*Measurement, error) { return &Measurement{}, nil },
		},
		{
			name: "all failed: readiness does not depend on a target", after: time.Second,
			answer: func(context.Context, Target) (*Measurement, error) { return nil, errors.New("no") },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, _ := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
					pass(4 * time.Second)
					sink.SetActivators(activators(3))
					sink.Synced()
					<-ctx.Done()
					return nil
				}), &sourceFunc{answer: tt.answer})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- c.Run(ctx) }()
				pass(4*time.Second + time.Nanosecond)
				if err := c.Ready(); err == nil {
					t.Error("ready before anything was measured")
				}
				pass(tt.after)
				if err := c.Ready(); err != nil {
					t.Errorf("after %s: %v", tt.after, err)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An adapter that says that it is ready has a rate to give, whatever turns the targets have got.
func TestReadyMeansValues(t *testing.T) {
	for range 50 { // the turns are those of a hash with another seed each time
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c, store, _ := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
				sink.SetActivators(activators(3))
				sink.SetFunction(proxied, nil)
				sink.Synced()
				<-ctx.Done()
				return nil
			}), &sourceFunc{answer: func(context.Context, Target) (*Measurement, error) {
				return &Measurement{Start: began.Add(-time.Hour)}, nil
			}})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- c.Run(ctx) }()
			for pass(time.Millisecond); c.Ready() != nil; {
				pass(10 * time.Millisecond)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("ready after %s", took)
			}
			if v, err := store.Value(hello, v1alpha1.RequestsPerSecond); err != nil {
				t.Errorf("ready without a value: %v", err)
			} else if v.Value != 0 {
				t.Errorf("got %v, want 0", v.Value)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFailedDiscoveryEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := errors.New("broken")
		c, _, _ := newCollector(t, discoveryFunc(func(_ context.Context, sink Sink) error {
			sink.SetActivators(activators(3))
			return want
		}), &sourceFunc{answer: func(context.Context, Target) (*Measurement, error) { return &Measurement{}, nil }})
		if err := c.Run(t.Context()); !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
	})
}
