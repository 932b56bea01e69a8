package providers

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// TestClocksOfOthers: what a process says of its start is of its own machine's clock, which may be hours off and may be
// set while the process lives. A rate is right whatever it says, restarts included.
func TestClocksOfOthers(t *testing.T) {
	for _, off := range []time.Duration{0, time.Hour, -time.Hour, 5 * time.Second, -5 * time.Second} {
		for _, fn := range []Function{proxied, direct} {
			t.Run(fmt.Sprintf("%s, proxied %t", off, fn.Rule.Proxied), func(t *testing.T) {
				inWorld(t, fn, func(w *world) {
					counts := activator(1, 0).old()
					w.acts = []*process{counts}
					if fn.Rule.ByPods {
						counts = pod(1, 0).old()
						w.pods = []*process{counts}
					}
					counts.rate, counts.clocked = 100, off
					w.list()
					steady := func(least float64) {
						t.Helper()
						for range 80 {
							w.run(500 * time.Millisecond)
							v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
							if err != nil || v.Value > 101 || v.Value < least {
								t.Fatalf("rate = %+v, %v; want 100", v, err)
							}
						}
					}
					w.run(40 * time.Second)
					steady(99)
					counts.start, counts.base = time.Now(), 0 // what was counted since the last answer is lost with it
					steady(84)
					counts.clocked += 20 * time.Minute
					steady(84)
					counts.clocked -= 40 * time.Minute
					steady(99)
				})
			})
		}
	}
}

// TestNewPodWhoseClockIsOff counts from its discovery, not from a start that lies in the future or long ago.
func TestNewPodWhoseClockIsOff(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		inWorld(t, direct, func(w *world) {
			w.acts = []*process{activator(1, 0)}
			w.list()
			w.run(40 * time.Second)
			p := pod(1, 500*time.Millisecond).fresh()
			p.rate, p.clocked = 100, off
			w.pods = []*process{p}
			w.list()
			for range 30 {
				w.run(time.Second)
				if v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond); err == nil && v.Value > 101 {
					t.Fatalf("clock off by %s: rate = %+v, want at most 100", off, v)
				}
			}
			w.run(10 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 100)
		})
	}
}

// TestRestartUnderAnotherClock: a pod whose count fell and whose start moved has begun anew, whatever its clock says. What
// it has counted since then counts.
func TestRestartUnderAnotherClock(t *testing.T) {
	for _, off := range []time.Duration{0, time.Minute, time.Hour, -time.Minute, -time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			inWorld(t, direct, func(w *world) {
				p := pod(1, time.Millisecond) // measured below alone
				w.acts, w.pods = []*process{activator(1, 0)}, []*process{p}
				w.list()
				say := func(start time.Time, started float64) {
					t.Helper()
					w.run(2 * time.Second) // in which the activator answers
					m := &Measurement{Start: start.Add(off).Round(0), Functions: map[types.NamespacedName]Reading{hello: {Started: started}}}
					if err := w.store.Record(p.Target, time.Now(), m, nil); err != nil {
						t.Fatal(err)
					}
				}
				long := time.Now().Add(-time.Hour)
				for range 20 {
					say(long, 1000)
				}
				say(time.Now(), 60)
				w.run(time.Second)
				w.want(v1alpha1.RequestsPerSecond, 60.0/30)
			})
		})
	}
}
