package providers

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// ErrNoPod is returned for a pod that belongs to no function, or whose requests nobody counts one by one.
var ErrNoPod = errors.New("no such pod of a function that counts by its pods")

// Ambiguous is the error for an object that several functions name, so that it has no value of its own.
type Ambiguous struct {
	// Functions that name the object, in order.
	Functions []types.NamespacedName
}

// Error names the functions.
func (a *Ambiguous) Error() string {
	names := make([]string, len(a.Functions))
	for i, fn := range a.Functions {
		names[i] = fn.String()
	}
	return fmt.Sprintf("it belongs to %d functions, %s: ask for one of them", len(names), strings.Join(names, ", "))
}

// Info is what is known of a function beside its values.
type Info struct {
	// Name of the function.
	Name types.NamespacedName
	// UID of the Function object.
	UID types.UID
	// Labels of the Function object. Not to be written to.
	Labels map[string]string
	// Metrics that somebody counts for the function. Not to be written to.
	Metrics []string
	// Workload and Service of the function.
	Workload, Service Object
}

// PodInfo is a pod that counts its own requests.
type PodInfo struct {
	// Pod is the pod with its labels; its namespace is that of Function.
	Pod Object
	// Function that it belongs to.
	Function types.NamespacedName
}

// Info tells of one function; ErrNoFunction if there is none of that name.
func (s *Store) Info(name types.NamespacedName) (Info, error) {
	f := s.function(name)
	if f == nil {
		return Info{}, ErrNoFunction
	}
	return f.def.Load().info, nil
}

// namespace is what is in one namespace, or in all.
type namespace struct {
	functions []*function // in the order of their names; under Store.mu
	// defined moves after functions or what is known of them have changed, peopled after pods have.
	defined, peopled atomic.Uint64
	infos            atomic.Pointer[remembered[Info]]
	pods             atomic.Pointer[remembered[PodInfo]]
}

// remembered is a list that was made at a version, and holds for as long as there is no other version.
type remembered[T any] struct {
	version uint64
	list    []T
}

// List tells of all functions of a namespace, or of all namespaces where it is empty, in the order of their names. The
// list is shared, and not to be written to.
func (s *Store) List(namespace string) []Info {
	n := s.namespace(namespace)
	if n == nil {
		return nil
	}
	version := n.defined.Load() // what changes from here on has another version
	if r := n.infos.Load(); r != nil && r.version == version {
		return r.list
	}
	of := s.functionsOf(n)
	infos := make([]Info, len(of))
	for i, f := range of {
		infos[i] = f.def.Load().info
	}
	n.infos.Store(&remembered[Info]{version: version, list: infos})
	return infos
}

func (s *Store) namespace(name string) *namespace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.namespaces[name]
}

func (s *Store) functionsOf(n *namespace) []*function {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(n.functions)
}

// Owner tells of the function whose workload or Service the object is. The error is ErrNoFunction or an *Ambiguous.
func (s *Store) Owner(namespace string, resource schema.GroupResource, name string) (Info, error) {
	s.mu.RLock()
	of := s.owners[objectKey{namespace: namespace, resource: resource, name: name}]
	s.mu.RUnlock()
	switch len(of) {
	case 0:
		return Info{}, ErrNoFunction
	case 1:
		return of[0].def.Load().info, nil
	}
	return Info{}, ambiguous(of)
}

func ambiguous(functions []*function) *Ambiguous {
	a := &Ambiguous{}
	for _, f := range functions {
		a.Functions = append(a.Functions, f.def.Load().Name)
	}
	slices.SortFunc(a.Functions, compareNames)
	return a
}

