package providers

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
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

// PodInfo is a pod that counts its own requests.
type PodInfo struct {
	// Pod is the pod with its labels; its namespace is that of Function.
	Pod Object
	// Function that it belongs to.
	Function types.NamespacedName
}

// Owner tells of the function whose workload or Service the object is. The error is ErrNoFunction or an *Ambiguous.
func (s *Store) Owner(namespace string, resource schema.GroupResource, name string) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []*function
	for _, f := range s.namespaces[namespace] {
		for _, o := range [...]Object{f.Workload, f.Service} {
			if o.Resource == resource && o.Name == name {
				found = append(found, f)
			}
		}
	}
	switch len(found) {
	case 0:
		return Info{}, ErrNoFunction
	case 1:
		return found[0].info(), nil
	}
	a := &Ambiguous{}
	for _, f := range found {
		a.Functions = append(a.Functions, f.Name)
	}
	slices.SortFunc(a.Functions, func(a, b types.NamespacedName) int { return cmp.Compare(a.Name, b.Name) })
	return Info{}, a
}

// Pods tells of all pods in a namespace that count their own requests, in the order of their names.
func (s *Store) Pods(namespace string) []PodInfo {
	s.mu.RLock()
	var pods []PodInfo
	for _, f := range s.namespaces[namespace] {
		for _, src := range f.pods.live {
			pods = append(pods, PodInfo{Pod: src.Pod, Function: f.Name})
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(pods, func(a, b PodInfo) int { return cmp.Compare(a.Pod.Name, b.Pod.Name) })
	return pods
}

// PodValue returns a metric of one pod. The error is ErrNoPod or an *Unknown.
func (s *Store) PodValue(namespace, pod, metric string) (Value, error) {
	return Value{}, ErrNoPod
}
