package kafka

import (
	"fmt"
	"time"
)

// Sample is a lag that was served at some time between Asked and Answered.
type Sample struct {
	Asked, Answered time.Time
	Lag             float64
}

// Told is what Kafka's own tool said of a group: its lag was Lag at some time between Began and Ended.
type Told struct {
	Began, Ended time.Time
	Lag          int64
}

// Curve is a lag as it was served over time, in the order in which it was asked for.
type Curve []Sample

// Comparison is how well a curve fits what Kafka's own tool said.
type Comparison struct {
	// Points is how often the tool spoke.
	Points int
	// Latest is by how much the curve is later than the tool at the worst of the points. Largest is by how many records
	// the curve is away from the tool at the worst of the points, at the moment of its run that suits the curve best.
	Latest  time.Duration
	Largest float64
	// Wrong has, in words, each point through which the curve, made earlier by at most a period, does not pass.
	Wrong []string
}

// Compare holds the curve against what Kafka's own tool said: moved to an earlier time by at most period, it must pass
// through each point at some time in which the tool ran. A curve that passes earlier than the tool began is as wrong as
// one that passes too late: what is served was measured before, and never after. Samples that are half a period apart or
// more say nothing of what was served between them.
func (c Curve) Compare(points []Told, period time.Duration) Comparison {
	result := Comparison{Points: len(points)}
	for i, told := range points {
		late, passes := c.lateness(told, period/2)
		away := c.distance(told)
		result.Largest = max(result.Largest, away)
		if passes {
			result.Latest = max(result.Latest, late)
		}
		if passes && late >= 0 && late <= period {
			continue
		}
		is := "never passes there"
		switch {
		case passes && late < 0:
			is = fmt.Sprintf("passes there %s before it", -late)
		case passes:
			is = fmt.Sprintf("passes there %s after it", late)
		}
		result.Wrong = append(result.Wrong, fmt.Sprintf("point %d: the tool, which ran for %s, told %d; the curve %s, and is %v away while it ran",
			i, told.Ended.Sub(told.Began).Round(time.Millisecond), told.Lag, is, away))
	}
	return result
}

// lateness is by how much later than the run of the tool the curve passes through what it told; 0 if it does during the
// run, negative if before. Of several passages it is the closest, and of the time between two samples, in which nobody
// looked, the moment that suits the curve best. passes is false if it never does.
func (c Curve) lateness(told Told, gap time.Duration) (late time.Duration, passes bool) {
	lag := float64(told.Lag)
	for i := 1; i < len(c); i++ {
		from, to := c[i-1], c[i]
		if lag < min(from.Lag, to.Lag) || lag > max(from.Lag, to.Lag) || to.Asked.Sub(from.Answered) >= gap {
			continue
		}
		var l time.Duration
		switch {
		case from.Asked.After(told.Ended):
			l = from.Asked.Sub(told.Ended)
		case to.Answered.Before(told.Began):
			l = to.Answered.Sub(told.Began)
		}
		if !passes || l.Abs() < late.Abs() {
			late, passes = l, true
		}
	}
	return late, passes
}

// distance is by how many records the curve, as it was served while the tool ran, stays away from what it told.
func (c Curve) distance(told Told) float64 {
	lag, low, high, seen := float64(told.Lag), 0.0, 0.0, false
	for i, s := range c {
		before := s.Answered.Before(told.Began) && (i+1 == len(c) || !c[i+1].Answered.After(told.Began))
		if before || s.Asked.After(told.Ended) {
			continue
		}
		if !seen {
			low, high, seen = s.Lag, s.Lag, true
		}
		low, high = min(low, s.Lag), max(high, s.Lag)
	}
	return max(0, low-lag, lag-high)
}
