package providers

import (
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

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
	// mostCounted is the highest count that is believed: above it a float64 leaves out numbers, and sums of such
	// counts might not be finite.
	mostCounted = 1 << 53
)

// Record takes the outcome of one attempt to measure t that began at the time at: a Measurement, or an error. What
// comes for a target that is not listed any more, or comes out of order, is dropped.
//
// It returns the error that was recorded: err, or one that wraps ErrInvalid for a Measurement that cannot be used.
func (s *Store) Record(t Target, at time.Time, m *Measurement, err error) error {
	if err == nil {
		err = m.validate(t.Kind)
	}
	if err == nil && !m.At.IsZero() && m.At.Before(at) {
		at = m.At
	}
	s.mu.RLock()
	src := s.targets[t]
	s.mu.RUnlock()
	if src == nil {
		return err
	}
	src.writing.Lock()
	defer src.writing.Unlock()
	now := s.tick(at)
	if t.Kind == Activator && src.tracks == nil {
		return err // gone and forgotten meanwhile
	}
	if now <= src.state.Load().sampled {
		src.apart = true
		return err
	}
	if err != nil {
		src.apart = true
		src.change(func(st *state) {
			st.err, st.refusing = err, errors.Is(err, syscall.ECONNREFUSED)
			st.settle(now)
		})
		return err
	}
	switch t.Kind {
	case Query:
		src.change(func(st *state) {
			st.answered(now)
			st.answers = []Answer{{Metric: t.Ask.Metric, Value: m.Value}}
		})
	case Lag:
		src.change(func(st *state) {
			st.answered(now)
			st.answers, st.partitions = m.Answers, m.Partitions
		})
	case Pod:
		s.recordPod(src, now, m, at.Sub(m.Start))
	default:
		s.recordActivator(src, now, m, at.Sub(m.Start))
	}
	return nil
}

// answered moves the state to an answer.
func (st *state) answered(now tick) {
	st.sampled, st.err, st.refusing = now, nil, false
	st.settle(now)
}

// recordPod writes the pod's only track.
func (s *Store) recordPod(src *source, now tick, m *Measurement, age time.Duration) {
	f, r := src.fn, m.Functions[src.Function]
	sp := src.span(now, m.Start, age)
	sp.limit = pointLimit(f.def.Load().Window, src.interval)
	f.mu.Lock()
	defer f.mu.Unlock()
	if src.track == nil {
		src.track = &track{src: src, fn: f}
	}
	tr := src.track
	if tr.n == 0 || sp.fresh || r.InFlight > 0 || r != tr.raw {
		if tr.observe(r, sp) {
			f.lastActive = max(f.lastActive, now)
		}
	}
	f.show(src.state.Load().version, shown{counter: !r.Absent, gauge: !r.NoGauge})
	src.start = m.Start
	src.change(func(st *state) {
		st.answered(now)
		st.absent, st.gauged = r.Absent, st.gauged || !r.NoGauge
	})
}

// maxVersions bounds the versions of a function that are remembered: those of its last rollouts.
const maxVersions = 8

// show takes note of what a pod of a version has exposed. f.mu is held.
func (f *function) show(version string, now shown) {
	was := f.shown[version]
	now.counter, now.gauge = now.counter || was.counter, now.gauge || was.gauge
	if now == was {
		return
	}
	f.gauged = f.gauged || now.gauge
	if f.shown == nil {
		f.shown = map[string]shown{}
	}
	if len(f.shown) >= maxVersions { // those that run are noted again with their next answer
		clear(f.shown)
	}
	f.shown[version] = now
}

// recordActivator writes the tracks of all functions that the activator counts, and then the source's own time: until
// then no value is made from them. It holds one function's lock at a time, and none for a function of which it says
// nothing new.
func (s *Store) recordActivator(src *source, now tick, m *Measurement, age time.Duration) {
	generation := s.generation.Load() // before looking for functions: what is added later is found next time
	known := generation == src.indexed
	sp := src.span(now, m.Start, age)
	if !m.Unchanged || src.apart || src.lively || sp.fresh || !sp.known || !known {
		src.round++
		src.lively = false
		here := 0
		for name, r := range m.Functions {
			tr := src.tracks[name]
			isNew := tr == nil
			if isNew {
				tr = &track{src: src}
				src.tracks[name] = tr
			} else {
				here++
			}
			tr.round = src.round
			if isNew || !known {
				tr = s.attach(tr, name)
			}
			src.lively = src.lively || r.InFlight > 0
			tr.take(r, sp)
		}
		if here < len(src.tracks) {
			s.recordAbsent(src, sp, known)
		}
		src.indexed, src.apart = generation, false
	}
	src.start = m.Start
	src.change(func(st *state) { st.answered(now) })
}

// recordAbsent lets the functions of which the latest answer says nothing read zero.
func (s *Store) recordAbsent(src *source, sp span, known bool) {
	for name, tr := range src.tracks {
		if tr.round == src.round {
			continue
		}
		if !known {
			tr = s.attach(tr, name)
		}
		if tr.fn == nil {
			delete(src.tracks, name) // nobody serves it, nobody asks for it
			continue
		}
		tr.take(Reading{}, sp)
	}
}

