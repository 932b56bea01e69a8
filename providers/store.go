package providers

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// retention is how long what a target that is gone has counted is kept: the longest window that a Function may
// have, and some time for its value to be read.
const retention = 6 * time.Minute

// Store remembers what was measured and answers from memory. It is safe for concurrent use; no call blocks on
// anything but other calls.
//
// Invariants: a source's sampled time moves only after all of its tracks have been written up to it, under one lock;
// and no function's value is made from a time after the oldest of its live sources' times, so that a value never
// counts one source further than another.
type Store struct {
	intervals Intervals
	epoch     time.Time

	mu         sync.RWMutex // protects following
	functions  map[types.NamespacedName]*function
	namespaces map[string]map[string]*function
	activators group
	// listedSince is when the list of activators was last empty: of the time before nobody saw everything.
	listedSince tick
}

// function is what is kept of one Function.
type function struct {
	Function
	pods       group
	since      tick // when the Rule came into force
	lastActive tick
}

// group is the sources that count side by side: all activators, or the pods of one function.
type group struct {
	live map[Target]*source
	gone []*source // still counted where their increase is inside a window
}

// source is what is kept of one target.
type source struct {
	Endpoint
	interval time.Duration
	tracks   map[types.NamespacedName]*track

	found tick // when the target was first heard of
	// vacant is true once nothing was found to run there.
	vacant bool
	// waited is true while values wait for the source; gone sources are not waited for.
	waited bool
	// assumed is when values last began to wait for the source, if it was new, vacant or known before: it counts as
	// observed then, for it had no reason to count in between. Otherwise never.
	assumed  tick
	refusing bool // the latest attempt met a closed port

	sampled tick      // the latest answer; never before the first one
	start   time.Time // of the process that gave it, if it says
	err     error     // of attempts since then
	counted tick      // the counters are known from here on; never where they began at zero
	watched tick      // observed without a gap from here on; never where nothing came before
	goneAt  tick
}

// silentFor is how long a target that is not ready may give no answer before it is taken for gone, as one that is on a
// dead node: it stays listed until Kubernetes removes the pod, which takes minutes, and takes no new requests.
const silentFor = 30 * time.Second

// settle decides whether values wait for the source.
func (src *source) settle(now tick) {
	silent := now-max(src.sampled, src.found) > tick(silentFor)
	dead := !src.Ready && (src.refusing || silent)
	src.vacant = src.vacant || dead
	waited := src.Expected && !dead
	if waited && !src.waited && (src.New || src.vacant || src.sampled != never) {
		src.assumed = now
	}
	src.waited = waited
}

// seen is the time up to which the source is known; never if nothing is known of it.
func (src *source) seen() tick { return max(src.sampled, src.assumed) }

// NewStore makes an empty Store for sources of these intervals.
func NewStore(intervals Intervals) *Store {
	return &Store{
		intervals:  intervals.withDefaults(),
		epoch:      time.Now(),
		functions:  map[types.NamespacedName]*function{},
		namespaces: map[string]map[string]*function{},
		activators: group{live: map[Target]*source{}},
	}
}

func (s *Store) tick(t time.Time) tick { return tick(t.Sub(s.epoch)) }

// SetFunction adds or changes a function and its pods.
func (s *Store) SetFunction(fn Function, pods []Endpoint) {
	now := s.tick(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.functions[fn.Name]
	if f == nil || f.Rule != fn.Rule {
		f = &function{since: now, lastActive: never, pods: group{live: map[Target]*source{}}}
		s.functions[fn.Name] = f
		if s.namespaces[fn.Name.Namespace] == nil {
			s.namespaces[fn.Name.Namespace] = map[string]*function{}
		}
		s.namespaces[fn.Name.Namespace][fn.Name.Name] = f
	}
	f.Function = fn
	f.pods.set(pods, s.intervals.Pod, now)
}

// DeleteFunction forgets a function and what its pods have counted.
func (s *Store) DeleteFunction(name types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.functions, name)
	delete(s.namespaces[name.Namespace], name.Name)
	if len(s.namespaces[name.Namespace]) == 0 {
		delete(s.namespaces, name.Namespace)
	}
}

// SetActivators names all activators.
func (s *Store) SetActivators(activators []Endpoint) {
	now := s.tick(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.activators.live) == 0 {
		s.listedSince = now
	}
	s.activators.set(activators, s.intervals.Activator, now)
}

// set makes endpoints the live sources of the group.
func (g *group) set(endpoints []Endpoint, interval time.Duration, now tick) {
	listed := make(map[Target]bool, len(endpoints))
	for _, e := range endpoints {
		listed[e.Target] = true
		src := g.live[e.Target]
		if src == nil {
			src = g.back(e.Target)
		}
		if src == nil {
			src = &source{
				interval: interval, tracks: map[types.NamespacedName]*track{},
				found: now, assumed: never, sampled: never, counted: never, watched: never,
			}
		}
		g.live[e.Target] = src
		src.Endpoint = e
		src.settle(now)
	}
	for t, src := range g.live {
		if !listed[t] {
			delete(g.live, t)
			src.goneAt, src.waited = now, false
			if src.sampled != never {
				g.gone = append(g.gone, src)
			}
		}
	}
	g.gone = slices.DeleteFunc(g.gone, func(src *source) bool { return now-src.goneAt > tick(retention) })
}

// back takes a target that was gone and is listed again out of the gone ones, with all that it had counted.
func (g *group) back(t Target) *source {
	i := slices.IndexFunc(g.gone, func(src *source) bool { return src.Target == t })
	if i < 0 {
		return nil
	}
	src := g.gone[i]
	g.gone = slices.Delete(g.gone, i, i+1)
	return src
}
