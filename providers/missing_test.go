package providers

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// inFleet runs a story with n pods of 10 requests per second and 1 in flight each, which have been seen for a while.
func inFleet(t *testing.T, n int, story func(*world)) {
	t.Helper()
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		for i := range n {
			p := pod(i, time.Duration(i%20)*100*time.Millisecond).old()
			p.rate, p.busy = 10, 1
			w.pods = append(w.pods, p)
		}
		w.list()
		w.run(40 * time.Second)
		story(w)
	})
}

func TestOnePodThatDoesNotAnswer(t *testing.T) {
	for _, tt := range []struct {
		name       string
		pods, down int
		known      bool
	}{
		{name: "the only one", pods: 1, down: 1},
		{name: "one of two", pods: 2, down: 1},
		{name: "one of three", pods: 3, down: 1, known: true},
		{name: "two of three", pods: 3, down: 2},
		{name: "two of nine", pods: 9, down: 2},
		{name: "two of ten", pods: 10, down: 2, known: true},
		{name: "three of ten", pods: 10, down: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inFleet(t, tt.pods, func(w *world) {
				rate, inFlight := 10*float64(tt.pods), float64(tt.pods)
				for _, p := range w.pods[:tt.down] {
					p.down = errors.New("timeout")
				}
				w.run(3 * time.Second)
				for range 27 { // in the first minute
					w.run(2 * time.Second)
					if !tt.known {
						continue
					}
					if v := w.want(v1alpha1.RequestsPerSecond, rate); time.Since(v.At) > 2100*time.Millisecond {
						t.Fatalf("value is %s old: held back by a pod that does not answer", time.Since(v.At))
					}
					w.want(v1alpha1.RequestsInFlight, inFlight)
				}
				w.wantUnknown(v1alpha1.IdleSeconds, Stale) // nothing is put to sleep on a guess
				if tt.known {
					w.want(v1alpha1.RequestsPerSecond, rate)
				} else {
					w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
				}
				w.run(6 * time.Second)
				u := w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
				if !strings.Contains(u.Error(), "pod 10.0.1.") || !strings.Contains(u.Error(), "timeout") {
					t.Errorf("error %q does not name the pod and the cause", u.Error())
				}
				for _, p := range w.pods {
					p.down = nil
				}
				w.run(2 * time.Second)
				w.want(v1alpha1.RequestsPerSecond, rate)
			})
		})
	}
}

// The load of a pod that hangs moves to the others, or it was the only one with load: neither makes the sum smaller.
func TestMissingPodIsNeverSmallerThanItWas(t *testing.T) {
	for _, tt := range []struct {
		name         string
		missing, all float64 // requests per second
		want         float64
	}{
		{name: "it had more than the others", missing: 90, all: 10, want: 90 + 40},
		{name: "it had less", missing: 0, all: 10, want: 50},
		{name: "it had all", missing: 90, want: 90},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inFleet(t, 5, func(w *world) {
				for i, p := range w.pods {
					p.base += p.rate * time.Since(p.start).Seconds()
					p.start = time.Now()
					if p.rate = tt.all; i == 0 {
						p.rate = tt.missing
					}
				}
				w.run(34 * time.Second)
				known := tt.missing + 4*tt.all
				w.want(v1alpha1.RequestsPerSecond, known)
				w.pods[0].down = errors.New("timeout")
				for range 26 {
					w.run(2 * time.Second)
					v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
					if err != nil || v.Value < known*0.99 || v.Value > tt.want*1.01 {
						t.Fatalf("rate = %+v, %v; want between %v and %v", v, err, known, tt.want)
					}
				}
				w.want(v1alpha1.RequestsPerSecond, tt.want)
			})
		})
	}
}

func TestPodsThatNeverAnswered(t *testing.T) {
	t.Run("since before the adapter began", func(t *testing.T) {
		inWorld(t, direct, func(w *world) {
			w.acts = []*process{activator(1, 0)}
			for i := range 5 {
				p := pod(i, time.Duration(i)*300*time.Millisecond).old()
				p.rate = 10
				w.pods = append(w.pods, p)
			}
			bad := w.pods[4]
			bad.down = fmt.Errorf("%w: content type", ErrInvalid)
			w.list()
			w.run(40 * time.Second)
			if v := w.want(v1alpha1.RequestsPerSecond, 50); v.Window != 30*time.Second {
				t.Errorf("window = %s", v.Window)
			}
			w.run(19 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 50)
			w.run(2 * time.Second)
			if u := w.wantUnknown(v1alpha1.RequestsPerSecond, SourceError); u.Source != bad.Target.String() {
				t.Errorf("error names %q, want %s", u.Source, bad.Target)
			}
			// It answers at last, for the first time. That is the baseline; a value is there all the while.
			bad.down = nil
			for range 40 {
				w.run(500 * time.Millisecond)
				if v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond); err == nil && (v.Value < 45 || v.Value > 55) {
					t.Fatalf("rate = %+v, want 50", v)
				}
			}
			w.want(v1alpha1.RequestsPerSecond, 50)
		})
	})
	t.Run("new", func(t *testing.T) {
		inFleet(t, 5, func(w *world) {
			p := pod(9, 0).fresh()
			p.rate, p.down = 10, errors.New("timeout")
			w.pods = append(w.pods, p)
			w.list()
			w.run(31 * time.Second)
			w.want(v1alpha1.RequestsPerSecond, 60) // since it appeared it is taken to have as much as the others
			w.run(30 * time.Second)
			w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
			w.pods = w.pods[:5]
			w.list()
			w.want(v1alpha1.RequestsPerSecond, 50)
		})
	})
}

func TestPodsThatAreNotExpectedAreNotMissing(t *testing.T) {
	inFleet(t, 5, func(w *world) {
		for _, p := range w.pods[3:] { // terminating, and dead
			p.Ready, p.Expected, p.down = false, false, errors.New("timeout")
		}
		w.list()
		w.run(40 * time.Second)
		w.want(v1alpha1.RequestsPerSecond, 30)
	})
}