// attach returns the track in place of tr that belongs to the function of that name, as there is one now. A track never
// changes its function: somebody may be looking at the former one still, whose tracks went with it. What the source had counted
// by then stays, so that it does not count for the new one.
func (s *Store) attach(tr *track, name types.NamespacedName) *track {
	s.mu.RLock()
	f := s.functions[name]
	s.mu.RUnlock()
	if f == tr.fn {
		return tr
	}
	tr = &track{src: tr.src, fn: f, raw: tr.raw, round: tr.round}
	tr.src.tracks[name] = tr
	if f != nil {
		f.mu.Lock()
		f.tracks = append(f.tracks, tr)
		f.mu.Unlock()
	}
	return tr
}

// take writes a reading of an activator to the track. A series is level past its last point, so that there is nothing
// to write where nothing was counted.
func (t *track) take(r Reading, sp span) {
	switch f := t.fn; {
	case f == nil:
		t.raw = r
	case sp.known && !sp.fresh && r == t.raw && r.InFlight == 0:
	default:
		sp.limit = pointLimit(f.def.Load().Window, t.src.interval)
		f.mu.Lock()
		if t.observe(r, sp) {
			f.lastActive = max(f.lastActive, sp.at)
		}
		f.mu.Unlock()
	}
}

// span says since when the counters of the answer at now have grown from their last known state, which is zero where
// the span is fresh. It is not known for a process of which nobody knows what it counted when: its first answer is
// only the baseline for the next one. age is how long ago the process began, if start is set.
//
// From when on the source is counted and watched is published at once, before the tracks are written: until its
// answer counts, values are made of a shorter time, and never of more than is known.
func (src *source) span(now tick, start time.Time, age time.Duration) span {
	st := src.state.Load()
	sp := span{since: st.sampled, at: now, pod: src.Kind == Pod, known: true}
	first := st.sampled == never
	begin := never
	if !start.IsZero() && age >= 0 { // a start in the future is that of another clock, and says nothing
		begin = now - tick(age)
	}
	found := max(st.found, st.assumed)
	counted, watched := st.counted, st.watched
	switch {
	case first && st.endpoint.New && (begin == never || begin >= found-tick(startSlack)):
		sp.since, sp.fresh = min(max(found, begin), now), true
	case first && begin != never && age <= startSlack:
		sp.since, sp.fresh = begin, true
		counted, watched = begin, begin
	case first:
		sp.known = false
		counted, watched = now, now
	default:
		if now-st.seen() > tick(staleAfter(src.interval)) {
			watched = now
		}
		if src.restarted(st, start, begin) {
			sp.since, sp.fresh = min(max(st.sampled, begin), now), true
		}
		sp.same = !sp.fresh && !start.IsZero() && !src.start.IsZero() && start.Sub(src.start).Abs() <= restartSlack
	}
	if counted != st.counted || watched != st.watched {
		src.change(func(st *state) { st.counted, st.watched = counted, watched })
	}
	return sp
}

// restarted tells whether start is that of another process than the one that answered last. It began after that
// answer: a start that only moved, because the clock it is computed from was set, is not a restart. Taking it for one
// would count everything a second time.
func (src *source) restarted(st *state, start time.Time, begin tick) bool {
	return !start.IsZero() && !src.start.IsZero() &&
		start.Sub(src.start) > restartSlack && begin > st.sampled-tick(clockSlack)
}

// pointLimit is how many points at interval reach back over the windows of a function, of which its own is window, as
// seen from the oldest time that a value may have.
func pointLimit(window, interval time.Duration) int {
	return int((max(window, v1alpha1.DefaultWindow)+staleAfter(interval))/interval) + 4
}

// validate refuses what no value may be made of.
func (m *Measurement) validate(k Kind) error {
	switch {
	case m == nil:
		return fmt.Errorf("%w: none", ErrInvalid)
	case k == Query && !(m.Value >= 0 && m.Value <= math.MaxFloat64): // so that NaN is refused
		return fmt.Errorf("%w: %v, want a number that is finite and not negative", ErrInvalid, m.Value)
	}
	for _, a := range m.Answers {
		if !(a.Value >= 0 && a.Value <= math.MaxFloat64) {
			return fmt.Errorf("%w: %v for %s, want a number that is finite and not negative", ErrInvalid, a.Value, a.Metric)
		}
	}
	for name, r := range m.Functions {
		for _, v := range [...]float64{
			r.Started, r.BusySeconds, r.HeldSeconds, r.InFlight, r.DurationSeconds, r.Durations,
		} {
			if !(v >= 0 && v <= mostCounted) {
				return fmt.Errorf("%w: %v for function %s, want a number from 0 to 2^53", ErrInvalid, v, name)
			}
		}
	}
	return nil
}