// Pods tells of all pods in a namespace, or in all namespaces where it is empty, that count their own requests, in the
// order of their names. A pod of two functions is told of twice. The list is shared, and not to be written to.
func (s *Store) Pods(namespace string) []PodInfo {
	n := s.namespace(namespace)
	if n == nil {
		return nil
	}
	version := n.peopled.Load()
	if r := n.pods.Load(); r != nil && r.version == version {
		return r.list
	}
	var pods []PodInfo
	for _, f := range s.functionsOf(n) {
		name := f.def.Load().Name
		f.mu.RLock()
		live := f.pods.live // never written to
		f.mu.RUnlock()
		for _, src := range live {
			if e := src.state.Load().endpoint; e.Pod.Name != "" {
				pods = append(pods, PodInfo{Pod: e.Pod, Function: name})
			}
		}
	}
	slices.SortFunc(pods, func(a, b PodInfo) int {
		return compareNames(
			types.NamespacedName{Namespace: a.Function.Namespace, Name: a.Pod.Name},
			types.NamespacedName{Namespace: b.Function.Namespace, Name: b.Pod.Name})
	})
	n.pods.Store(&remembered[PodInfo]{version: version, list: pods})
	return pods
}

// PodValue returns requests_per_second, requests_in_flight or request_duration_seconds of one pod, as of its own latest
// answer, and over the windows of its function. What waits at the activators is at no pod. While the pod is younger
// than the window, or has been observed for less, the value is that of the shorter time, and says so.
//
// The error is ErrNoPod, an *Ambiguous for a pod of several functions, or an *Unknown.
func (s *Store) PodValue(namespace, pod, metric string) (Value, error) {
	wall := time.Now()
	s.mu.RLock()
	of := s.pods[types.NamespacedName{Namespace: namespace, Name: pod}]
	s.mu.RUnlock()
	if len(of) == 0 {
		return Value{}, ErrNoPod
	}
	src := of[0]
	for _, other := range of[1:] {
		if other.fn != src.fn {
			functions := make([]*function, len(of))
			for i := range of {
				functions[i] = of[i].fn
			}
			return Value{}, ambiguous(functions)
		}
	}
	now := s.tick(wall)
	v, at, unknown := src.value(metric, now)
	if unknown != nil {
		return Value{}, unknown
	}
	v.At = wall.Add(-time.Duration(now - at))
	return v, nil
}

// value is that of a source of Kind Pod alone.
func (src *source) value(metric string, now tick) (Value, tick, *Unknown) {
	f := src.fn
	f.mu.RLock()
	defer f.mu.RUnlock()
	def, st := f.def.Load(), src.state.Load()
	window := def.Window
	var c counter
	switch metric {
	case v1alpha1.RequestsPerSecond:
		c = started
	case v1alpha1.RequestsInFlight:
		c, window = def.Rule.inFlight(), v1alpha1.DefaultWindow
	case v1alpha1.RequestDurationSeconds:
	default:
		return Value{}, 0, def.noMetric(metric)
	}
	if unknown := def.Rule.notCounted(metric); unknown != nil {
		return Value{}, 0, unknown
	}
	at := min(st.sampled, now)
	switch {
	case st.sampled == never:
		u := &Unknown{Reason: NoData, Source: src.String(), Err: st.err}
		if st.err != nil {
			u.Reason = SourceError
		}
		return Value{}, 0, u
	case time.Duration(now-at) > staleAfter(src.interval):
		return Value{}, 0, &Unknown{Reason: Stale, Source: src.String(), Age: time.Duration(now - at), Err: st.err}
	}
	if unknown := f.notShown(def, src, st, metric == v1alpha1.RequestsInFlight); unknown != nil {
		return Value{}, 0, unknown
	}
	from := max(at-tick(window), f.since, st.counted, src.track.point(0).at)
	observed := time.Duration(at - from)
	if observed <= 0 || observed < src.interval/2 {
		return Value{}, 0, &Unknown{Reason: NoData, Source: src.String()}
	}
	if metric == v1alpha1.RequestDurationSeconds {
		return meanDuration(src.increase(lasted, from, at), src.increase(ended, from, at), observed, at)
	}
	return Value{Value: src.increase(c, from, at) / observed.Seconds(), Window: observed}, at, nil
}
