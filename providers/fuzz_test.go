package providers

import (
	"math"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// FuzzSeries adds points of any distance and height. A series must be bounded, level or rising everywhere, and finite,
// and what it says of the points that it has must be what it was told.
func FuzzSeries(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0, 1, 0, 1, 5, 1, 0, 1, 0})
	f.Add([]byte{255, 255, 0, 0, 3, 1, 9, 200, 17, 0, 17, 0, 17, 0, 17, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		const limit = 8
		var s series
		var told []point
		p := point{}
		for ; len(steps) >= 2; steps = steps[2:] {
			p.at += tick(steps[0]) + 1
			p.v[started] += float64(steps[1])
			s.add(p, limit)
			told = append(told, p)
		}
		if s.n > limit || len(s.ring) > limit {
			t.Fatalf("%d points in a ring of %d, want at most %d", s.n, len(s.ring), limit)
		}
		if s.n == 0 {
			return
		}
		first, last := s.point(0).at, s.last().at
		for _, p := range told {
			if p.at >= first && math.Abs(s.valueAt(p.at, started)-p.v[started]) > 1e-6 {
				t.Fatalf("at %d: %v, was told %v", p.at, s.valueAt(p.at, started), p.v[started])
			}
		}
		before := 0.0
		for at := first - 3; at <= last+3; at += max(1, (last-first)/97) {
			v := s.valueAt(at, started)
			whole := s.increase(started, first, last)
			parts := s.increase(started, first, at) + s.increase(started, at, last)
			switch {
			case math.IsNaN(v) || math.IsInf(v, 0) || at > first-3 && v < before:
				t.Fatalf("at %d: %v after %v", at, v, before)
			case math.Abs(whole-parts) > 1e-6:
				t.Fatalf("increase from %d to %d is %v, in two parts at %d it is %v", first, last, whole, at, parts)
			}
			before = v
		}
	})
}

// FuzzCounted lets a pod and an activator count, restart, lose and regain their counter, fail, and leave, as the bytes
// say. What is made of it never exceeds what they truly counted, for the time between the answers around it.
func FuzzCounted(f *testing.F) {
	f.Add([]byte{0, 10, 1, 5, 2, 200, 3, 7, 4, 0, 5, 255, 6, 3, 7, 9})
	f.Add([]byte{0, 10, 0, 10, 1, 3, 0, 10, 6, 200, 0, 1, 0, 1, 12, 9, 0, 30})
	f.Add([]byte{8, 3, 9, 1, 10, 77, 11, 3, 0, 2, 8, 8, 16, 90, 24, 3, 32, 1, 40, 4, 4, 4})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 400 {
			t.Skip("longer than anything that matters")
		}
		for _, kind := range []Kind{Activator, Pod} {
			checkCounted(t, kind, steps)
		}
	})
}

func checkCounted(t *testing.T, kind Kind, steps []byte) {
	t.Helper()
	store := NewStore(Intervals{})
	store.epoch = store.epoch.Add(-24 * time.Hour)
	e := Endpoint{Target: Target{Kind: kind, Address: "10.0.0.1:80"}, Ready: true, Expected: true}
	fn := proxied
	list := func(there bool) {
		var of []Endpoint
		if there {
			of = []Endpoint{e}
		}
		if kind == Activator {
			store.SetActivators(of)
			store.SetFunction(fn, nil)
		} else {
			store.SetFunction(fn, of)
		}
	}
	if kind == Pod {
		fn = timed
		e.Function = hello
	}
	list(true)
	at := time.Now().Add(-12 * time.Hour)
	start := at.Add(-time.Hour)
	truth, counter := 0.0, 1e6 // since it is looked at; since the process began
	answered := false
	for ; len(steps) >= 2; steps = steps[2:] {
		at = at.Add(time.Duration(steps[0]>>3)*100*time.Millisecond + time.Millisecond)
		if answered {
			truth += float64(steps[1])
		}
		counter += float64(steps[1])
		m := &Measurement{Start: start, Functions: map[types.NamespacedName]Reading{}}
		r := Reading{Started: counter, Durations: counter, DurationSeconds: counter / 2}
		switch steps[0] & 7 {
		case 1: // a restart, and then as much
			start, counter = at, float64(steps[1])
			m.Start, r = start, Reading{Started: counter, Durations: counter, DurationSeconds: counter / 2}
		case 2: // the same, by a process that does not say when it began
			counter = float64(steps[1])
			m.Start, r = time.Time{}, Reading{Started: counter, Durations: counter, DurationSeconds: counter / 2}
		case 3: // the counter is left out once
			if kind == Activator || !answered {
				continue // who has never had it begins it at zero
			}
			r = Reading{Absent: true}
		case 4:
			_ = store.Record(e.Target, at, nil, ErrInvalid)
			continue
		case 5:
			list(false)
			list(true)
			continue
		case 6:
			r.Started = math.NaN()
		case 7:
			m.Start = start.Add(time.Duration(steps[1]) * time.Second) // a clock that is set
			if age := at.Sub(m.Start); age < time.Minute {
				m.Start = start // is not to be told from a restart
			}
			start = m.Start
		}
		m.Functions[hello] = r
		if store.Record(e.Target, at, m, nil) == nil {
			answered = true
		}
	}
	src := store.targets[e.Target]
	tr := src.track
	if kind == Activator {
		tr = src.tracks[hello]
	}
	if tr == nil {
		return
	}
	for c := range numCounters {
		got := tr.increase(c, never+1, math.MaxInt64)
		most := truth
		if c == lasted && kind == Pod {
			most /= 2
		}
		if math.IsNaN(got) || got < 0 || got > most+1e-6 {
			t.Fatalf("%s: counter %d grew by %v, truly by %v", kind, c, got, most)
		}
	}
	if limit := pointLimit(fn.Window, src.interval); tr.n > limit {
		t.Fatalf("%d points, want at most %d", tr.n, limit)
	}
	for _, metric := range []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds} {
		if v, _, unknown := store.value(store.functions[hello], metric, store.tick(at)); unknown == nil &&
			(math.IsNaN(v.Value) || math.IsInf(v.Value, 0) || v.Value < 0) {
			t.Fatalf("%s = %v", metric, v.Value)
		}
	}
}
