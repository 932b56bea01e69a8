package providers

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestRateIsExactWhateverThePhases(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		w.acts = []*process{activator(1, 0).old(), activator(2, 350*time.Millisecond).old(), activator(3, 900*time.Millisecond).old()}
		for i, a := range w.acts {
			a.rate, a.busy = 20*float64(i+1), float64(i)+0.5
		}
		w.list()
		w.run(40 * time.Second)
		for range 40 { // at any moment between two scrapes
			v := w.want(v1alpha1.RequestsPerSecond, 120)
			if v.Window != 30*time.Second {
				t.Fatalf("window = %s, want 30s", v.Window)
			}
			if age := time.Since(v.At); age < 0 || age > time.Second+50*time.Millisecond {
				t.Fatalf("value is %s old, want the age of the oldest last scrape", age)
			}
			w.want(v1alpha1.RequestsInFlight, 4.5)
			w.want(v1alpha1.IdleSeconds, 0)
			w.run(50 * time.Millisecond)
		}
	})
}

func TestAdapterJustStarted(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		w.acts = []*process{activator(1, 100*time.Millisecond).old(), activator(2, 600*time.Millisecond).old()}
		w.acts[0].rate, w.acts[1].rate = 100, 100
		w.list()
		w.run(300 * time.Millisecond)
		if u := w.wantUnknown(v1alpha1.RequestsPerSecond, NoData); !strings.Contains(u.Error(), "10.0.0.2:9090") {
			t.Errorf("error %q does not name the activator that has not been read", u.Error())
		}
		w.run(700 * time.Millisecond) // each was read once: a baseline of a million requests
		w.wantUnknown(v1alpha1.RequestsPerSecond, NoData)
		w.run(4 * time.Second)
		v := w.want(v1alpha1.RequestsPerSecond, 200)
		if v.Window < 3*time.Second || v.Window > 5*time.Second {
			t.Errorf("window = %s, want what has been observed", v.Window)
		}
		w.run(60 * time.Second)
		if v := w.want(v1alpha1.RequestsPerSecond, 200); v.Window != 30*time.Second {
			t.Errorf("window = %s, want 30s", v.Window)
		}
	})
}

func TestRestartOfAnActivator(t *testing.T) {
	tests := []struct {
		name   string
		silent bool
	}{
		{name: "told by its start time"},
		{name: "told by counters that fall", silent: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, proxied, func(w *world) {
				a := activator(1, 0).old()
				a.rate, a.silent = 50, tt.silent
				w.acts = []*process{a}
				w.list()
				w.run(40 * time.Second)
				a.start, a.base = time.Now(), 0 // at once, between two scrapes that both succeed
				for range 80 {
					w.run(500 * time.Millisecond)
					// What was counted between the last scrape and the end is lost: at most 1 s in 30.
					v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
					if err != nil || v.Value > 50.5 || v.Value < 48 {
						t.Fatalf("rate across a restart = %+v, %v; want 50", v, err)
					}
				}
			})
		})
	}
}

func TestRestartWithMoreThanBeforeIsSeenByItsStart(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a := activator(1, 0)
		a.rate = 1
		w.acts = []*process{a}
		w.list()
		w.run(40 * time.Second)
		// 41 counted. The next process counts 1000 before it is first read.
		a.start, a.rate = time.Now(), 1000
		w.run(time.Second)
		a.rate = 0
		a.base = 1000
		w.run(2 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, (1000+28)/30.0)
	})
}

func TestStartTimeThatMovesIsNoRestart(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a := activator(1, 0).old()
		a.rate = 50
		w.acts = []*process{a}
		w.list()
		w.run(40 * time.Second)
		for _, moved := range []time.Duration{time.Second, 10 * time.Minute, -time.Minute} {
			a.clocked = moved // the clock of its machine was set: a million requests must not be counted again
			w.run(10 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 50)
		}
	})
}

func TestPodsComeAndGo(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0).old()}
		one := pod(1, 300*time.Millisecond).old()
		one.rate, one.busy = 60, 3
		w.pods = []*process{one}
		w.list()
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 60)
		w.want(v1alpha1.RequestsInFlight, 3)

		// A second one takes half of the load from its first moment on.
		two := pod(2, 1700*time.Millisecond).fresh()
		two.rate, one.rate = 30, 30
		one.base += 3640*60 - 3640*30 // goes on from where it was
		w.pods = []*process{one, two}
		w.list()
		for range 20 {
			w.run(time.Second)
			v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
			if err != nil || v.Value > 61 || v.Value < 55 || v.Window != 30*time.Second {
				t.Fatalf("rate while a pod comes = %+v, %v; want about 60 over 30s", v, err)
			}
		}
		w.run(20 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 60)

		// The first one goes. What it counted stays until it leaves the window, and nobody waits for it.
		w.pods = []*process{two}
		w.list()
		w.run(15 * time.Second)
		// At 93.7 s, when the second one was last read; the first one was last read at 78.3 s.
		v := w.want(v1alpha1.RequestsPerSecond, 30+30*(78.3-63.7)/30)
		if time.Since(v.At) > 2100*time.Millisecond {
			t.Errorf("value is %s old: held back by a pod that is gone", time.Since(v.At))
		}
		w.run(20 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 30)
	})
}

