package providers

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestDurationIsTheMeanOfThoseThatEnded(t *testing.T) {
	inWorld(t, timed, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		one, two := pod(1, 0).old(), pod(2, 700*time.Millisecond).old()
		one.rate, one.lasts = 30, 0.1
		two.rate, two.lasts = 10, 0.5
		w.pods = []*process{one, two}
		w.list()
		w.run(40 * time.Second)
		if v := w.want(v1alpha1.RequestDurationSeconds, (30*0.1+10*0.5)/40); v.Window != 30*time.Second {
			t.Errorf("window = %s, want 30s", v.Window)
		}
		w.want(v1alpha1.RequestsInFlight, 30*0.1+10*0.5) // without a gauge: how long requests ran, by the time

		w.acts[0].down = errors.New("timeout") // no activator counts durations
		w.run(10 * time.Second)
		w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
		w.want(v1alpha1.RequestDurationSeconds, 0.2)

		two.down = errors.New("timeout")
		w.run(40 * time.Second)
		if v := w.want(v1alpha1.RequestDurationSeconds, 0.1); time.Since(v.At) > 3*time.Second {
			t.Errorf("value is %s old: held back by a pod that does not answer", time.Since(v.At))
		}
		one.down = errors.New("timeout")
		w.run(10 * time.Second)
		w.wantUnknown(v1alpha1.RequestDurationSeconds, Stale)
	})
}

func TestNoRequestEnded(t *testing.T) {
	inWorld(t, timed, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		p := pod(1, 0)
		p.lasts = 0.25
		w.pods = []*process{p}
		w.list()
		w.run(40 * time.Second)
		u := w.wantUnknown(v1alpha1.RequestDurationSeconds, NoData)
		if !strings.Contains(u.Error(), "no request ended in the window") {
			t.Errorf("error %q does not say that no request ended", u.Error())
		}
		w.want(v1alpha1.RequestsPerSecond, 0)
		p.base++
		w.run(2 * time.Second)
		w.want(v1alpha1.RequestDurationSeconds, 0.25)
		for range 33 { // while it leaves the window
			w.run(time.Second)
			if v, err := w.store.Value(hello, v1alpha1.RequestDurationSeconds); err == nil && (v.Value < 0.2499 || v.Value > 0.2501) {
				t.Fatalf("mean of one request of 0.25 s = %v", v.Value)
			}
		}
		w.wantUnknown(v1alpha1.RequestDurationSeconds, NoData)
		w.pods = nil
		w.list()
		w.run(2 * time.Second)
		w.wantUnknown(v1alpha1.RequestDurationSeconds, NoData)
	})
}

func TestWhoCountsNot(t *testing.T) {
	plain := Rule{ByPods: true, Scrape: Scrape{Requests: "calls_total"}}
	for _, tt := range []struct {
		name, metric string
		rule         Rule
		want         string
	}{
		{"durations of a Proxied function", v1alpha1.RequestDurationSeconds, Rule{Proxied: true}, "spec.traffic.mode Direct"},
		{"durations without a name", v1alpha1.RequestDurationSeconds, plain, "spec.traffic.podMetrics.duration"},
		{"in flight with neither gauge nor durations", v1alpha1.RequestsInFlight, plain, "spec.traffic.podMetrics.inFlight"},
		{"nobody counts", v1alpha1.RequestDurationSeconds, Rule{}, "spec.traffic.podMetrics.requests"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, Function{Name: hello, Rule: tt.rule}, func(w *world) {
				w.list()
				if u := w.wantUnknown(tt.metric, NotCounted); !strings.Contains(u.Error(), tt.want) {
					t.Errorf("error %q does not name %s", u.Error(), tt.want)
				}
			})
		})
	}
}

// OpenTelemetry's preset reads a gauge that most SDKs leave out: durations stand in for it.
func TestGaugeThatIsNotThere(t *testing.T) {
	for _, tt := range []struct {
		name     string
		duration bool
		noGauge  bool
		want     float64 // below 0: unknown
	}{
		{name: "the gauge, although there are durations", duration: true, want: 7},
		{name: "durations in its place", duration: true, noGauge: true, want: 5},
		{name: "neither", noGauge: true, want: -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fn := direct
			fn.Rule.Duration = tt.duration
			inWorld(t, fn, func(w *world) {
				w.acts = []*process{activator(1, 0)}
				p := pod(1, 0)
				p.rate, p.lasts, p.busy, p.noGauge = 10, 0.5, 7, tt.noGauge
				w.pods = []*process{p}
				w.list()
				w.run(40 * time.Second)
				w.want(v1alpha1.RequestsPerSecond, 10)
				if tt.want >= 0 {
					w.want(v1alpha1.RequestsInFlight, tt.want)
					return
				}
				if u := w.wantUnknown(v1alpha1.RequestsInFlight, CounterMissing); !strings.Contains(u.Error(), "calls") {
					t.Errorf("error %q does not name the gauge", u.Error())
				}
			})
		})
	}
}

