package activator

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// function is the gate's view of one Function. It lives from the Function's creation to its deletion, whatever
// changes in between: counters are not reset by a change of mode, port or Service.
type function struct {
	key    types.NamespacedName
	name   string                            // key as "namespace/name"
	object atomic.Pointer[v1alpha1.Function] // as last seen, never nil, never written to
	pods   atomic.Pointer[podSet]            // never nil
	stats  stats
	queue  queue
}

func newFunction(obj *v1alpha1.Function) *function {
	fn := &function{key: obj.Key(), name: obj.Key().String(), queue: queue{emptied: make(chan struct{}, 1)}}
	fn.object.Store(obj)
	fn.pods.Store(&podSet{})
	return fn
}

// table knows every Function, who owns which host and port, and the EndpointSlices of every Service. Requests read it
// without a lock: the door by ownerOf, a gate port by the function it was opened for.
type table struct {
	assign func(port int32, fn *function) // told of every new owner of a port, nil for none; must not block
	door   sync.Map                       // host string -> *function, the owners; written under mu

	mu        sync.Mutex // protects following
	functions map[types.NamespacedName]*function
	services  map[types.NamespacedName]*service
	hosts     claims[string]
	ports     claims[int32]
}

// service is what the table knows of one Service. Slices of a Service that no Function names are kept too, because a
// Function may name it later; they are shared with the watch's cache.
type service struct {
	slices    map[string]*discoveryv1.EndpointSlice
	functions map[types.NamespacedName]*function
}

func newTable(assign func(port int32, fn *function)) *table {
	return &table{
		assign:    assign,
		functions: map[types.NamespacedName]*function{},
		services:  map[types.NamespacedName]*service{},
		hosts:     claims[string]{},
		ports:     claims[int32]{},
	}
}

// ownerOf is the function that host leads to, or nil. It takes no lock.
func (t *table) ownerOf(host string) *function {
	fn, ok := t.door.Load(host)
	if !ok {
		return nil
	}
	return fn.(*function)
}

// all lists the functions in no order.
func (t *table) all() []*function {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.functions))
}

// setFunction takes in a Function that was created or changed.
func (t *table) setFunction(obj *v1alpha1.Function) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn := t.functions[obj.Key()]
	if fn != nil && fn.object.Load().UID != obj.UID {
		// Deleted and created again between two events: a new function that shares only the name.
		t.removeLocked(fn)
		fn = nil
	}
	if fn == nil {
		fn = newFunction(obj)
		t.functions[fn.key] = fn
		t.joinLocked(fn, serviceOf(obj))
		t.refreshLocked(fn)
		t.claimLocked(fn, nil, obj)
		return
	}
	old := fn.object.Swap(obj)
	if from, to := serviceOf(old), serviceOf(obj); from != to {
		t.leaveLocked(fn, from)
		t.joinLocked(fn, to)
		t.refreshLocked(fn)
	} else if portName(old) != portName(obj) {
		t.refreshLocked(fn)
	}
	t.claimLocked(fn, old, obj)
}

// removeFunction takes in that a Function was deleted. Requests it has in flight go on; held ones are told.
func (t *table) removeFunction(key types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fn := t.functions[key]; fn != nil {
		t.removeLocked(fn)
	}
}

func (t *table) removeLocked(fn *function) {
	obj := fn.object.Load()
	delete(t.functions, fn.key)
	t.leaveLocked(fn, serviceOf(obj))
	t.claimLocked(fn, obj, nil)
	fn.pods.Store(&podSet{})
	fn.queue.abolish()
}

// setSlice takes in an EndpointSlice that was created or changed. It costs in proportion to the functions of its
// Service, not to the table.
func (t *table) setSlice(slice *discoveryv1.EndpointSlice) {
	key := serviceOfSlice(slice)
	if key.Name == "" || v1alpha1.IsGateSlice(slice) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	svc := t.serviceLocked(key)
	svc.slices[slice.Name] = slice
	for _, fn := range svc.functions {
		t.refreshLocked(fn)
	}
}

// removeSlice takes in that an EndpointSlice was deleted, or that it is no longer of the Service it names.
func (t *table) removeSlice(slice *discoveryv1.EndpointSlice) {
	key := serviceOfSlice(slice)
	t.mu.Lock()
	defer t.mu.Unlock()
	svc := t.services[key]
	if svc == nil {
		return
	}
	delete(svc.slices, slice.Name)
	for _, fn := range svc.functions {
		t.refreshLocked(fn)
	}
	t.tidyLocked(key)
}

