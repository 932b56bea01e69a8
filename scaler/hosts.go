package scaler

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// hostLinger is how long a host that has left the spec is still served by the Function that had it, if no other wants
// it: two Functions between which it moves are seldom changed in the same moment.
const hostLinger = 10 * time.Second

// hostClaim is what one Function has to do with one host of the shared door.
type hostClaim struct {
	Function types.NamespacedName
	Created  time.Time
	Wants    bool // its spec names the host, and it can have one
	Holds    bool // its status says that the host was granted
	// Lingers is true for hostLinger after the host has left the spec.
	Lingers bool
}

// hostVerdict is what becomes of one Function's claim.
type hostVerdict struct {
	Hold bool
	// Awaited is true when another Function that wants the host is about to have it.
	Awaited bool
	// Rival has the host in place of the Function that wants it.
	Rival types.NamespacedName
}

// judgeHost tells whether me is to hold a host that others want or hold.
//
// Who holds a host keeps it as long as it wants it, however old the others are: an old Function that adds a host later
// does not take it away from those that it already leads to. The age decides only among those that all want it and of
// which none, or each, holds it. Who holds a host without wanting it keeps it until another that wants it has it too, so
// that on its way from one to the other it is never without a Function.
func judgeHost(me hostClaim, others []hostClaim) hostVerdict {
	var wanting *hostClaim // that is before me, and of those the first
	for i := range others {
		o := &others[i]
		if o.Wants && (!me.Wants || o.before(me)) && (wanting == nil || o.before(*wanting)) {
			wanting = o
		}
	}
	switch {
	case wanting == nil:
		return hostVerdict{Hold: me.Wants || (me.Holds && me.Lingers)}
	case me.Wants:
		return hostVerdict{Rival: wanting.Function}
	default:
		return hostVerdict{Hold: me.Holds && !wanting.Holds, Awaited: !wanting.Holds}
	}
}

// before tells which of two that want a host comes first.
func (c hostClaim) before(d hostClaim) bool {
	if c.Holds != d.Holds {
		return c.Holds
	}
	return older(c.Function, c.Created, d.Function, d.Created)
}

// hosts grants the hosts of the shared door. What was granted is on record in the Functions' statuses, where activators
// read it; hosts itself only bridges the time until the cache shows it.
type hosts struct {
	mu sync.Mutex // protects following
	// handed are grants that no status in the cache shows yet.
	handed map[string]types.NamespacedName
}

// settle judges one host for me. others lists the claims of the other Functions in the cache; it is called under the
// lock, so that a grant made before the call is seen either in the cache or in handed, and must not do I/O.
func (h *hosts) settle(host string, me hostClaim, others func() ([]hostClaim, error)) (hostVerdict, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, err := others()
	if err != nil {
		return hostVerdict{}, err
	}
	if owner, ok := h.handed[host]; ok {
		me.Holds = me.Holds || owner == me.Function
		for i := range all {
			if all[i].Function != owner {
				continue
			}
			if all[i].Holds || !all[i].Wants {
				delete(h.handed, host)
			}
			all[i].Holds = true
		}
	}
	v := judgeHost(me, all)
	switch {
	case v.Hold && !me.Holds:
		if h.handed == nil {
			h.handed = map[string]types.NamespacedName{}
		}
		h.handed[host] = me.Function
	case !v.Hold && h.handed[host] == me.Function:
		delete(h.handed, host)
	}
	return v, nil
}

// forget takes back what was granted to a Function that is gone.
func (h *hosts) forget(fn types.NamespacedName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for host, owner := range h.handed {
		if owner == fn {
			delete(h.handed, host)
		}
	}
}

// grantHosts settles which hosts the function is to be served under. again is when to look once more, 0 for not.
func (r *Reconciler) grantHosts(ctx context.Context, w *world, rec *record) (granted []string, again time.Duration, err error) {
	now := time.Now()
	for _, host := range hostsConcerned(w.fn) {
		me := claimOf(w.fn, host)
		me.Wants = me.Wants && !w.loses
		var left time.Duration
		if me.Holds && !me.Wants {
			left = rec.hostLeaves(host, now)
			me.Lingers = left > 0
		} else {
			delete(rec.hostsLeft, host)
		}
		v, err := r.hosts.settle(host, me, func() ([]hostClaim, error) { return r.hostClaims(ctx, w.fn, host) })
		if err != nil {
			return nil, 0, err
		}
		if v.Rival.Name != "" {
			w.problem(v1alpha1.ConditionReady, v1alpha1.ReasonHostConflict, "spec.traffic.hosts: %s belongs to the Function %s, which had it "+
				"first; remove it from one of the two", host, v.Rival)
		}
		if !v.Hold {
			delete(rec.hostsLeft, host)
			continue
		}
		granted = append(granted, host)
		if v.Awaited {
			left = soon
		}
		again = sooner(again, left)
	}
	return granted, again, nil
}

// hostsAwaited tells whether another Function wants a host that fn, which is being deleted, still leads somewhere.
func (r *Reconciler) hostsAwaited(ctx context.Context, fn *v1alpha1.Function) (bool, error) {
	for _, host := range hostsConcerned(fn) {
		others, err := r.hostClaims(ctx, fn, host)
		if err != nil {
			return false, err
		}
		if v := judgeHost(claimOf(fn, host), others); v.Hold && v.Awaited {
			return true, nil
		}
	}
	return false, nil
}

// hostLeaves is for how long a host that has left the spec lingers yet.
func (rec *record) hostLeaves(host string, now time.Time) time.Duration {
	since, ok := rec.hostsLeft[host]
	if !ok {
		since = now
		if rec.hostsLeft == nil {
			rec.hostsLeft = map[string]time.Time{}
		}
		rec.hostsLeft[host] = now
	}
	return max(hostLinger-now.Sub(since), 0)
}

// sooner is the shorter of two times to look again, of which 0 means never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// hostClaims are what the Functions other than fn have to do with host.
func (r *Reconciler) hostClaims(ctx context.Context, fn *v1alpha1.Function, host string) ([]hostClaim, error) {
	var list v1alpha1.FunctionList
	if err := r.List(ctx, &list, client.MatchingFields{indexHost: host}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("functions with host %q: %w", host, err)
	}
	var claims []hostClaim
	for i := range list.Items {
		if f := &list.Items[i]; f.Key() != fn.Key() {
			claims = append(claims, claimOf(f, host))
		}
	}
	return claims, nil
}

func claimOf(fn *v1alpha1.Function, host string) hostClaim {
	return hostClaim{
		Function: fn.Key(), Created: fn.CreationTimestamp.Time, Wants: fn.WantsHost(host),
		Holds: fn.Status.Gate != nil && slices.Contains(fn.Status.Gate.Hosts, host),
	}
}

// hostsConcerned are the hosts that a Function wants or holds, each once, the wanted ones in the order of the spec.
func hostsConcerned(fn *v1alpha1.Function) []string {
	var all []string
	if fn.Spec.Traffic != nil {
		all = slices.Clone(fn.Spec.Traffic.Hosts)
	}
	if fn.Status.Gate != nil {
		for _, host := range fn.Status.Gate.Hosts {
			if !slices.Contains(all, host) {
				all = append(all, host)
			}
		}
	}
	return all
}
