package providers

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Info is what is known of a function beside its values.
type Info struct {
	// Name of the function.
	Name types.NamespacedName
	// Labels of the Function object. Not to be written to.
	Labels map[string]string
	// Metrics that somebody counts for the function.
	Metrics []string
	// Workload and Service of the function.
	Workload, Service Object
}

// Info tells of one function; ErrNoFunction if there is none of that name.
func (s *Store) Info(name types.NamespacedName) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.functions[name]
	if f == nil {
		return Info{}, ErrNoFunction
	}
	return f.info(), nil
}

func (f *function) info() Info {
	return Info{Name: f.Name, Labels: f.Labels, Metrics: f.Rule.Counts(), Workload: f.Workload, Service: f.Service}
}

// List tells of all functions of a namespace, or of all namespaces where it is empty, in the order of their names.
func (s *Store) List(namespace string) []Info {
	s.mu.RLock()
	var infos []Info
	if namespace == "" {
		infos = make([]Info, 0, len(s.functions))
		for _, f := range s.functions {
			infos = append(infos, f.info())
		}
	} else {
		infos = make([]Info, 0, len(s.namespaces[namespace]))
		for _, f := range s.namespaces[namespace] {
			infos = append(infos, f.info())
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return infos
}

// Value returns the value of a metric of a function: requests_per_second over the function's own window,
// requests_in_flight as the mean over DefaultWindow, idle_seconds as it was at the Value's time. While less than
// the window has been observed, the value is that of the shorter time, and says so.
//
// The error is ErrNoFunction, or an *Unknown.
func (s *Store) Value(name types.NamespacedName, metric string) (Value, error) {
	wall := time.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.functions[name]
	if f == nil {
		return Value{}, ErrNoFunction
	}
	var v Value
	var at tick
	var unknown *Unknown
	now := s.tick(wall)
	switch metric {
	case v1alpha1.IdleSeconds:
		v, at, unknown = s.idle(f, now)
	case v1alpha1.RequestsPerSecond:
		v, at, unknown = s.mean(f, metric, f.Window, now)
	case v1alpha1.RequestsInFlight:
		v, at, unknown = s.mean(f, metric, v1alpha1.DefaultWindow, now)
	default:
		unknown = notCounted(fmt.Sprintf("there is no metric %q", metric))
	}
	if unknown != nil {
		return Value{}, unknown
	}
	v.At = wall.Add(-time.Duration(now - at))
	return v, nil
}

// view is how far a function is observed.
type view struct {
	at      tick // the oldest of the times of all sources that are waited for
	from    tick // everything is counted from here on
	watched tick // everything was observed without a gap from here on
	slowest time.Duration
}

// view looks at all sources of f.
func (s *Store) view(f *function, now tick) (view, *Unknown) {
	v := view{at: now, from: f.since, watched: max(f.since, s.listedSince)}
	var oldest *source
	var unknown *Unknown
	waited := 0
	for _, g := range [...]*group{&s.activators, &f.pods} {
		for _, src := range g.gone {
			v.from = max(v.from, src.counted)
		}
		for _, src := range g.live {
			v.from = max(v.from, src.counted)
			if !src.waited {
				continue
			}
			waited++
			v.watched = max(v.watched, src.watched)
			v.slowest = max(v.slowest, src.interval)
			if seen := src.seen(); seen == never {
				unknown = src.unseen()
			} else if oldest == nil || seen < oldest.seen() {
				oldest, v.at = src, min(seen, now)
			}
		}
		if waited == 0 { // after the first group: the activators
			return v, &Unknown{Reason: NoActivator}
		}
	}
	if unknown != nil {
		return v, unknown
	}
	if age := time.Duration(now - v.at); age > staleAfter(v.slowest) {
		return v, &Unknown{Reason: Stale, Source: oldest.String(), Age: age, Err: oldest.err}
	}
	return v, nil
}

// unseen is why nothing is known of a source that never answered.
func (src *source) unseen() *Unknown {
	if src.err != nil {
		return &Unknown{Reason: SourceError, Source: src.String(), Err: src.err}
	}
	return &Unknown{Reason: NoData, Source: src.String()}
}

// mean is the increase of the metric's counters inside the window, by the window's length.
func (s *Store) mean(f *function, metric string, window time.Duration, now tick) (Value, tick, *Unknown) {
	amounts, unknown := f.Rule.amounts(metric)
	if unknown != nil {
		return Value{}, 0, unknown
	}
	seen, unknown := s.view(f, now)
	if unknown != nil {
		return Value{}, 0, unknown
	}
	from := max(seen.from, seen.at-tick(window))
	for _, a := range amounts {
		s.group(f, a.kind).each(f.Name, func(tr *track) {
			if tr.trunc {
				from = max(from, tr.point(0).at)
			}
		})
	}
	observed := time.Duration(seen.at - from)
	// Two answers of one source are an interval apart, give or take; of less than half of one nothing can be said.
	if observed < seen.slowest/2 {
		return Value{}, 0, &Unknown{Reason: NoData}
	}
	sum := 0.0
	for _, a := range amounts {
		s.group(f, a.kind).each(f.Name, func(tr *track) { sum += tr.increase(a.counter, from, seen.at) })
	}
	return Value{Value: sum / observed.Seconds(), Window: observed}, seen.at, nil
}

// idle is the time since the last sign of activity, or since everything is watched.
func (s *Store) idle(f *function, now tick) (Value, tick, *Unknown) {
	if len(f.Rule.Counts()) == 0 {
		_, unknown := f.Rule.amounts(v1alpha1.RequestsPerSecond)
		return Value{}, 0, unknown
	}
	seen, unknown := s.view(f, now)
	if unknown != nil {
		return Value{}, 0, unknown
	}
	since := max(f.lastActive, seen.watched)
	return Value{Value: time.Duration(max(0, seen.at-since)).Seconds()}, seen.at, nil
}

func (s *Store) group(f *function, k Kind) *group {
	if k == Activator {
		return &s.activators
	}
	return &f.pods
}

// each calls do with what the group's sources, gone ones included, have counted for the function.
func (g *group) each(name types.NamespacedName, do func(*track)) {
	for _, src := range g.live {
		if tr := src.tracks[name]; tr != nil {
			do(tr)
		}
	}
	for _, src := range g.gone {
		if tr := src.tracks[name]; tr != nil {
			do(tr)
		}
	}
}

// Stats counts what the Store holds.
type Stats struct {
	// Functions known, Activators and Pods that are listed, Series remembered.
	Functions, Activators, Pods, Series int
}

// Stats counts what the Store holds now.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := Stats{Functions: len(s.functions), Activators: len(s.activators.live), Series: s.activators.series()}
	for _, f := range s.functions {
		st.Pods += len(f.pods.live)
		st.Series += f.pods.series()
	}
	return st
}

func (g *group) series() int {
	n := 0
	for _, src := range g.live {
		n += len(src.tracks)
	}
	for _, src := range g.gone {
		n += len(src.tracks)
	}
	return n
}
