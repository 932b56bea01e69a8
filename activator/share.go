package activator

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Where spec.metrics[].concurrency.limit bounds the requests at each pod, every pod belongs to one activator, which alone
// sends to it: then its own count is the pod's. Whose a pod is follows from the EndpointSlices of the function and of the
// activators, which all of them see (divide). They do not see them at the same moment; so an activator that finds a
// pod to be its own first asks all others, and uses it when none of them does (claims.go). One that has none
// hands its requests on to those that have (handon.go).

// share is what this activator may use of a function whose pods have a limit. It is part of a podSet, and as immutable.
type share struct {
	owned []*pod  // all that are its own
	mine  *podSet // those of them that are ready
	peers *podSet // the activators that pods which are ready belong to
}

// claim is this activator's hold on a pod, from when the pod became its own until it is another's.
type claim struct {
	// Requests that other activators have at the pod, which was theirs before; unsettled while that is not known, or one of
	// them holds the pod to be its own.
	elsewhere atomic.Int64
}

// unsettled is more than any limit.
const unsettled = math.MaxInt32

// free tells whether the pod is this activator's, and has fewer requests than limit.
func (p *place) free(limit int64) bool {
	c := p.claim.Load()
	return c != nil && p.inFlight.Load()+c.elsewhere.Load() < limit
}

// storeLocked makes s the function's snapshot. Its pods have claims from before it is seen, or none any more.
func (fn *function) storeLocked(s *podSet) {
	s.share = fn.shareLocked(s)
	fn.pods.Store(s)
	if len(s.share.unsettled()) > 0 {
		fn.peers.settle(fn)
	}
}

// reshare takes in that the limit or the activators have changed.
func (fn *function) reshare() {
	fn.podsMu.Lock()
	s := *fn.pods.Load()
	fn.storeLocked(&s)
	fn.podsMu.Unlock()
	fn.letGo()
	fn.queue.tell() // others than before may be set aside
}

func (fn *function) shareLocked(s *podSet) *share {
	pods := slices.Concat(s.ready, s.coming)
	limit, all := int64(fn.object.Load().ConcurrencyLimit()), fn.peers.load()
	disclaim := s.left
	if limit == 0 || len(all.owners) == 0 {
		disclaim = slices.Concat(disclaim, pods)
	}
	for _, p := range disclaim {
		p.claim.Store(nil)
	}
	if limit == 0 {
		return nil
	}
	names, owners := make([]string, len(pods)), make([]string, len(all.owners))
	for i, p := range pods {
		names[i] = string(p.uid) + "/" + p.address
	}
	for i, o := range all.owners {
		owners[i] = o.name
	}
	sh := &share{mine: &podSet{limit: limit}, peers: &podSet{}}
	handOns := fn.handOnsLocked(all.others)
	for i, of := range divide(names, owners) {
		p := pods[i]
		owner := all.owners[of]
		ready := i < len(s.ready)
		if owner != all.self {
			p.claim.Store(nil)
			if to := handOns[owner]; ready && !slices.Contains(sh.peers.ready, to) {
				sh.peers.ready = append(sh.peers.ready, to)
			}
			continue
		}
		if p.claim.Load() == nil {
			c := &claim{}
			if len(all.others) > 0 {
				c.elsewhere.Store(unsettled)
			}
			p.claim.Store(c)
		}
		sh.owned = append(sh.owned, p)
		if ready {
			sh.mine.ready = append(sh.mine.ready, p)
		}
	}
	return sh
}

// divide tells for each of pods by its index which of owners it belongs to. Each owner has as many as any other, or one
// more. It is rendezvous hashing, so that few pods change hands when one comes or goes. Without owners it is empty.
func divide(pods, owners []string) []int {
	if len(owners) == 0 {
		return nil
	}
	weight := func(parts ...string) uint64 {
		h := sha256.New()
		for _, p := range parts {
			h.Write([]byte(p))
			h.Write([]byte{0})
		}
		return binary.BigEndian.Uint64(h.Sum(nil))
	}
	turns, order := make([]int, len(pods)), make(map[int]uint64, len(pods))
	for i, p := range pods {
		turns[i], order[i] = i, weight(p)
	}
	slices.SortFunc(turns, func(a, b int) int {
		if order[a] < order[b] {
			return -1
		}
		return 1
	})
	all, extra := len(pods)/len(owners), len(pods)%len(owners)
	has, of := make([]int, len(owners)), make([]int, len(pods))
	for _, i := range turns {
		best, most := -1, uint64(0)
		for o, name := range owners {
			if has[o] > all || has[o] == all && extra == 0 {
				continue
			}
			if w := weight(pods[i], name); best < 0 || w > most {
				best, most = o, w
			}
		}
		if has[best] == all {
			extra--
		}
		has[best]++
		of[i] = best
	}
	return of
}

// full tells whether requests that wait do so for a place at pods that there are.
func (s *podSet) full() bool { return s.share != nil && s.usable() }

// unsettled lists the pods at which other activators have, or may have, requests.
func (sh *share) unsettled() []*pod {
	if sh == nil {
		return nil
	}
	var pods []*pod
	for _, p := range sh.owned {
		if c := p.claim.Load(); c != nil && c.elsewhere.Load() != 0 {
			pods = append(pods, p)
		}
	}
	return pods
}

// take finds a pod for a request that was handed on hops times, and counts it there; nil if it has to wait. Where all of
// this activator's pods are full it waits; where it has none that can be tried, another activator may have.
func (sh *share) take(hops int) *pod {
	p := sh.mine.pick(nil)
	if p == nil && hops < maxHops && !sh.mine.usable() {
		p = sh.peers.pick(nil)
	}
	if p != nil {
		p.inFlight.Add(1)
	}
	return p
}

// nextUsable is when the next of those that are set aside may be tried again; zero when there is none.
func (sh *share) nextUsable() time.Time {
	var first time.Time
	now := time.Now()
	for _, p := range slices.Concat(sh.mine.ready, sh.peers.ready) {
		if until := p.aside.Load(); until != nil && until.After(now) && (first.IsZero() || until.Before(first)) {
			first = *until
		}
	}
	return first
}

func (fn *function) takeUnlessOthersWait(hops int) *pod {
	fn.queue.mu.Lock()
	defer fn.queue.mu.Unlock()
	if sh := fn.pods.Load().share; sh != nil && fn.queue.waiting.Len() == 0 {
		return sh.take(hops)
	}
	return nil
}

// leave takes back what next has counted. Where that was a place of few it is the longest waiting request's now.
func (fn *function) leave(p *pod) {
	p.inFlight.Add(-1)
	if fn.pods.Load().share != nil {
		fn.letGo()
	}
}

// letGo lets go of those that wait for a pod whoever may try one now, in the order in which they came.
func (fn *function) letGo() {
	q := &fn.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	s := fn.pods.Load()
	if s.share == nil {
		if s.usable() {
			q.releaseLocked()
		}
		return
	}
	if s.usable() && !q.wanted.IsZero() {
		q.wanted = time.Time{}
		q.tellEmptyLocked()
	}
	for e := q.waiting.Front(); e != nil; {
		w, next := e.Value.(*waiter), e.Next()
		if w.pod = s.share.take(w.hops); w.pod != nil {
			q.waiting.Remove(e)
			close(w.released)
			q.tellEmptyLocked()
		} else if w.hops < maxHops {
			break // nor is there one for those behind it
		}
		e = next
	}
}
