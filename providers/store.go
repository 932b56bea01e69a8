package providers

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// mostGone bounds how many sources of one group that are gone are remembered. Past it the longest gone is
	// forgotten, and values begin where it went.
	mostGone = 256
	// atOnce bounds how many entries of the maps are changed before readers have their turn.
	atOnce = 256
)

// Store remembers what was measured and answers from memory. It is safe for concurrent use, and no call does I/O.
//
// Readers wait for nobody but those who change the same function, or an entry of the maps of what there is: Record
// holds one function's lock at a time, for as long as one reading takes.
//
// Invariants: a source's sampled time moves only after all of its tracks have been written up to it, and a reader
// takes the sampled times before it looks at the tracks; no value of a function is made from a time after the oldest
// of the sampled times that it waits for. So a Record that is half written is not seen, and a value never counts one
// source further than another.
//
// Locks are taken in this order: setting; a source's writing; mu or a function's mu, never both; a source's mu.
type Store struct {
	intervals Intervals
	epoch     time.Time

	activators atomic.Pointer[group]
	generation atomic.Uint64 // moves when functions come or go

	setting sync.Mutex // lets one at a time change what there is
	lists   uint64     // counts the lists of targets; under setting
	// fading are the functions of which pods are gone and not forgotten; under setting.
	fading map[*function]bool

	mu         sync.RWMutex // protects following
	functions  map[types.NamespacedName]*function
	targets    map[Target]*source
	namespaces map[string]*namespace     // "" is all of them
	owners     map[objectKey][]*function // by workload and by Service; the lists are never written to
	pods       map[types.NamespacedName][]*source
}

// function is what is kept of one Function.
type function struct {
	def     atomic.Pointer[definition]
	since   tick                      // when the Rule came into force
	queries atomic.Pointer[[]*source] // apart from all the rest: no query touches another metric

	mu         sync.RWMutex // protects following
	pods       group
	tracks     []*track // at the activators, those gone included
	lastActive tick
	// shown is what pods have exposed, by their version: another one may have another name for it, or none.
	shown map[string]shown
	// gauged is true once a pod of any version has exposed the gauge.
	gauged bool
}

// shown is whether pods have exposed the counter, and the gauge.
type shown struct{ counter, gauge bool }

// definition is a Function with what follows from it. It is never written to.
type definition struct {
	Function
	info Info
}

// group is the sources that count side by side: all activators, or the pods of one function. Its lists are never
// written to.
type group struct {
	live []*source
	gone []*source // still counted where their increase is inside a window
	// since is when there was last no activator: of the time before nobody saw everything.
	since tick
	// from is the time before which a source counted that is forgotten.
	from tick
}

// objectKey identifies an object in the cluster.
type objectKey struct {
	namespace string
	resource  schema.GroupResource
	name      string
}

// NewStore makes an empty Store for sources of these intervals.
func NewStore(intervals Intervals) *Store {
	s := &Store{
		intervals:  intervals.withDefaults(),
		epoch:      time.Now(),
		fading:     map[*function]bool{},
		functions:  map[types.NamespacedName]*function{},
		targets:    map[Target]*source{},
		namespaces: map[string]*namespace{"": {}},
		owners:     map[objectKey][]*function{},
		pods:       map[types.NamespacedName][]*source{},
	}
	s.activators.Store(&group{from: never})
	return s
}

func (s *Store) tick(t time.Time) tick { return tick(t.Sub(s.epoch)) }

func (s *Store) function(name types.NamespacedName) *function {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.functions[name]
}

// SetFunction adds or changes a function, with its pods and queries. Of fn and targets only the labels are kept as they
// are. A target of another function is left out.
func (s *Store) SetFunction(fn Function, targets []Endpoint) {
	s.setting.Lock()
	defer s.setting.Unlock()
	now := s.tick(time.Now())
	old := s.functions[fn.Name]
	f := old
	if old == nil || old.def.Load().Rule != fn.Rule {
		f = &function{lastActive: never, pods: group{from: never}}
		f.queries.Store(new([]*source))
		if old != nil {
			f.queries.Store(old.queries.Load())
			s.setPods(old, nil, now) // what was counted by another rule does not count
			delete(s.fading, old)
		}
	}
	var pods, queries []Endpoint
	for _, e := range targets {
		switch {
		case e.Function != fn.Name:
		case e.Kind == Pod:
			pods = append(pods, e)
		case e.Kind == Query || e.Kind == Lag:
			queries = append(queries, e)
		}
	}
	s.setQueries(f, queries, now)
	def := &definition{Function: fn}
	def.info = Info{Name: fn.Name, UID: fn.UID, Labels: fn.Labels, Metrics: metricsOf(fn.Rule, queries), Workload: fn.Workload, Service: fn.Service}
	if f != old || !def.says(old.def.Load()) {
		s.define(old, f, def)
	}
	s.setPods(f, pods, now)
}

