package load

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Step is a stretch of load: for the time For, the rate moves in a straight line from From to To, in requests per
// second. A Step with equal ends is constant load; one with both at 0 is a pause.
type Step struct {
	From, To float64
	For      time.Duration
}

// Constant is load at one rate, in requests per second.
func Constant(rate float64, d time.Duration) Step { return Step{From: rate, To: rate, For: d} }

// Ramp is load that grows, or shrinks, in a straight line.
func Ramp(from, to float64, d time.Duration) Step { return Step{From: from, To: to, For: d} }

func (s Step) validate() error {
	for _, rate := range []float64{s.From, s.To} {
		if math.IsNaN(rate) || rate < 0 || rate > MaxRate {
			return fmt.Errorf("rate %v: must be between 0 and %d requests per second", rate, MaxRate)
		}
	}
	if s.For <= 0 {
		return fmt.Errorf("length %s: must be above 0", s.For)
	}
	return nil
}

// area is the number of requests that come due in the first t of the step; it need not be whole.
func (s Step) area(t time.Duration) float64 {
	x := t.Seconds()
	return s.From*x + s.slope()*x*x/2
}

func (s Step) slope() float64 { return (s.To - s.From) / s.For.Seconds() }

// reach is the inverse of area: the time at which it comes to n, for n between 0 and area(For).
func (s Step) reach(n float64) time.Duration {
	// The root of slope/2·t² + From·t = n that is in the step, in the form that does not lose digits, or divide by
	// zero, when slope is small.
	root := math.Sqrt(max(s.From*s.From+2*s.slope()*n, 0))
	if s.From+root == 0 {
		return 0
	}
	t := 2 * n / (s.From + root)
	return min(time.Duration(math.Round(t*float64(time.Second))), s.For)
}

// epsilon is the part of a request by which sums of floating-point areas may err: 0.1 s at 30 per second are three
// requests, not four.
const epsilon = 1e-6

// schedule lists the times at which requests are due. Request n, counted from 0, is due as soon as the area under the
// rate passes n: at a constant rate r, at n/r exactly.
type schedule struct {
	steps []Step
	n     int
	step  int           // the step of request n, or an earlier one
	start time.Duration // when that step begins
	done  float64       // area of the steps before it
}

// next returns the time of the next request, counted from the beginning; ok is false after the last.
func (s *schedule) next() (due time.Duration, ok bool) {
	for s.step < len(s.steps) {
		step := s.steps[s.step]
		area := step.area(step.For)
		if n := float64(s.n); n < s.done+area-epsilon {
			s.n++
			return s.start + step.reach(max(n-s.done, 0)), true
		}
		s.done += area
		s.start += step.For
		s.step++
	}
	return 0, false
}

// rateAt is the rate at t, in requests per second; 0 outside the steps.
func rateAt(steps []Step, t time.Duration) float64 {
	for _, s := range steps {
		if t >= 0 && t < s.For {
			return s.From + s.slope()*t.Seconds()
		}
		t -= s.For
	}
	return 0
}

// plan checks steps and returns how many requests they make, and how long they last.
func plan(steps []Step) (requests int, length time.Duration, err error) {
	if len(steps) == 0 {
		return 0, 0, errors.New("no steps: say how much load, and for how long")
	}
	var area float64
	for i, s := range steps {
		if err := s.validate(); err != nil {
			return 0, 0, fmt.Errorf("step %d: %w", i, err)
		}
		if length += s.For; length > MaxLength {
			return 0, 0, fmt.Errorf("steps last longer than %s", MaxLength)
		}
		area += s.area(s.For)
	}
	return int(math.Ceil(area - epsilon)), length, nil
}
