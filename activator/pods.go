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

// pod is a ready pod of a function. It lives as long as its endpoint stays ready, so that a pod that comes back
// starts with a clean slate.
type pod struct {
	uid     types.UID
	address string // host:port

	inFlight atomic.Int64              // requests that this activator has at the pod
	aside    atomic.Pointer[time.Time] // passed over until then; nil means never refused
}

func (p *pod) refused(now time.Time) {
	until := now.Add(setAside)
	p.aside.Store(&until)
}

// usable costs a clock reading only for a pod that has refused.
func (p *pod) usable() bool {
	until := p.aside.Load()
	return until == nil || !time.Now().Before(*until)
}

// podSet is an immutable snapshot of the ready pods of a function.
type podSet struct {
	ready []*pod
}

// next makes the snapshot that follows s. Pods that stay ready are kept, with what is known of them. It returns s
// itself when nothing changed.
func (s *podSet) next(endpoints []v1alpha1.PodEndpoint) *podSet {
	type identity struct {
		uid     types.UID
		address string
	}
	known := make(map[identity]*pod, len(s.ready))
	for _, p := range s.ready {
		known[identity{p.uid, p.address}] = p
	}
	n := &podSet{}
	changed := false
	for _, ep := range endpoints {
		if !ep.Ready || ep.Port == 0 {
			continue
		}
		id := identity{ep.UID, net.JoinHostPort(ep.Address, strconv.Itoa(int(ep.Port)))}
		p := known[id]
		if p == nil {
			p, changed = &pod{uid: id.uid, address: id.address}, true
		}
		n.ready = append(n.ready, p)
	}
	if !changed && len(n.ready) == len(s.ready) {
		return s
	}
	return n
}

// pick chooses between two random pods the one with fewer requests in flight ("power of two choices"). It passes over
// pods that are set aside and those in tried, and returns nil when none is left.
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
		if p.usable() && !slices.Contains(tried, p) {
			return p
		}
	}
	// Both are out: look at all of them. This is rare, so its cost does not matter.
	var best *pod
	for _, p := range s.ready {
		if p.usable() && !slices.Contains(tried, p) && (best == nil || p.inFlight.Load() < best.inFlight.Load()) {
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
