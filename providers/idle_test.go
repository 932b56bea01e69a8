package providers

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// idle reads idle_seconds and the time it was true.
func (w *world) idle() float64 {
	w.t.Helper()
	v, err := w.store.Value(hello, v1alpha1.IdleSeconds)
	if err != nil {
		w.t.Fatalf("idle_seconds after %s: %v", time.Since(w.store.epoch), err)
	}
	return v.Value
}

func TestIdleIsALowerBound(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		a, p := activator(1, 0).old(), pod(1, 500*time.Millisecond).old()
		w.acts, w.pods = []*process{a}, []*process{p}
		w.list()
		w.run(10 * time.Second)
		// A million requests before the adapter began to look say nothing; neither does the time before.
		if idle := w.idle(); idle < 7.9 || idle > 8.6 {
			t.Errorf("idle = %v after 10 s of looking at both, want 8 to 8.5: from the pod's first answer to its last", idle)
		}
		activity := []struct {
			name string
			do   func()
		}{
			{"a request at the pod", func() { p.base++ }},
			{"a request at the gate", func() { a.base++ }},
			{"a running call at the pod", func() { p.busy = 1 }},
			{"a held request", func() { a.held = 1 }},
		}
		for _, sign := range activity {
			sign.do()
			w.run(2100 * time.Millisecond)
			if idle := w.idle(); idle > 2.1 {
				t.Errorf("%s: idle = %v", sign.name, idle)
			}
			p.busy, a.held = 0, 0
			w.run(10 * time.Second)
			if idle := w.idle(); idle < 6 || idle > 10 {
				t.Errorf("10 s after %s: idle = %v", sign.name, idle)
			}
		}
		p.busy = 1 // lasts longer than any window
		w.run(2 * time.Minute)
		if idle := w.idle(); idle != 0 {
			t.Errorf("idle = %v while a call runs", idle)
		}
	})
}

func TestIdleRestartsAfterAGap(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a, b := activator(1, 0).old(), activator(2, 500*time.Millisecond).old()
		w.acts = []*process{a, b}
		w.list()
		w.run(60 * time.Second)
		if idle := w.idle(); idle < 58 {
			t.Fatalf("idle = %v after a minute", idle)
		}
		b.down = errors.New("timeout")
		w.run(3 * time.Second)
		b.down = nil
		w.run(2 * time.Second)
		if idle := w.idle(); idle < 62 {
			t.Errorf("idle = %v after a gap of 3 s, which is no gap", idle)
		}
		b.down = errors.New("timeout")
		w.run(10 * time.Second)
		w.wantUnknown(v1alpha1.IdleSeconds, Stale)
		b.down = nil
		w.run(2 * time.Second)
		if idle := w.idle(); idle > 2 {
			t.Errorf("idle = %v 2 s after a gap of 10 s in which anything may have happened", idle)
		}
	})
}

func TestIdleGoesOnWhileActivatorsAreReplaced(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a, b := activator(1, 0).old(), activator(2, 500*time.Millisecond)
		w.acts = []*process{a}
		w.list()
		w.run(60 * time.Second)
		b.start = time.Now()
		w.acts = []*process{a, b.fresh()}
		w.list()
		w.run(5 * time.Second)
		w.acts = []*process{b}
		w.list()
		w.run(5 * time.Second)
		if idle := w.idle(); idle < 67 {
			t.Errorf("idle = %v, want 68: both were watched while they could count", idle)
		}
		w.acts = nil
		w.list()
		w.run(5 * time.Second)
		w.wantUnknown(v1alpha1.IdleSeconds, NoActivator)
		c := activator(3, 0).fresh()
		w.acts = []*process{c}
		w.list()
		w.run(5 * time.Second)
		if idle := w.idle(); idle > 5 {
			t.Errorf("idle = %v, 5 s after there was no activator", idle)
		}
	})
}

func TestActivityOfAnActivatorThatIsGoneIsNotForgotten(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a, b := activator(1, 0).old(), activator(2, 0).old()
		w.acts = []*process{a, b}
		w.list()
		w.run(60 * time.Second)
		b.base++
		w.run(2 * time.Second)
		w.acts = []*process{a}
		w.list()
		w.run(20 * time.Minute) // longer than anything of b is kept
		w.list()
		if idle := w.idle(); idle > 20*60+2 {
			t.Errorf("idle = %v, want at most the time since b's request", idle)
		}
	})
}
