package providers

import (
	"slices"
	"time"
)

// longestWindow is the longest window that a Function may have.
const longestWindow = 5 * time.Minute

// forget drops what no value is made of any more. Without it, what has gone would stay until the next list of its
// group, which for a function at rest may never come.
func (s *Store) forget() {
	s.setting.Lock()
	defer s.setting.Unlock()
	now := s.tick(time.Now())
	for f := range s.fading {
		s.forgetPods(f, now)
	}
	s.forgetActivators(now)
}

func (s *Store) forgetPods(f *function, now tick) {
	g := f.pods
	kept, dropped := g.split(now, retention(f.def.Load().Window, s.intervals.Pod))
	if len(kept) == 0 {
		delete(s.fading, f)
	}
	if len(dropped) == 0 {
		return
	}
	g.gone, g.from = kept, max(g.from, dropped[len(dropped)-1].goneAt)
	f.mu.Lock()
	f.pods = g
	f.mu.Unlock()
}

func (s *Store) forgetActivators(now tick) {
	g := *s.activators.Load()
	kept, dropped := g.split(now, retention(longestWindow, s.intervals.Activator))
	if len(dropped) == 0 {
		return
	}
	g.gone, g.from = kept, max(g.from, dropped[len(dropped)-1].goneAt)
	s.activators.Store(&g)
	for _, src := range dropped {
		src.writing.Lock()
		for _, tr := range src.tracks {
			if f := tr.fn; f != nil {
				f.mu.Lock()
				f.tracks = slices.DeleteFunc(f.tracks, func(t *track) bool { return t == tr })
				f.mu.Unlock()
			}
		}
		src.tracks = nil // for a Record that is late
		src.writing.Unlock()
	}
}

// split tells which of the gone sources are kept and which are dropped: those that went longer ago than the retention,
// and the longest gone of more than mostGone. They are in the order in which they went.
func (g *group) split(now, retention tick) (kept, dropped []*source) {
	n := max(0, len(g.gone)-mostGone)
	for n < len(g.gone) && now-g.gone[n].goneAt > retention {
		n++
	}
	return g.gone[n:], g.gone[:n]
}
