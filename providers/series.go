package providers

import (
	"math"
	"sort"
	"time"
)

// tick is a time as the Store keeps it: since its epoch, on the monotonic clock, so that a step of the wall clock
// neither makes values stale nor bends a rate.
type tick time.Duration

// never is before every tick.
const never tick = math.MinInt64

// counter is one of the sums that a series keeps.
type counter int

const (
	started counter = iota
	busy
	held // of activators
	ended
	numCounters

	// lasted is the seconds of the requests that ended, at pods. It has the place of held: no process has both.
	lasted = held
)

type sums [numCounters]float64

type point struct {
	at tick
	v  sums
}

// series remembers sums that only grow, as a line through points: between two points it is straight, outside of them
// level. Resets and restarts have been taken out before, so no point is below its predecessor.
//
// It holds at most the number of points that add is told. A stretch in which nothing grows takes two points however
// long it is: an idle function costs nearly nothing.
type series struct {
	ring  []point // n points from head on, oldest first, wrapping around
	head  int
	n     int
	trunc bool // points before the first one were dropped
}

func (s *series) point(i int) *point {
	if i += s.head; i >= len(s.ring) {
		i -= len(s.ring)
	}
	return &s.ring[i]
}

func (s *series) last() *point { return s.point(s.n - 1) }

// add appends a point that is later and not lower than the last one. With limit points in place the oldest is dropped.
func (s *series) add(p point, limit int) {
	if s.n >= 2 && s.last().v == p.v && s.point(s.n-2).v == p.v {
		s.last().at = p.at // the level stretch goes on
		return
	}
	if s.n == len(s.ring) {
		if s.n >= limit {
			s.head = (s.head + 1) % len(s.ring)
			s.n--
			s.trunc = true
		} else {
			s.grow(limit)
		}
	}
	s.n++
	*s.last() = p
}

func (s *series) grow(limit int) {
	ring := make([]point, min(max(4, 2*len(s.ring)), limit))
	for i := range s.n {
		ring[i] = *s.point(i)
	}
	s.ring, s.head = ring, 0
}

// valueAt is the height of the line at t.
func (s *series) valueAt(t tick, c counter) float64 {
	switch {
	case s.n == 0:
		return 0
	case t >= s.last().at: // as most are asked, and as all are that have been level for long
		return s.last().v[c]
	case t < s.point(0).at:
		return s.point(0).v[c]
	}
	// The first point after t.
	i := sort.Search(s.n, func(i int) bool { return s.point(i).at > t })
	a, b := s.point(i-1), s.point(i)
	part := float64(t-a.at) / float64(b.at-a.at)
	return a.v[c] + part*(b.v[c]-a.v[c])
}

// increase between from and to, never negative.
func (s *series) increase(c counter, from, to tick) float64 {
	if s.n == 0 || from >= to || from >= s.last().at {
		return 0
	}
	return max(0, s.valueAt(to, c)-s.valueAt(from, c))
}

// track turns the readings of one function at one source into a series.
type track struct {
	series // under the function's mu; what follows, under the source's writing

	src *source
	// fn is nil where nobody has asked for the function yet: then only raw is kept, so that it is known from where it
	// counts once somebody does.
	fn    *function
	raw   Reading // the latest reading, as it was said
	round uint64  // of the source, when the reading was said
}

// span is the time between two readings of one process: since is when the counters of the later one were as the
// earlier one says, or zero where fresh, because the process began then.
type span struct {
	since, at tick
	fresh     bool
	same      bool // the process says that it is the one that gave the earlier reading
	pod       bool // BusySeconds is made here, from the gauge
	known     bool // false for a process of which nobody knows what it counted when
	limit     int  // of points
}

// observe adds a reading and tells whether it is a sign of activity.
func (t *track) observe(r Reading, sp span) (active bool) {
	if !sp.known {
		return t.baseline(r, sp.at, sp.limit)
	}
	if sp.pod && r.Absent && !sp.fresh {
		r.Started = t.raw.Started // nothing was said; should the counter come back, it goes on from there
	}
	lowered := !sp.fresh && t.raw.lowered(r)
	// A counter never falls: it was reset, and counts from zero. But what a pod says is a sum over labels, of which one
	// may vanish while the process lives; then nobody knows what the others have counted meanwhile, only that counting
	// the whole sum again would be wrong.
	vanished := lowered && sp.same && sp.pod
	if lowered && !vanished {
		sp.fresh = true
	}
	prev := t.raw
	if sp.fresh {
		prev = Reading{}
	} else if r.Durations == 0 && r.DurationSeconds == 0 {
		r.Durations, r.DurationSeconds = prev.Durations, prev.DurationSeconds // as with an absent counter
	}
	var base sums
	if t.n > 0 {
		base = t.last().v
	}
	if t.n == 0 || t.last().at < sp.since {
		t.add(point{sp.since, base}, sp.limit)
	}
	v := base
	v[started] += max(0, r.Started-prev.Started)
	if sp.pod {
		v[busy] += (prev.InFlight + r.InFlight) / 2 * time.Duration(sp.at-sp.since).Seconds()
		v[ended] += max(0, r.Durations-prev.Durations)
		v[lasted] += max(0, r.DurationSeconds-prev.DurationSeconds)
	} else {
		v[busy] += max(0, r.BusySeconds-prev.BusySeconds)
		v[held] += max(0, r.HeldSeconds-prev.HeldSeconds)
	}
	t.raw = r
	if sp.at > t.last().at {
		t.add(point{sp.at, v}, sp.limit)
	} else {
		t.last().v = v
	}
	return r.InFlight > 0 || v != base || vanished
}

// baseline begins the track with a reading of which nobody knows when it was counted.
func (t *track) baseline(r Reading, at tick, limit int) (active bool) {
	t.raw = r
	t.add(point{at: at}, limit)
	return r.InFlight > 0
}

// lowered tells whether a counter is lower in r than in last, as after a restart. Durations do not tell: they are in
// families of their own, which may come and go beside the counter.
func (last *Reading) lowered(r Reading) bool {
	return r.Started < last.Started || r.BusySeconds < last.BusySeconds || r.HeldSeconds < last.HeldSeconds
}
