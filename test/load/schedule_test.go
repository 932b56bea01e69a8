package load

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sorted(d []time.Duration) []time.Duration {
	slices.Sort(d)
	return d
}

func times(steps []Step) []time.Duration {
	var all []time.Duration
	s := schedule{steps: steps}
	for {
		due, ok := s.next()
		if !ok {
			return all
		}
		all = append(all, due)
	}
}

func TestSchedule(t *testing.T) {
	ms := time.Millisecond
	tests := []struct {
		name  string
		steps []Step
		want  []time.Duration
	}{
		{"constant", []Step{Constant(4, time.Second)}, []time.Duration{0, 250 * ms, 500 * ms, 750 * ms}},
		{"no rate, no request", []Step{Constant(0, time.Second)}, nil},
		{"less than one", []Step{Constant(0.5, time.Second)}, []time.Duration{0}},
		{
			"pause between",
			[]Step{Constant(2, time.Second), Constant(0, time.Second), Constant(2, time.Second)},
			[]time.Duration{0, 500 * ms, 2000 * ms, 2500 * ms},
		},
		{
			// Half a request of the first step is carried into the second.
			"fractions carry over",
			[]Step{Constant(1, 1500*ms), Constant(2, time.Second)},
			[]time.Duration{0, 1000 * ms, 1750 * ms, 2250 * ms},
		},
		{"ramp up", []Step{Ramp(0, 8, time.Second)}, []time.Duration{0, 500 * ms, 707106781, 866025404}},
		{"ramp down", []Step{Ramp(8, 0, time.Second)}, []time.Duration{0, 133974596, 292893219, 500 * ms}},
		// In floating point, 30 * 0.1 is above 3.
		{"no request for a rounding error", []Step{Constant(30, 100*ms)}, []time.Duration{0, 33333333, 66666667}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := times(tt.steps)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("times (-want +got):\n%s", diff)
			}
			n, _, err := plan(tt.steps)
			if err != nil || n != len(got) {
				t.Errorf("plan = %d, %v; the schedule has %d", n, err, len(got))
			}
		})
	}
}

func TestRateAt(t *testing.T) {
	steps := []Step{Ramp(5, 200, time.Minute), Constant(200, 20*time.Second)}
	tests := map[time.Duration]float64{
		-1: 0, 0: 5, 30 * time.Second: 102.5, 60 * time.Second: 200, 79 * time.Second: 200, 80 * time.Second: 0,
	}
	for at, want := range tests {
		if got := rateAt(steps, at); math.Abs(got-want) > 1e-9 {
			t.Errorf("rate at %s = %v, want %v", at, got, want)
		}
	}
}

// Whatever the steps: times rise, lie within the steps, are as many as planned, and number n lies where the area under
// the rate is n.
func FuzzSchedule(f *testing.F) {
	f.Add(5.0, 200.0, int64(time.Minute), 200.0, 0.0, int64(time.Second))
	f.Add(0.0, 0.1, int64(1), 1e-9, 1e3, int64(time.Second))
	f.Add(7.0, 7.0000000001, int64(time.Second/3), 0.0, 0.0, int64(time.Second))
	f.Fuzz(func(t *testing.T, a, b float64, d1 int64, c, e float64, d2 int64) {
		steps := []Step{Ramp(a, b, time.Duration(d1)), Ramp(c, e, time.Duration(d2))}
		planned, length, err := plan(steps)
		if err != nil || planned > 20_000 {
			t.Skip()
		}
		got := times(steps)
		if len(got) != planned {
			t.Fatalf("%d times, %d planned", len(got), planned)
		}
		if !slices.IsSorted(got) {
			t.Fatal("times do not rise")
		}
		for n, at := range got {
			if at < 0 || at > length {
				t.Fatalf("request %d at %s, outside of %s", n, at, length)
			}
			area := steps[0].area(min(at, steps[0].For))
			if at > steps[0].For {
				area += steps[1].area(at - steps[0].For)
			}
			// A nanosecond's rounding, at up to MaxRate, and epsilon.
			if math.Abs(area-float64(n)) > 1e-3 {
				t.Fatalf("request %d at %s, where the area is %v", n, at, area)
			}
		}
	})
}
