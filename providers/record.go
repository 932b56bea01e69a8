package providers

import (
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// startSlack bounds how long before its discovery a process may have begun and still be taken for a new one: the
	// time that a new pod takes to be listed, and the difference between two nodes' clocks.
	startSlack = time.Minute
	// restartSlack is by how much a process's statement of its own start may move while it lives: it is computed from
	// the machine's boot time, which moves with the clock.
	restartSlack = 2 * time.Second
	// clockSlack bounds the difference between the clocks of two machines where a restart has to be told from a step
	// of one of them.
	clockSlack = 10 * time.Second
)

// Record takes the outcome of one attempt to measure t that began at the time at: a Measurement, or an error. What
// comes for a target that is not listed any more, or comes out of order, is dropped.
func (s *Store) Record(t Target, at time.Time, m *Measurement, err error) {
	if err == nil {
		err = m.validate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.source(t)
	now := s.tick(at)
	if src == nil || now <= src.sampled {
		return
	}
	if src.err = err; err != nil {
		src.refusing = errors.Is(err, syscall.ECONNREFUSED)
		src.settle(now)
		return
	}
	src.refusing = false
	s.advance(src, now, m, at.Sub(m.Start))
	src.settle(now)
}

func (s *Store) source(t Target) *source {
	if t.Kind == Activator {
		return s.activators.live[t]
	}
	if f := s.functions[t.Function]; f != nil {
		return f.pods.live[t]
	}
	return nil
}

// advance writes the measurement to the source's tracks, and then the source's own time.
func (s *Store) advance(src *source, now tick, m *Measurement, age time.Duration) {
	sp, known := src.span(now, m.Start, age)
	for name, r := range m.Functions {
		f := s.functions[name]
		tr := src.tracks[name]
		if tr == nil {
			tr = &track{}
			src.tracks[name] = tr
		}
		sp.limit = pointLimit(f, src.interval)
		active := false
		if known {
			active = tr.observe(r, sp)
		} else {
			active = tr.baseline(r, now, sp.limit)
		}
		if active && f != nil {
			f.lastActive = max(f.lastActive, now)
		}
	}
	for name, tr := range src.tracks {
		if _, ok := m.Functions[name]; ok {
			continue
		}
		f := s.functions[name]
		if f == nil {
			delete(src.tracks, name) // nobody serves it, nobody asks for it
			continue
		}
		sp.limit = pointLimit(f, src.interval)
		if tr.observe(Reading{}, sp) {
			f.lastActive = max(f.lastActive, now)
		}
	}
	src.sampled, src.start = now, m.Start
}

// span says since when the counters of the answer at now have grown from their last known state, which is zero where
// the span is fresh. known is false for a process of which nobody knows what it counted when: its first answer is
// only the baseline for the next one. age is how long ago the process began, if start is set.
func (src *source) span(now tick, start time.Time, age time.Duration) (sp span, known bool) {
	sp = span{since: src.sampled, at: now, integrate: src.Kind == Pod}
	first := src.sampled == never
	begin := never
	if !start.IsZero() && age >= 0 { // a start in the future is that of another clock, and says nothing
		begin = now - tick(age)
	}
	found := max(src.found, src.assumed)
	switch {
	case first && src.New && (begin == never || begin >= found-tick(startSlack)):
		sp.since, sp.fresh = min(max(found, begin), now), true
	case first && begin != never && age <= startSlack:
		sp.since, sp.fresh = begin, true
		src.counted, src.watched = begin, begin
	case first:
		src.counted, src.watched = now, now
		return sp, false
	default:
		if now-src.seen() > tick(staleAfter(src.interval)) {
			src.watched = now
		}
		if src.restarted(start, begin) {
			sp.since, sp.fresh = min(max(src.sampled, begin), now), true
		}
		sp.same = !sp.fresh && !start.IsZero() && !src.start.IsZero()
	}
	return sp, true
}

// restarted tells whether start is that of another process than the one that answered last. It began after that
// answer: a start that only moved, because the clock it is computed from was set, is not a restart. Taking it for one
// would count everything a second time.
func (src *source) restarted(start time.Time, begin tick) bool {
	return !start.IsZero() && !src.start.IsZero() &&
		start.Sub(src.start) > restartSlack && begin > src.sampled-tick(clockSlack)
}

// pointLimit is how many points at interval reach back over f's windows, as seen from the oldest time that a value
// may have.
func pointLimit(f *function, interval time.Duration) int {
	window := v1alpha1.DefaultWindow
	if f != nil {
		window = max(window, f.Window)
	}
	return int((window+staleAfter(interval))/interval) + 4
}

// validate refuses what no value may be made of.
func (m *Measurement) validate() error {
	for name, r := range m.Functions {
		for _, v := range []float64{r.Started, r.BusySeconds, r.HeldSeconds, r.InFlight} {
			if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
				return fmt.Errorf("%w: %v for function %s", ErrInvalid, v, name)
			}
		}
	}
	return nil
}
