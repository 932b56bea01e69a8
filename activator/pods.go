package activator

import (
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// setAside is how long a pod that refused a connection is passed over. Its EndpointSlice usually says so by then.
const setAside = time.Second

// pod is a pod of a function. It is the same object from its first address until it turns unready or is gone, so that a
// pod that comes back starts with a clean slate; only the place is the same.
type pod struct {
	uid     types.UID
	name    types.NamespacedName // empty where the EndpointSlice names none
	address string               // host:port
	seen    time.Time            // since when its address is known

	// Of a pod that is not ready: whether to wait for Kubernetes, and not to probe it; protected by function.podsMu.
	// That is so once it was ready and is no longer, which is for the kubelet to judge by several failures and
	// successes; or once it was proven, and Kubernetes has not agreed in good time.
	wait bool
	// Kubernetes has called it ready; protected by function.podsMu.
	confirmed bool
	plan      *probePlan // once it was read; its prober's alone

	conns podConns
	h2    h2Conns
	*place
	peer  bool                      // is no pod but another activator, to which requests are handed on; see handon.go
	aside atomic.Pointer[time.Time] // passed over until then; nil means never refused
	proof atomic.Pointer[time.Time] // of a pod proven ahead of Ready: how long that counts; nil once it is Ready
}

// place is what counts at a pod even when it comes back with requests that it had before.
type place struct {
	inFlight atomic.Int64          // requests that this activator has at the pod
	claim    atomic.Pointer[claim] // this activator's, where the function has a limit and the pod is its own; see share.go
}

func (p *pod) refused(now time.Time) {
	until := now.Add(setAside)
	p.aside.Store(&until)
}

// usable costs a clock reading only for a pod that has refused, or is not Ready yet.
func (p *pod) usable() bool {
	aside, proof := p.aside.Load(), p.proof.Load()
	if aside == nil && proof == nil {
		return true
	}
	now := time.Now()
	return (aside == nil || !now.Before(*aside)) && (proof == nil || now.Before(*proof))
}

// expired tells whether p was proven and Kubernetes has not called it ready for as long as that counts.
func (p *pod) expired() bool {
	proof := p.proof.Load()
	return proof != nil && !time.Now().Before(*proof)
}

// podSet is an immutable snapshot of the pods of a function.
type podSet struct {
	ready  []*pod // that take requests: Kubernetes calls them ready, or they were proven ahead of that
	coming []*pod // that have an address, are not ready, and do not end
	left   []*pod // that were among those, with the requests that they still have
	share  *share // of this activator in them, nil where they have no limit
	limit  int64  // of requests at each of ready, 0 for none
}

// next makes the snapshot that follows s. Pods that stay are kept, with what is known of them. It returns s itself when
// nothing changed. function.podsMu is held.
func (s *podSet) next(endpoints []v1alpha1.PodEndpoint) *podSet {
	type identity struct {
		uid     types.UID
		address string
	}
	known := make(map[identity]*pod, len(s.ready)+len(s.coming))
	takes := make(map[*pod]bool, len(s.ready))
	left := make(map[*pod]bool, len(s.left))
	for _, p := range s.left {
		known[identity{p.uid, p.address}] = p
		left[p] = true
	}
	for _, p := range s.coming {
		known[identity{p.uid, p.address}] = p
	}
	for _, p := range s.ready {
		known[identity{p.uid, p.address}] = p
		takes[p] = true
	}
	n := &podSet{}
	changed := false
	for _, ep := range endpoints {
		if ep.Port == 0 || ep.Terminating {
			continue
		}
		id := identity{ep.UID, net.JoinHostPort(ep.Address, strconv.Itoa(int(ep.Port)))}
		p := known[id]
		switch {
		case p == nil:
			p = &pod{uid: ep.UID, name: ep.Pod, address: id.address, seen: time.Now(), place: &place{}}
		case left[p]:
			p = &pod{uid: ep.UID, name: ep.Pod, address: id.address, seen: time.Now(), place: p.place}
		case !ep.Ready && (p.confirmed || p.expired()):
			p = &pod{uid: ep.UID, name: ep.Pod, address: id.address, seen: p.seen, wait: true, place: p.place}
		}
		if ep.Ready {
			p.confirmed = true
			p.proof.Store(nil)
		}
		if p.confirmed || p.proof.Load() != nil {
			changed = changed || !takes[p]
			n.ready = append(n.ready, p)
		} else {
			changed = changed || known[id] != p
			n.coming = append(n.coming, p)
		}
		delete(known, id)
	}
	for _, p := range known {
		// One that has just left may be about to get a request from who still looks at s.
		if !left[p] || p.inFlight.Load() > 0 {
			n.left = append(n.left, p)
		}
	}
	if !changed && len(n.ready) == len(s.ready) && len(n.coming) == len(s.coming) {
		return s
	}
	return n
}

// setPods takes in what the EndpointSlices say now of the pods in set, fn.pods or fn.fallback. It returns false when that is
// nothing new.
func (fn *function) setPods(set *atomic.Pointer[podSet], endpoints []v1alpha1.PodEndpoint) (changed bool) {
	fn.podsMu.Lock()
	defer fn.podsMu.Unlock()
	if set == &fn.pods {
		fn.listed = endpoints
		return fn.restoreLocked()
	}
	old := set.Load()
	s := old.next(endpoints)
	set.Store(s)
	return s != old
}

// restoreLocked makes the snapshot of pods anew from what there is; it returns false when that is nothing new.
func (fn *function) restoreLocked() bool {
	old := fn.pods.Load()
	s := old.next(fn.endpointsLocked())
	if s == old {
		return false
	}
	fn.storeLocked(s)
	return true
}

// prove makes p, which is not ready yet, take requests until then. It does nothing if p is ready meanwhile, or gone.
func (fn *function) prove(p *pod, until time.Time) bool {
	fn.podsMu.Lock()
	defer fn.podsMu.Unlock()
	s := fn.pods.Load()
	i := slices.Index(s.coming, p)
	if i < 0 {
		return false
	}
	p.proof.Store(&until)
	fn.storeLocked(&podSet{
		ready:  append(slices.Clip(s.ready), p),
		coming: slices.Delete(slices.Clone(s.coming), i, i+1),
		left:   s.left,
	})
	return true
}

// refused takes in that p could not be connected to. A pod that is ready is set aside for a while; one that is not, and
// was proven, has to be proven again.
func (fn *function) refused(p *pod) {
	fn.podsMu.Lock()
	defer fn.podsMu.Unlock()
	if p.confirmed || p.proof.Load() == nil {
		p.refused(time.Now())
		return
	}
	fn.unproveLocked(p)
}

// expireProofs takes back the proofs that Kubernetes has not confirmed in time.
func (fn *function) expireProofs() {
	if !slices.ContainsFunc(fn.pods.Load().ready, (*pod).expired) {
		return
	}
	fn.podsMu.Lock()
	defer fn.podsMu.Unlock()
	for _, p := range fn.pods.Load().ready {
		if p.expired() {
			p.wait = true
			fn.unproveLocked(p)
		}
	}
}

func (fn *function) unproveLocked(p *pod) {
	s := fn.pods.Load()
	i := slices.Index(s.ready, p)
	if i < 0 {
		return
	}
	p.proof.Store(nil)
	fn.storeLocked(&podSet{
		ready:  slices.Delete(slices.Clone(s.ready), i, i+1),
		coming: append(slices.Clip(s.coming), p),
		left:   s.left,
	})
}

// takes tells whether p, which is one of ready, may have one more request.
func (s *podSet) takes(p *pod) bool { return p.usable() && (s.limit == 0 || p.free(s.limit)) }

// pick chooses between two random pods the one with fewer requests in flight ("power of two choices"). It passes over
// pods that are set aside or full and those in tried, and returns nil when none is left.
func (s *podSet) pick(tried []*pod) *pod {
	n := len(s.ready)
	if n == 0 {
		return nil
	}
	i := rand.IntN(n)
	a, b := s.ready[i], s.ready[i]
	if n > 1 {
		b = s.ready[(i+1+rand.IntN(n-1))%n] // any but the first
	}
	if b.inFlight.Load() < a.inFlight.Load() {
		a, b = b, a
	}
	for _, p := range [...]*pod{a, b} {
		if s.takes(p) && !slices.Contains(tried, p) {
			return p
		}
	}
	// Both are out: look at all of them. This is rare, so its cost does not matter.
	var best *pod
	for _, p := range s.ready {
		if s.takes(p) && !slices.Contains(tried, p) && (best == nil || p.inFlight.Load() < best.inFlight.Load()) {
			best = p
		}
	}
	return best
}

// usable tells whether any pod may be tried.
func (s *podSet) usable() bool { return slices.ContainsFunc(s.ready, (*pod).usable) }

// nextUsable is when the first of the pods that are set aside may be tried again; zero when there is none.
func (s *podSet) nextUsable() time.Time {
	var first time.Time
	for _, p := range s.ready {
		if until := p.aside.Load(); until != nil && (first.IsZero() || until.Before(first)) {
			first = *until
		}
	}
	return first
}
