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
	pods   atomic.Pointer[podSet]            // never nil; stored under podsMu
	stats  stats
	queue  queue
	peers  *peers

	fallback atomic.Pointer[podSet] // the pods of its fallback; never nil; stored under podsMu
	marks    marks
	saying   saying // of its pods

	podsMu    sync.Mutex
	listed    []v1alpha1.PodEndpoint  // by the EndpointSlices; this and the next two are protected by podsMu
	early     map[types.UID]*earlyPod // pods that a scout has seen; see scout.go
	scouted   bool                    // there is a scout
	handOns   map[string]*pod         // other activators by address; protected by podsMu
	unsettled chan struct{}           // tells who asks them that there is more to ask; holds one
	settling  atomic.Bool             // peers are asked about claims
	notProbed atomic.Pointer[string]  // why the last of its pods that could not be probed ahead could not
}

func newFunction(obj *v1alpha1.Function, ps *peers) *function {
	fn := &function{
		key: obj.Key(), name: obj.Key().String(), peers: ps,
		queue: queue{kick: make(chan struct{}, 1)}, unsettled: make(chan struct{}, 1),
	}
	fn.object.Store(obj)
	fn.pods.Store(&podSet{})
	fn.fallback.Store(&podSet{})
	return fn
}

// table knows every Function, who owns which host and port, and the EndpointSlices of every Service. Requests read it
// without a lock: the door by ownerOf, a gate port by the function it was opened for.
type table struct {
	assign func(port int32, fn *function) // told of every new owner of a port, nil for none; must not block
	door   sync.Map                       // host string -> *function, the owners; written under mu
	names  sync.Map                       // "namespace/name" string -> *function; written under mu
	peers  *peers

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

func newTable(assign func(port int32, fn *function), ps *peers) *table {
	return &table{
		assign:    assign,
		peers:     ps,
		functions: map[types.NamespacedName]*function{},
		services:  map[types.NamespacedName]*service{},
		hosts:     claims[string]{of: map[string][]*function{}, before: byWish},
		ports:     claims[int32]{of: map[int32][]*function{}, before: func(_ int32, a, b *function) int { return byAge(a, b) }},
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

// function is the function named "namespace/name", or nil. It takes no lock.
func (t *table) function(name string) *function {
	fn, ok := t.names.Load(name)
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
		fn = newFunction(obj, t.peers)
		t.functions[fn.key] = fn
		t.names.Store(fn.name, fn)
		t.joinLocked(fn, pathsOf(obj))
		t.refreshLocked(fn)
		t.claimLocked(fn, nil, obj)
		return
	}
	old := fn.object.Swap(obj)
	if from, to := pathsOf(old), pathsOf(obj); from != to {
		t.leaveLocked(fn, from)
		t.joinLocked(fn, to)
		if to.service.Name != "" { // else its port lingers, and leads to the pods that there were
			t.refreshLocked(fn)
		}
	}
	if old.ConcurrencyLimit() != obj.ConcurrencyLimit() {
		fn.reshare()
	}
	t.claimLocked(fn, old, obj)
}

// removeFunction takes in that a Function was deleted. Requests it has in flight go on; held ones are told. What still comes
// while its port lingers goes to the pods that there were last.
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
	t.names.Delete(fn.name)
	t.leaveLocked(fn, pathsOf(obj))
	t.claimLocked(fn, obj, nil)
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
	t.refreshServiceLocked(key, svc)
}

func (t *table) refreshServiceLocked(key types.NamespacedName, svc *service) {
	for _, fn := range svc.functions {
		t.refreshLocked(fn)
	}
	if key != t.peers.service {
		return
	}
	t.peers.take(svc.slices)
	for _, fn := range t.functions {
		if fn.object.Load().ConcurrencyLimit() > 0 {
			fn.reshare()
		}
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
	t.refreshServiceLocked(key, svc)
	t.tidyLocked(key)
}

// refreshLocked makes fn's snapshots of pods anew, lets held requests go when a pod can be tried, and has pods probed that
// may soon be.
func (t *table) refreshLocked(fn *function) {
	to := pathsOf(fn.object.Load())
	fn.setPods(&fn.fallback, t.endpointsLocked(to.fallback, to.fallbackPort))
	if !fn.setPods(&fn.pods, t.endpointsLocked(to.service, to.port)) {
		return
	}
	// The snapshot is stored before the queue is looked at, and a request joins the queue before it looks at the
	// snapshot again: one of the two always sees the other.
	fn.letGo()
	fn.queue.tell()
}

func (t *table) serviceLocked(key types.NamespacedName) *service {
	svc := t.services[key]
	if svc == nil {
		svc = &service{slices: map[string]*discoveryv1.EndpointSlice{}, functions: map[types.NamespacedName]*function{}}
		t.services[key] = svc
	}
	return svc
}

func (t *table) endpointsLocked(key types.NamespacedName, port string) []v1alpha1.PodEndpoint {
	svc := t.services[key]
	if svc == nil || len(svc.slices) == 0 {
		return nil
	}
	return v1alpha1.PodEndpoints(slices.Collect(maps.Values(svc.slices)), port)
}

func (t *table) joinLocked(fn *function, to paths) {
	for _, key := range [...]types.NamespacedName{to.service, to.fallback} {
		if key.Name != "" {
			t.serviceLocked(key).functions[fn.key] = fn
		}
	}
}

func (t *table) leaveLocked(fn *function, from paths) {
	for _, key := range [...]types.NamespacedName{from.service, from.fallback} {
		if svc := t.services[key]; svc != nil {
			delete(svc.functions, fn.key)
			t.tidyLocked(key)
		}
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
	if old != nil && obj != nil && old.IsTCP() != obj.IsTCP() {
		for _, port := range portsOf(obj) {
			if t.ports.of[port][0] == fn {
				t.assign(port, fn) // the port is opened anew for the other protocol
			}
		}
	}
}

// claims tells who owns a host or a port that more than one Function may name: the first by before.
type claims[K comparable] struct {
	of     map[K][]*function
	before func(k K, a, b *function) int
}

// replace withdraws fn's claims in from that are not in to, and makes those in to, each at its place by what fn says now.
// changed is called for each key whose owner changed, with nil when nobody claims it any more.
func (c claims[K]) replace(fn *function, from, to []K, changed func(K, *function)) {
	owner := func(k K) *function {
		if len(c.of[k]) == 0 {
			return nil
		}
		return c.of[k][0]
	}
	settle := func(k K, claims bool) {
		was := owner(k)
		all := slices.DeleteFunc(c.of[k], func(other *function) bool { return other == fn })
		if claims {
			at, _ := slices.BinarySearchFunc(all, fn, func(a, b *function) int { return c.before(k, a, b) })
			all = slices.Insert(all, at, fn)
		}
		if c.of[k] = all; len(all) == 0 {
			delete(c.of, k)
		}
		if now := owner(k); now != was {
			changed(k, now)
		}
	}
	for _, k := range from {
		if !slices.Contains(to, k) {
			settle(k, false)
		}
	}
	for _, k := range to {
		settle(k, true)
	}
}

// byWish puts those that want the host before one that holds it only until another has it. Of several that want it,
// which is so for a moment at most, the scaler leaves it to the oldest.
func byWish(host string, a, b *function) int {
	wants := func(fn *function) int {
		if fn.object.Load().WantsHost(host) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(wants(a), wants(b)), byAge(a, b))
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

// hostsOf are the hosts that the scaler has granted. The spec says only which ones are wished for: an old Function of
// another namespace must not take over a host by naming it.
func hostsOf(obj *v1alpha1.Function) []string {
	if obj == nil || obj.IsSuperseded() || obj.Spec.Traffic == nil || obj.Status.Gate == nil {
		return nil
	}
	return obj.Status.Gate.Hosts
}

func portsOf(obj *v1alpha1.Function) []int32 {
	if obj == nil || obj.IsSuperseded() || obj.Spec.Traffic == nil || obj.Status.Gate == nil || obj.Status.Gate.Port == 0 {
		return nil
	}
	return []int32{obj.Status.Gate.Port}
}

// paths are the Services that a function's requests may go to, with the names of their ports: its own, and the fallback,
// which is of the same namespace.
type paths struct {
	service, fallback  types.NamespacedName // without a name for none
	port, fallbackPort string
}

func pathsOf(obj *v1alpha1.Function) paths {
	to := paths{service: types.NamespacedName{Namespace: obj.Namespace, Name: obj.ServiceName()}, port: portName(obj)}
	if f := obj.Fallback(); f != nil {
		to.fallback, to.fallbackPort = types.NamespacedName{Namespace: obj.Namespace, Name: f.Service}, f.ServicePort
	}
	return to
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
