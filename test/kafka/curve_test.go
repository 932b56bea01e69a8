package kafka

import (
	"math"
	"strings"
	"testing"
	"time"
)

// A group works off 200 records per second from 10,000 on. The lag of it is measured every 2 s, and served from then on.
const (
	drainFrom, drainRate = 10_000, 200
	drainEvery           = 2 * time.Second
	drainTakes           = drainFrom / drainRate * time.Second
)

func lagAfter(d time.Duration) float64 { return max(0, drainFrom-drainRate*d.Seconds()) }

// served is what somebody sees who asks for that lag every 200 ms, if what is served is that of the time before late and
// scaled by factor.
func served(begin time.Time, late time.Duration, factor float64) Curve {
	var c Curve
	for at := time.Duration(0); at < drainTakes+2*drainEvery+late; at += 200 * time.Millisecond {
		measured := max(0, (at - late).Truncate(drainEvery))
		asked := begin.Add(at)
		c = append(c, Sample{Asked: asked, Answered: asked.Add(10 * time.Millisecond), Lag: math.Round(factor * lagAfter(measured))})
	}
	return c
}

// told is what a tool says that runs for 1.5 s each time, and looks 1 s after it began.
func told(begin time.Time) (points []Told) {
	for at := 300 * time.Millisecond; at < drainTakes; at += 1500 * time.Millisecond {
		points = append(points, Told{
			Began: begin.Add(at), Ended: begin.Add(at + 1500*time.Millisecond), Lag: int64(lagAfter(at + time.Second)),
		})
	}
	return points
}

func TestCompareCurve(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	without := func(c Curve, from, to time.Duration) Curve {
		var left Curve
		for _, s := range c {
			if at := s.Asked.Sub(begin); at < from || at > to {
				left = append(left, s)
			}
		}
		return left
	}
	rises := append(Curve{{Asked: begin.Add(-2 * time.Second), Answered: begin.Add(-2 * time.Second)}}, served(begin, 0, 1)...)
	for _, tt := range []struct {
		name  string
		curve Curve
		wrong []string // words of the first point that is wrong; none where the curve fits
	}{
		{name: "as it should be", curve: served(begin, 0, 1)},
		{name: "after a rise through the same values", curve: rises},
		{name: "a tenth of a period late, which the time until the tool has ended covers", curve: served(begin, 200*time.Millisecond, 1)},
		{name: "late by a period and a half", curve: served(begin, 3*time.Second, 1), wrong: []string{"s after it"}},
		{name: "a tenth too low", curve: served(begin, 0, 0.9), wrong: []string{"point 0", "never passes there"}},
		{name: "a third too low", curve: served(begin, 0, 0.67), wrong: []string{"never passes there"}},
		{name: "a half too high", curve: served(begin, 0, 1.5), wrong: []string{"s after it"}},
		{name: "ahead of the tool", curve: served(begin.Add(-6*time.Second), 0, 1), wrong: []string{"before it"}},
		{name: "nothing was served", wrong: []string{"never passes there"}},
		{name: "nobody looked for two periods", curve: without(served(begin, 0, 1), 3*time.Second, 7*time.Second), wrong: []string{"never passes there"}},
		{name: "stuck", curve: without(served(begin, 0, 1), 3*time.Second, time.Hour), wrong: []string{"never passes there"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.curve.Compare(told(begin), drainEvery)
			t.Logf("latest %s, largest %v, %d wrong", got.Latest, got.Largest, len(got.Wrong))
			if got.Points != 34 {
				t.Errorf("%d points, want 34", got.Points)
			}
			if (len(got.Wrong) > 0) != (len(tt.wrong) > 0) {
				t.Fatalf("wrong points: %q", got.Wrong)
			}
			for _, word := range tt.wrong {
				if !strings.Contains(got.Wrong[0], word) {
					t.Errorf("%q lacks %q", got.Wrong[0], word)
				}
			}
			if len(tt.wrong) == 0 && (got.Latest > drainEvery || got.Largest > drainRate*drainEvery.Seconds()) {
				t.Errorf("latest %s, largest %v: a curve that steps every %s is not further away", got.Latest, got.Largest, drainEvery)
			}
		})
	}
}

// The bound is the period: what passes that much after the end of the tool's run fits, what passes later does not.
func TestCompareCurveBound(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int, lag float64) Sample {
		when := begin.Add(time.Duration(ms) * time.Millisecond)
		return Sample{Asked: when, Answered: when, Lag: lag}
	}
	point := []Told{{Began: begin, Ended: begin.Add(time.Second), Lag: 50}}
	for _, tt := range []struct {
		name    string
		curve   Curve
		latest  time.Duration
		largest float64
		fits    bool
	}{
		{name: "during the run", curve: Curve{at(-100, 80), at(100, 80), at(300, 40)}, fits: true},
		{name: "a step before the first look", curve: Curve{at(-100, 80), at(100, 40)}, fits: true},
		{name: "a period after", curve: Curve{at(100, 80), at(3000, 80), at(3200, 40)}, latest: 2 * time.Second, largest: 30, fits: true},
		{name: "later", curve: Curve{at(100, 80), at(3001, 80), at(3200, 40)}, latest: 2001 * time.Millisecond, largest: 30},
		{name: "before", curve: Curve{at(-300, 80), at(-100, 40), at(100, 40)}, largest: 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.curve.Compare(point, 2*time.Second)
			if got.Latest != tt.latest || got.Largest != tt.largest || (len(got.Wrong) == 0) != tt.fits {
				t.Errorf("%+v, want latest %s, largest %v, fits %v", got, tt.latest, tt.largest, tt.fits)
			}
		})
	}
}