func TestNewPodWithoutStartTimeCountsFromItsDiscovery(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0).old()}
		w.list()
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 0) // asleep, and known to be

		p := pod(1, 1500*time.Millisecond).fresh()
		p.silent, p.rate = true, 300
		w.pods = []*process{p}
		w.list()
		w.want(v1alpha1.RequestsPerSecond, 0) // ready now, so observed now
		w.run(4 * time.Second)
		// At 43 s, when the activator was last read: 3 s of the pod's life.
		if v := w.want(v1alpha1.RequestsPerSecond, 300*3/30.0); v.Window != 30*time.Second {
			t.Errorf("window = %s, want 30s", v.Window)
		}
	})
}

func TestPodThatJoinsTheServiceLateIsNoSpike(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0).old()}
		w.list()
		w.run(40 * time.Second)
		w.pods = []*process{pod(1, 0).old().fresh()} // relabelled into the Service after an hour
		w.pods[0].rate = 10
		w.list()
		for range 100 {
			w.run(200 * time.Millisecond)
			if v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond); err == nil && v.Value > 10.5 {
				t.Fatalf("rate = %+v, want at most 10", v)
			}
		}
		w.want(v1alpha1.RequestsPerSecond, 10)
	})
}

func TestSeriesThatAppearsBeganAtZero(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a := activator(1, 0).old()
		a.absent = true
		w.acts = []*process{a}
		w.list()
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 0)
		if v := w.want(v1alpha1.IdleSeconds, 39); v.Window != 0 {
			t.Errorf("idle_seconds has window %s, want none", v.Window)
		}
		a.absent, a.base, a.rate = false, 90, 0
		w.run(time.Second)
		w.want(v1alpha1.RequestsPerSecond, 3)
		w.want(v1alpha1.IdleSeconds, 0)
	})
}

func TestStaleIsUnknown(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a, b := activator(1, 0).old(), activator(2, 500*time.Millisecond).old()
		a.rate = 10
		w.acts = []*process{a, b}
		w.list()
		w.run(20 * time.Second)
		b.down = errors.New("no route to host")
		w.run(4 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 10)
		w.run(2 * time.Second)
		for _, metric := range []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds} {
			u := w.wantUnknown(metric, Stale)
			if u.Age < 5*time.Second || !strings.Contains(u.Error(), "activator 10.0.0.2:9090") ||
				!strings.Contains(u.Error(), "no route to host") {
				t.Errorf("%s: error %q with age %s, want age, source and cause", metric, u.Error(), u.Age)
			}
		}
		b.down = nil
		w.run(time.Second)
		w.want(v1alpha1.RequestsPerSecond, 10)
	})
}

// A sum over labels falls when one of them vanishes; that is no reset of the others.
func TestVanishedSeriesOfAPodIsNoReset(t *testing.T) {
	for _, tt := range []struct {
		name   string
		silent bool // does not say when it began: a fall can only be a restart
	}{
		{name: "the same process"},
		{name: "a process that may be another", silent: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, direct, func(w *world) {
				w.acts = []*process{activator(1, 0)}
				p := pod(1, 0).old()
				p.rate, p.silent = 10, tt.silent
				w.pods = []*process{p}
				w.list()
				w.run(40 * time.Second)
				p.base -= 3600*10 + 405 // as much as makes the sum fall to about a million
				w.run(2 * time.Second)
				v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
				if err != nil {
					t.Fatal(err)
				}
				if tooMuch := v.Value > 11; tooMuch != tt.silent {
					t.Errorf("rate of 10/s after a series vanished: %+v", v)
				}
			})
		})
	}
}

// An activator on a node that died answers nothing and stays listed for minutes; it is not waited for.
func TestSilentActivatorThatIsNotReadyIsGone(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a, b := activator(1, 0), activator(2, 0)
		a.rate, b.rate = 10, 10
		w.acts = []*process{a, b}
		w.list()
		w.run(40 * time.Second)
		b.down = errors.New("timeout")
		w.run(10 * time.Second)
		b.Ready = false
		w.list()
		w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
		w.run(silentFor)
		w.want(v1alpha1.RequestsPerSecond, 10)
		b.down = nil // it was only cut off
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 20)
	})
}