// says tells whether def, of the same function by the same Rule, is last.
func (def *definition) says(last *definition) bool {
	return def.UID == last.UID && def.Window == last.Window && maps.Equal(def.Labels, last.Labels) && def.Workload.says(&last.Workload) &&
		def.Service.says(&last.Service) && slices.Equal(def.info.Metrics, last.info.Metrics)
}

// define makes f, with the definition def, the function of its name, in place of old if there was one.
func (s *Store) define(old, f *function, def *definition) {
	var was *definition
	if old != nil {
		was = old.def.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.def.Store(def)
	if was != nil && (old != f || was.Workload.key(was.Name) != def.Workload.key(def.Name) || was.Service.key(was.Name) != def.Service.key(def.Name)) {
		s.disownLocked(old, was)
		was = nil
	}
	if was == nil {
		for _, key := range [...]objectKey{def.Workload.key(def.Name), def.Service.key(def.Name)} {
			if key.name != "" {
				s.owners[key] = append(slices.Clip(s.owners[key]), f)
			}
		}
	}
	if old != f {
		// Not before it can be found: an activator's answer of an earlier time was written without it.
		f.since = s.tick(time.Now())
		s.functions[def.Name] = f
		s.generation.Add(1)
	}
	for _, name := range [...]string{def.Name.Namespace, ""} {
		n := s.namespaces[name]
		if n == nil {
			n = &namespace{}
			s.namespaces[name] = n
		}
		i, found := slices.BinarySearchFunc(n.functions, def.Name, (*function).compare)
		if found {
			n.functions[i] = f
		} else {
			n.functions = slices.Insert(n.functions, i, f)
		}
		n.defined.Add(1)
		n.peopled.Add(1)
	}
}

// compare orders functions by namespace and name.
func (f *function) compare(name types.NamespacedName) int {
	return compareNames(f.def.Load().Name, name)
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func (o *Object) key(owner types.NamespacedName) objectKey {
	return objectKey{namespace: owner.Namespace, resource: o.Resource, name: o.Name}
}

func (s *Store) disownLocked(f *function, def *definition) {
	for _, key := range [...]objectKey{def.Workload.key(def.Name), def.Service.key(def.Name)} {
		if of := without(s.owners[key], f); len(of) > 0 {
			s.owners[key] = of
		} else {
			delete(s.owners, key)
		}
	}
}

// without returns a list without x, in memory of its own.
func without[T comparable](list []T, x T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(y T) bool { return y == x })
}

// DeleteFunction forgets a function, and what its pods and queries have said.
func (s *Store) DeleteFunction(name types.NamespacedName) {
	s.setting.Lock()
	defer s.setting.Unlock()
	f := s.functions[name]
	if f == nil {
		return
	}
	now := s.tick(time.Now())
	s.mu.Lock()
	delete(s.functions, name)
	s.disownLocked(f, f.def.Load())
	for _, in := range [...]string{name.Namespace, ""} {
		n := s.namespaces[in]
		if i, found := slices.BinarySearchFunc(n.functions, name, (*function).compare); found {
			n.functions = slices.Delete(n.functions, i, i+1)
		}
		n.defined.Add(1)
		n.peopled.Add(1)
		if len(n.functions) == 0 && in != "" {
			delete(s.namespaces, in)
		}
	}
	s.generation.Add(1)
	s.mu.Unlock()
	s.setPods(f, nil, now)
	s.setQueries(f, nil, now)
	delete(s.fading, f)
}

// SetActivators names all activators. A target of another kind is left out.
func (s *Store) SetActivators(activators []Endpoint) {
	activators = slices.DeleteFunc(slices.Clone(activators), func(e Endpoint) bool { return e.Kind != Activator })
	s.setting.Lock()
	defer s.setting.Unlock()
	now := s.tick(time.Now())
	g := *s.activators.Load()
	if len(g.live) == 0 {
		g.since = now
	}
	g, change := s.list(g, activators, nil, now)
	s.index(change.came, nil)
	s.activators.Store(&g)
	s.index(nil, change.went)
	s.forgetActivators(now)
}

// setPods makes endpoints the pods of f.
func (s *Store) setPods(f *function, endpoints []Endpoint, now tick) {
	g, change := s.list(f.pods, endpoints, f, now) // only who holds setting writes f.pods
	f.mu.Lock()
	f.pods = g
	f.mu.Unlock()
	s.index(change.came, change.went)
	if change.any {
		s.mu.RLock()
		for _, in := range [...]string{f.def.Load().Name.Namespace, ""} {
			if n := s.namespaces[in]; n != nil {
				n.peopled.Add(1)
			}
		}
		s.mu.RUnlock()
	}
	if len(g.gone) > 0 {
		s.fading[f] = true
		s.forgetPods(f, now)
	}
}

// setQueries makes endpoints the queries of f.
func (s *Store) setQueries(f *function, endpoints []Endpoint, now tick) {
	live := *f.queries.Load()
	if len(live) == 0 && len(endpoints) == 0 {
		return
	}
	g, change := s.list(group{live: live}, endpoints, nil, now)
	f.queries.Store(&g.live)
	s.index(change.came, change.went)
}

// turnover is which sources a list added and took away, and whether it said anything new at all.
type turnover struct {
	came, went []*source
	any        bool
}

// list returns the group with endpoints as its live sources.
func (s *Store) list(g group, endpoints []Endpoint, f *function, now tick) (group, turnover) {
	s.lists++
	var change turnover
	gone := slices.Clone(g.gone)
	live := make([]*source, 0, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		src := s.targets[e.Target] // only who holds setting writes targets
		if src != nil && src.listed == s.lists {
			continue // listed twice
		}
		if src == nil {
			if j := slices.IndexFunc(gone, func(src *source) bool { return src.Target == e.Target }); j >= 0 {
				src = gone[j]
				gone = slices.Delete(gone, j, j+1)
				src.writing.Lock()
				src.apart = true // it may have answered while nobody was listening
				src.writing.Unlock()
			} else {
				src = newSource(e.Target, s.intervals.of(e.Kind), now)
				src.fn = f
				if e.Kind == Activator {
					src.tracks = map[types.NamespacedName]*track{}
				}
			}
			change.came = append(change.came, src)
		} else if e.Kind == Pod && src.named != e.Pod.Name { // discovery may hear of the address before it hears of the pod
			change.came, change.went = append(change.came, src), append(change.went, src)
		}
		src.listed = s.lists
		change.any = src.list(e, now) || change.any
		live = append(live, src)
	}
	for _, src := range g.live {
		if src.listed == s.lists {
			continue
		}
		change.went, change.any = append(change.went, src), true
		src.goneAt = now
		src.change(func(st *state) { st.waited = false })
		if src.metrics() == nil && src.state.Load().sampled != never {
			gone = append(gone, src)
		}
	}
	g.live, g.gone = live, gone
	return g, change
}

// index forgets sources that went, and then makes those that came known by their target and their pod.
func (s *Store) index(came, went []*source) {
	for chunk := range slices.Chunk(went, atOnce) {
		s.mu.Lock()
		for _, src := range chunk {
			delete(s.targets, src.Target)
			if src.named == "" {
				continue
			}
			pod := types.NamespacedName{Namespace: src.Function.Namespace, Name: src.named}
			if of := without(s.pods[pod], src); len(of) > 0 {
				s.pods[pod] = of
			} else {
				delete(s.pods, pod)
			}
			src.named = ""
		}
		s.mu.Unlock()
	}
	for chunk := range slices.Chunk(came, atOnce) {
		s.mu.Lock()
		for _, src := range chunk {
			s.targets[src.Target] = src
			if src.Kind != Pod {
				continue
			}
			if src.named = src.state.Load().endpoint.Pod.Name; src.named != "" {
				pod := types.NamespacedName{Namespace: src.Function.Namespace, Name: src.named}
				s.pods[pod] = append(slices.Clip(s.pods[pod]), src)
			}
		}
		s.mu.Unlock()
	}
}

// metricsOf lists the metrics that are served for a function.
func metricsOf(r Rule, queries []Endpoint) []string {
	metrics := r.Counts()
	for i := range queries {
		for _, name := range queries[i].metrics() {
			if !slices.Contains(metrics, name) {
				metrics = append(slices.Clip(metrics), name)
			}
		}
	}
	return metrics
}

// retention is how long what a pod that is gone has counted is kept, and an activator for the longest window that a
// Function may have: the window as seen from the oldest time that a value may have.
func retention(window, interval time.Duration) tick {
	return tick(max(window, v1alpha1.DefaultWindow) + staleAfter(interval) + time.Second)
}
