package providers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
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
		Store: store, Discovery: d, Registerer: registry, Sources: map[Kind]Source{Activator: s, Pod: s, Query: s},
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

// TestQueriesAreAsked by their own interval, and a failing one tells so once.
func TestQueriesAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := ask("depth", "a")
		source := &sourceFunc{answer: func(_ context.Context, t Target) (*Measurement, error) {
			if t.Kind == Query {
				return &Measurement{Value: -1}, nil
			}
			return &Measurement{}, nil
		}}
		c, store, registry := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
			sink.SetActivators(activators(1))
			sink.SetFunction(proxied, []Endpoint{q})
			sink.Synced()
			<-ctx.Done()
			return nil
		}), source)
		lines := &logLines{}
		ctx, cancel := context.WithTimeout(logr.NewContext(t.Context(), lines.logger()), time.Minute-time.Nanosecond)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got := len(source.times(q.Target)); got != 6 {
			t.Errorf("asked %d times in a minute, want 6", got)
		}
		if got := testutil.ToFloat64(c.metrics.scrapes.WithLabelValues("query", "invalid")); got != 6 {
			t.Errorf("%v invalid answers counted, want 6: what the Store refuses counts too", got)
		}
		if lines.n != 1 || !strings.Contains(lines.last, "depth") {
			t.Errorf("%d lines logged, want one; the last is %s", lines.n, lines.last)
		}
		if st := store.Stats(); st.Queries != 1 {
			t.Errorf("%d queries, want 1", st.Queries)
		}
		want := `# HELP sluice_adapter_targets Targets that are measured, by kind.
# TYPE sluice_adapter_targets gauge
sluice_adapter_targets{kind="activator"} 1
sluice_adapter_targets{kind="pod"} 0
sluice_adapter_targets{kind="query"} 1
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_adapter_targets"); err != nil {
			t.Error(err)
		}
	})
}

// logLines counts what is logged.
type logLines struct {
	mu   sync.Mutex // protects following
	n    int
	last string
}

func (l *logLines) logger() logr.Logger {
	return funcr.New(func(_, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.n++
		l.last = args
	}, funcr.Options{Verbosity: 1})
}

// TestManyTargetsThatFailDoNotFloodTheLog: thousands of pods that fail and work by turns.
func TestManyTargetsThatFailDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		pods := make([]Endpoint, n)
		for i := range pods {
			pods[i] = pod(i, 0).Endpoint
		}
		var mu sync.Mutex
		calls := map[Target]int{}
		c, _, _ := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
			sink.SetFunction(direct, pods)
			sink.Synced()
			<-ctx.Done()
			return nil
		}), measureFunc(func(_ context.Context, t Target) (*Measurement, error) {
			mu.Lock()
			defer mu.Unlock()
			if calls[t]++; calls[t]%2 == 1 {
				return nil, syscall.ECONNREFUSED
			}
			return &Measurement{}, nil
		}))
		lines := &logLines{}
		ctx, cancel := context.WithTimeout(logr.NewContext(t.Context(), lines.logger()), time.Minute)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if lines.n > 70 {
			t.Errorf("%d lines in a minute, want at most 10 in 10 s", lines.n)
		}
		if lines.n < 10 || len(calls) != n {
			t.Errorf("%d lines of %d pods that were asked, want some of %d", lines.n, len(calls), n)
		}
	})
}

func TestLogLimit(t *testing.T) {
	var l logLimit
	now := time.Now()
	written := 0
	for range 1000 {
		if write, omitted := l.take(now); write {
			written++
			if omitted != 0 {
				t.Errorf("%d omitted before the limit", omitted)
			}
		}
	}
	if written != 10 {
		t.Errorf("%d lines at once, want 10", written)
	}
	if write, omitted := l.take(now.Add(10 * time.Second)); !write || omitted != 990 {
		t.Errorf("after 10 s: %t with %d omitted, want a line that says 990", write, omitted)
	}
}

func TestATargetThatIsListedTwiceIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &sourceFunc{answer: func(context.Context, Target) (*Measurement, error) { return &Measurement{}, nil }}
		one := activators(1)
		c, store, _ := newCollector(t, discoveryFunc(func(ctx context.Context, sink Sink) error {
			for range 2 {
				sink.SetActivators(append(one, one...))
			}
			sink.Synced()
			<-ctx.Done()
			return nil
		}), source)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second-time.Nanosecond)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got := len(source.times(one[0].Target)); got != 10 || source.overlap {
			t.Errorf("asked %d times in 10 s, at once: %t; want 10, one by one", got, source.overlap)
		}
		if st := store.Stats(); st.Activators != 1 {
			t.Errorf("%d activators, want 1", st.Activators)
		}
	})
}

// noticed keeps what it is told.
type noticed struct {
	mu  sync.Mutex // protects following
	all map[types.NamespacedName][]string
}

func (n *noticed) Notify(function types.NamespacedName, notice Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all[function] = append(n.all[function], notice.Key)
}

// TestNoticesAreToldOnce for each target that they are about, and none from before it was measured.
func TestNoticesAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lag := func(function string, group string) Endpoint {
			return Endpoint{Target: Target{
				Kind: Lag, Function: types.NamespacedName{Namespace: "default", Name: function}, Consumer: Consumer{Servers: "kafka:9092", Group: group},
			}, Expected: true}
		}
		began := time.Now()
		source := &sourceFunc{answer: func(_ context.Context, t Target) (*Measurement, error) {
			m := &Measurement{}
			// The same are given out again and again, for an hour, by whoever shares a group; every third attempt fails.
			for i, at := range []time.Duration{-time.Second, 7 * time.Second, 8 * time.Second, 21 * time.Second} {
				if when := began.Add(at); !when.After(time.Now()) {
					m.Notices = append(m.Notices, Notice{At: when, Key: fmt.Sprint(i)})
				}
			}
			if time.Since(began)/(2*time.Second)%3 == 0 {
				return nil, errors.New("away")
			}
			return m, nil
		}}
		told := &noticed{all: map[types.NamespacedName][]string{}}
		store := NewStore(Intervals{})
		first, second := lag("first", "g"), lag("second", "g")
		c, err := NewCollector(Options{Store: store, Sources: map[Kind]Source{Lag: source}, Notifier: told, Discovery: discoveryFunc(func(ctx context.Context, sink Sink) error {
			sink.SetFunction(Function{Name: first.Function}, []Endpoint{first})
			sink.Synced()
			pass(10 * time.Second)
			sink.SetFunction(Function{Name: second.Function}, []Endpoint{second})
			<-ctx.Done()
			return nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		pass(time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want := map[types.NamespacedName][]string{first.Function: {"1", "2", "3"}, second.Function: {"3"}}
		if diff := cmp.Diff(want, told.all); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	})
}