func TestActivatorThatRefuses(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	tests := []struct {
		name  string
		ready bool
		down  error
		known bool
	}{
		{name: "refuses and is not ready: gone", down: refused, known: true},
		{name: "refuses but is ready: missed", ready: true, down: refused},
		{name: "hangs and is not ready: missed", down: errors.New("timeout")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, proxied, func(w *world) {
				a, b := activator(1, 0).old(), activator(2, 0).old()
				a.rate = 10
				w.acts = []*process{a, b}
				w.list()
				w.run(20 * time.Second)
				b.down, b.Ready = tt.down, tt.ready
				w.list()
				w.run(10 * time.Second)
				if !tt.known {
					w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
					return
				}
				w.want(v1alpha1.RequestsPerSecond, 10)
				// It runs again: a new process, ready at once, that counts from zero.
				b.down, b.Ready, b.rate, b.base, b.start = nil, true, 20, 0, time.Now()
				w.list()
				w.want(v1alpha1.RequestsPerSecond, 10)
				w.run(31 * time.Second)
				w.want(v1alpha1.RequestsPerSecond, 30)
			})
		})
	}
}

func TestUnknownIsNotZero(t *testing.T) {
	all := []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}
	t.Run("no activator", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			w.list()
			w.run(10 * time.Second)
			for _, m := range all {
				w.wantUnknown(m, NoActivator)
			}
		})
	})
	t.Run("pod never answers", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			w.acts = []*process{activator(1, 0).old()}
			w.pods = []*process{pod(1, 0).old()}
			w.pods[0].down = fmt.Errorf("%w: content type", ErrInvalid)
			w.list()
			w.run(10 * time.Second)
			for _, m := range all {
				w.wantUnknown(m, SourceError)
			}
		})
	})
	t.Run("new pod never answers", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			w.acts = []*process{activator(1, 0).old()}
			w.list()
			w.run(10 * time.Second)
			w.pods = []*process{pod(1, 0).fresh()}
			w.pods[0].down = errors.New("timeout")
			w.list()
			w.run(5 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 0)
			w.run(2 * time.Second)
			w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
		})
	})
	t.Run("pod that is not expected never answers", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			w.acts = []*process{activator(1, 0).old()}
			w.pods = []*process{pod(1, 0)}
			w.pods[0].Ready, w.pods[0].Expected, w.pods[0].down = false, false, errors.New("timeout")
			w.list()
			w.run(10 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 0)
		})
	})
	t.Run("nobody counts", func(t *testing.T) {
		inWorld(t, Function{Name: hello}, func(w *world) {
			w.acts = []*process{activator(1, 0).old()}
			w.list()
			w.run(10 * time.Second)
			for _, m := range all {
				w.wantUnknown(m, NotCounted)
			}
		})
	})
	t.Run("no such function", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			if _, err := w.store.Value(hello, all[0]); !errors.Is(err, ErrNoFunction) {
				t.Errorf("error = %v, want %v", err, ErrNoFunction)
			}
		})
	})
}

func TestCountingRule(t *testing.T) {
	tests := []struct {
		name           string
		fn             Function
		rate, inFlight float64
	}{
		{name: "proxied: activators", fn: proxied, rate: 100, inFlight: 9},
		{name: "direct: pods, and what is held", fn: direct, rate: 10, inFlight: 7 + 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, tt.fn, func(w *world) {
				a := activator(1, 0)
				a.rate, a.busy, a.held = 100, 5, 4
				w.acts = []*process{a}
				if tt.fn.Rule.ByPods {
					p := pod(1, 0)
					p.rate, p.busy = 10, 7
					w.pods = []*process{p}
				}
				w.list()
				w.run(40 * time.Second)
				w.want(v1alpha1.RequestsPerSecond, tt.rate)
				w.want(v1alpha1.RequestsInFlight, tt.inFlight)
			})
		})
	}
}

func TestModeChangeOfALiveFunction(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a := activator(1, 0).old()
		a.rate, a.busy = 100, 2
		w.acts = []*process{a}
		w.list()
		w.run(60 * time.Second)

		p := pod(1, 1300*time.Millisecond).old() // has a million requests behind it
		p.rate, p.busy = 80, 1
		check := func(most float64) {
			t.Helper()
			for range 60 {
				w.run(100 * time.Millisecond)
				v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
				if err == nil && (v.Value > most || v.Value < 0) {
					t.Fatalf("rate = %+v, want at most %v", v, most)
				}
				if v, err := w.store.Value(hello, v1alpha1.IdleSeconds); err == nil && v.Value > 0.1 {
					t.Fatalf("idle = %+v under traffic", v)
				}
			}
		}
		w.fn, w.pods = direct, []*process{p}
		w.list()
		check(81)
		w.want(v1alpha1.RequestsPerSecond, 80)

		w.fn, w.pods = proxied, nil
		w.list()
		check(101)
		w.want(v1alpha1.RequestsPerSecond, 100)
	})
}