func TestCounterThatNoPodHasShown(t *testing.T) {
	metrics := []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds}
	inWorld(t, timed, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		one, two := pod(1, 0).old(), pod(2, 0).old()
		one.noCount, two.noCount = true, true
		w.pods = []*process{one, two}
		w.list()
		w.run(40 * time.Second)
		for _, metric := range metrics {
			u := w.wantUnknown(metric, CounterMissing)
			for _, want := range []string{"pod 10.0.1.", "calls_total", "spec.traffic.podMetrics"} {
				if !strings.Contains(u.Error(), want) {
					t.Errorf("%s: error %q does not say %q", metric, u.Error(), want)
				}
			}
		}
		one.noCount, one.base, one.lasts = false, 3, 1 // its first requests
		w.run(2 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 3/30.0)
		w.want(v1alpha1.IdleSeconds, 0)
		w.run(20 * time.Second)
		if idle := w.idle(); idle < 18 || idle > 22 {
			t.Errorf("idle = %v, want 20: a pod without the counter has counted nothing once another has shown it", idle)
		}
	})
}

// A version whose pods expose the counter by another name must not look like a function at rest, whatever the version
// before it has shown; pods of one version vouch for each other.
func TestCounterThatARolloutTakesAway(t *testing.T) {
	of := func(p *process, version string) *process {
		p.Pod.Labels = map[string]string{"pod-template-hash": version}
		return p
	}
	for _, fn := range []Function{direct, timed} {
		inWorld(t, fn, func(w *world) {
			w.acts = []*process{activator(1, 0)}
			was := of(pod(1, 0), "a")
			was.rate, was.lasts = 10, 0.5
			w.pods = []*process{was}
			w.list()
			w.run(40 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 10)

			idle := of(pod(2, 0).fresh(), "a")
			idle.noCount, idle.noGauge = true, true
			w.pods = append(w.pods, idle)
			w.list()
			w.run(40 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 10)

			now := of(pod(3, 0).fresh(), "b")
			now.noCount, now.noGauge = true, true
			w.pods = []*process{now}
			w.list()
			w.run(90 * time.Second)
			for _, metric := range []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds} {
				w.wantUnknown(metric, CounterMissing)
			}
			now.noCount, now.noGauge = false, false // with its first request
			w.run(40 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 0)
		})
	}
}

// An exposition that leaves out its counter once must not have all of it counted again.
func TestCounterThatComesBack(t *testing.T) {
	for _, silent := range []bool{false, true} {
		inWorld(t, timed, func(w *world) {
			w.acts = []*process{activator(1, 0)}
			p := pod(1, 0).old()
			p.rate, p.lasts, p.silent = 10, 0.5, silent
			w.pods = []*process{p}
			w.list()
			w.run(40 * time.Second)
			p.noCount = true
			w.run(2 * time.Second)
			p.noCount = false
			for range 10 {
				w.run(2 * time.Second)
				w.want(v1alpha1.RequestsPerSecond, 10)
				w.want(v1alpha1.RequestsInFlight, 5)
				w.want(v1alpha1.RequestDurationSeconds, 0.5)
			}
		})
	}
}

// TestRolloutToAGauge: while pods of two versions run, each counts by what it has.
func TestRolloutToAGauge(t *testing.T) {
	fn := direct
	fn.Rule.Duration, fn.Rule.Scrape.Duration = true, "call_seconds"
	inWorld(t, fn, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		for i := range 4 {
			p := pod(i, time.Duration(i)*100*time.Millisecond).old()
			p.rate, p.lasts, p.busy, p.noGauge = 10, 0.5, 7, true
			w.pods = append(w.pods, p)
		}
		w.list()
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsInFlight, 4*5)
		next := pod(4, 500*time.Millisecond).fresh()
		next.rate, next.lasts, next.busy = 10, 0.5, 5
		w.pods = append(w.pods, next)
		w.list()
		for range 20 {
			w.run(2 * time.Second)
			if v, err := w.store.Value(hello, v1alpha1.RequestsInFlight); err == nil && v.Value < 4*5*0.99 {
				t.Fatalf("%+v in flight once a pod has a gauge, want those of the others all the same", v)
			}
		}
		w.want(v1alpha1.RequestsInFlight, 5*5)
		for i, p := range w.pods {
			if v, err := w.store.PodValue("default", p.Pod.Name, v1alpha1.RequestsInFlight); err != nil || v.Value < 4.9 || v.Value > 5.1 {
				t.Errorf("of pod %d: %+v, %v, want 5", i, v, err)
			}
		}
		w.pods[0].down = errors.New("timeout") // and is taken to go on by what it had
		w.run(20 * time.Second)
		w.want(v1alpha1.RequestsInFlight, 5*5)
	})
}