// refreshLocked makes fn's snapshot of ready pods anew and lets held requests go when a pod can be tried.
func (t *table) refreshLocked(fn *function) {
	var found []*discoveryv1.EndpointSlice
	obj := fn.object.Load()
	if svc := t.services[serviceOf(obj)]; svc != nil {
		found = slices.Collect(maps.Values(svc.slices))
	}
	old := fn.pods.Load()
	pods := old.next(v1alpha1.PodEndpoints(found, portName(obj)))
	if pods == old {
		return
	}
	fn.pods.Store(pods)
	// The snapshot is stored before the queue is looked at, and a request joins the queue before it looks at the
	// snapshot again: one of the two always sees the other.
	if pods.usable() {
		fn.queue.release()
	}
}

func (t *table) serviceLocked(key types.NamespacedName) *service {
	svc := t.services[key]
	if svc == nil {
		svc = &service{slices: map[string]*discoveryv1.EndpointSlice{}, functions: map[types.NamespacedName]*function{}}
		t.services[key] = svc
	}
	return svc
}

func (t *table) joinLocked(fn *function, key types.NamespacedName) {
	if key.Name != "" {
		t.serviceLocked(key).functions[fn.key] = fn
	}
}

func (t *table) leaveLocked(fn *function, key types.NamespacedName) {
	if svc := t.services[key]; svc != nil {
		delete(svc.functions, fn.key)
		t.tidyLocked(key)
	}
}

func (t *table) tidyLocked(key types.NamespacedName) {
	if svc := t.services[key]; svc != nil && len(svc.slices) == 0 && len(svc.functions) == 0 {
		delete(t.services, key)
	}
}

// claimLocked brings what fn claims from old to obj; nil claims nothing.
func (t *table) claimLocked(fn *function, old, obj *v1alpha1.Function) {
	t.hosts.replace(fn, hostsOf(old), hostsOf(obj), func(host string, owner *function) {
		if owner == nil {
			t.door.Delete(host)
			return
		}
		t.door.Store(host, owner)
	})
	t.ports.replace(fn, portsOf(old), portsOf(obj), t.assign)
}

// claims tells who owns a host or a port that more than one Function may name: the oldest.
type claims[K comparable] map[K][]*function

// replace withdraws fn's claims in from that are not in to, and makes those in to. changed is called for each key
// whose owner changed, with nil when nobody claims it any more.
func (c claims[K]) replace(fn *function, from, to []K, changed func(K, *function)) {
	for _, k := range from {
		if slices.Contains(to, k) {
			continue
		}
		was := c[k][0]
		if c[k] = slices.DeleteFunc(c[k], func(other *function) bool { return other == fn }); len(c[k]) == 0 {
			delete(c, k)
			changed(k, nil)
		} else if c[k][0] != was {
			changed(k, c[k][0])
		}
	}
	for _, k := range to {
		if slices.Contains(c[k], fn) {
			continue
		}
		at, _ := slices.BinarySearchFunc(c[k], fn, byAge)
		if c[k] = slices.Insert(c[k], at, fn); at == 0 {
			changed(k, fn)
		}
	}
}

// byAge puts the oldest first, and where two are of one second, as creation times are, the first by name.
func byAge(a, b *function) int {
	created := func(fn *function) int64 { return fn.object.Load().CreationTimestamp.UnixNano() }
	return cmp.Or(
		cmp.Compare(created(a), created(b)),
		strings.Compare(a.key.Namespace, b.key.Namespace),
		strings.Compare(a.key.Name, b.key.Name),
	)
}

func hostsOf(obj *v1alpha1.Function) []string {
	if obj == nil || !obj.IsProxied() || obj.IsSuperseded() {
		return nil
	}
	return obj.Spec.Traffic.Hosts
}

func portsOf(obj *v1alpha1.Function) []int32 {
	if obj == nil || obj.IsSuperseded() || obj.Spec.Traffic == nil || obj.Status.Gate == nil || obj.Status.Gate.Port == 0 {
		return nil
	}
	return []int32{obj.Status.Gate.Port}
}

func serviceOf(obj *v1alpha1.Function) types.NamespacedName {
	return types.NamespacedName{Namespace: obj.Namespace, Name: obj.ServiceName()}
}

func serviceOfSlice(slice *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

// portName is the name of the Service port. The scaler resolves it; before it has, the Function's own words must do.
func portName(obj *v1alpha1.Function) string {
	switch {
	case obj.Status.Gate != nil:
		return obj.Status.Gate.ServicePort
	case obj.Spec.Traffic != nil && obj.Spec.Traffic.Service.Port != nil && obj.Spec.Traffic.Service.Port.Type == intstr.String:
		return obj.Spec.Traffic.Service.Port.StrVal
	default:
		return ""
	}
}
