package providers

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

var (
	hello   = types.NamespacedName{Namespace: "default", Name: "hello"}
	proxied = Function{Name: hello, Window: 30 * time.Second, Rule: Rule{Proxied: true}}
	direct  = Function{Name: hello, Window: 30 * time.Second, Rule: Rule{
		ByPods: true, Gauge: true, Scrape: Scrape{Path: "/metrics", Requests: "calls_total", InFlight: "calls"},
	}}
	timed = Function{Name: hello, Window: 30 * time.Second, Rule: Rule{
		ByPods: true, Duration: true, Scrape: Scrape{Path: "/metrics", Requests: "calls_total", Duration: "call_seconds"},
	}}
)

// world is a Store and the processes that it measures, on the clock of a synctest bubble.
type world struct {
	t     *testing.T
	store *Store
	fn    Function
	acts  []*process
	pods  []*process
	asks  []Endpoint
}

// process counts at constant rates from its start on.
type process struct {
	Endpoint
	phase   time.Duration
	start   time.Time
	silent  bool    // does not say when it began
	base    float64 // counted before start; not zero for a process that is older than it says
	rate    float64 // requests per second
	busy    float64 // requests in flight
	held    float64
	lasts   float64 // seconds, each request
	down    error
	absent  bool // says nothing of the function
	noCount bool // exposes no counter
	noGauge bool // exposes no gauge
	clocked time.Duration
}

func activator(n int, phase time.Duration) *process {
	return &process{Endpoint: Endpoint{
		Target: Target{Kind: Activator, Address: fmt.Sprintf("10.0.0.%d:9090", n)}, Ready: true, Expected: true,
	}, phase: phase, start: time.Now()}
}

func pod(n int, phase time.Duration) *process {
	return &process{Endpoint: Endpoint{
		Target: Target{Kind: Pod, Function: hello, UID: types.UID(fmt.Sprint(n)), Address: fmt.Sprintf("10.0.1.%d:8080", n)},
		Pod:    Object{Name: fmt.Sprintf("hello-%d", n), Labels: map[string]string{"pod": fmt.Sprint(n)}, Exists: true},
		Ready:  true, Expected: true,
	}, phase: phase, start: time.Now()}
}

// old makes p a process that has counted for long when the world begins.
func (p *process) old() *process {
	p.start, p.base = p.start.Add(-time.Hour), 1e6
	return p
}

// fresh makes p one that appeared while discovery was looking.
func (p *process) fresh() *process {
	p.New = true
	return p
}

func (p *process) measure() (*Measurement, error) {
	if p.down != nil {
		return nil, p.down
	}
	m := &Measurement{Functions: map[types.NamespacedName]Reading{}}
	if !p.silent {
		m.Start = p.start.Add(p.clocked).Round(0)
	}
	if p.absent {
		return m, nil
	}
	age := time.Since(p.start).Seconds()
	r := Reading{Started: p.base + math.Floor(p.rate*age+1e-6), InFlight: p.busy + p.held}
	if p.Kind == Activator {
		r.BusySeconds, r.HeldSeconds = p.base+(p.busy+p.held)*age, p.base+p.held*age
	} else {
		r.Durations, r.DurationSeconds = r.Started, r.Started*p.lasts
		if p.noCount {
			r.Absent, r.Started, r.Durations, r.DurationSeconds = true, 0, 0, 0
		}
		if p.noGauge {
			r.NoGauge, r.InFlight = true, 0
		}
	}
	m.Functions[hello] = r
	return m, nil
}

// inWorld runs a story in a bubble where the Store has just been made.
func inWorld(t *testing.T, fn Function, story func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		story(&world{t: t, fn: fn, store: NewStore(Intervals{})})
	})
}

// list tells the Store what there is.
func (w *world) list() {
	endpoints := func(ps []*process) []Endpoint {
		var es []Endpoint
		for _, p := range ps {
			es = append(es, p.Endpoint)
		}
		return es
	}
	w.store.SetActivators(endpoints(w.acts))
	w.store.SetFunction(w.fn, append(endpoints(w.pods), w.asks...))
}

// pass lets d go by on the clock of a bubble.
func pass(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // synctest

// run lets d go by, in which every listed process is measured at its interval and phase.
func (w *world) run(d time.Duration) {
	const step = 50 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end); pass(step) {
		for _, p := range append(append([]*process{}, w.acts...), w.pods...) {
			interval := w.store.intervals.of(p.Kind)
			if (time.Since(w.store.epoch)-p.phase)%interval == 0 {
				m, err := p.measure()
				_ = w.store.Record(p.Target, time.Now(), m, err)
			}
		}
	}
}

// want checks a value, to 1 %.
func (w *world) want(metric string, want float64) Value {
	w.t.Helper()
	v, err := w.store.Value(hello, metric)
	if err != nil {
		w.t.Fatalf("%s after %s: %v, want %v", metric, time.Since(w.store.epoch), err, want)
	}
	if math.Abs(v.Value-want) > 0.01*want+1e-9 {
		w.t.Fatalf("%s after %s = %+v, want %v", metric, time.Since(w.store.epoch), v, want)
	}
	return v
}

func (w *world) wantUnknown(metric string, want Reason) Unknown {
	w.t.Helper()
	v, err := w.store.Value(hello, metric)
	var unknown *Unknown
	if !errors.As(err, &unknown) || unknown.Reason != want {
		w.t.Fatalf("%s after %s = %+v, %v; want unknown: %s", metric, time.Since(w.store.epoch), v, err, want)
	}
	return *unknown
}
