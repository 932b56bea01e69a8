package providers

import (
	"fmt"
	"math"
	"testing"
	"time"
	"unsafe"

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

// stepped is a time that was read after the machine's clock had been set by d: its wall clock reading is another one, its
// monotonic one is not. Package time has no way to make it, so it is written into the seconds, which are above the thirty
// bits of the nanoseconds.
func stepped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	is := at
	*(*uint64)(unsafe.Pointer(&is)) += uint64(d/time.Second) << 30 //nolint:gosec // of a copy
	if is.Sub(at) != 0 || is.Round(0).Sub(at.Round(0)) != d {
		t.Fatalf("a time is laid out in another way: %s and %s", at, is)
	}
	return is
}

// TestOwnClockSteps: the adapter's own clock is set by hours, and back. No value changes for it, none becomes stale, and
// each bears a time of the clock as it is when it is read.
func TestOwnClockSteps(t *testing.T) {
	for _, step := range []time.Duration{5 * time.Hour, -5 * time.Hour, 400 * 24 * time.Hour} {
		for _, fn := range []Function{proxied, direct} {
			t.Run(fmt.Sprintf("%s, proxied %t", step, fn.Rule.Proxied), func(t *testing.T) {
				store := NewStore(Intervals{}) // not in a bubble, whose clock has no monotonic reading
				act, p, q := activator(1, 0), pod(1, 0), ask("depth", "q")
				store.SetActivators([]Endpoint{act.Endpoint})
				store.SetFunction(fn, []Endpoint{p.Endpoint, q})
				began := time.Now() // from here on only the times that are told count
				restarted := began  // of the processes
				for second := range 120 {
					now := began.Add(time.Duration(second+1) * time.Second)
					if second == 90 {
						restarted = now.Add(-500 * time.Millisecond)
					}
					clock := now
					if second >= 40 && second < 80 || second >= 85 {
						clock = stepped(t, now, step)
					}
					m := &Measurement{Start: restarted.Round(0), Value: 7, Functions: map[types.NamespacedName]Reading{
						hello: {Started: math.Floor(100 * now.Sub(restarted).Seconds())},
					}}
					for _, target := range []Target{act.Target, p.Target, q.Target} {
						if err := store.Record(target, clock, m, nil); err != nil {
							t.Fatal(err)
						}
					}
					for metric, want := range map[string]float64{v1alpha1.RequestsPerSecond: 100, v1alpha1.IdleSeconds: 0, "depth": 7} {
						read := clock.Add(700 * time.Millisecond)
						v, err := store.valueAsOf(read, hello, metric)
						switch {
						case err != nil && second > 2:
							t.Fatalf("%s after %d s: %v", metric, second, err)
						case err == nil && math.Abs(v.Value-want) > 0.03*want: // half a second is lost with the process that ended
							t.Fatalf("%s after %d s = %+v, want %v", metric, second, v, want)
						case err == nil && read.Round(0).Sub(v.At.Round(0)) != 700*time.Millisecond:
							t.Fatalf("%s after %d s is of %s, at %s", metric, second, v.At, read)
						}
					}
				}
			})
		}
	}
}
