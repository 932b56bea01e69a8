package activator

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// queue is where the requests of one function wait for a pod, first come first.
type queue struct {
	emptied chan struct{} // tells the waker that nobody waits any more; holds one

	mu        sync.Mutex // protects following
	waiting   list.List  // of *waiter
	deleted   bool       // the Function is gone, nobody may wait
	waking    bool       // a waker runs; exactly one does while anybody waits
	lastPatch time.Time  // of the workload's scale, also across wakers
	wakeErr   error      // of the last patch
}

// waiter is one held request.
type waiter struct {
	released chan struct{} // closed when there is a pod to try, or none to come
}

var (
	errQueueFull = errors.New("as many requests as allowed are held")
	errDeleted   = errors.New("the function is deleted")
)

// join appends a waiter unless as many as limit wait.
func (q *queue) join(limit int) (*list.Element, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.deleted:
		return nil, errDeleted
	case q.waiting.Len() >= limit:
		return nil, errQueueFull
	}
	return q.waiting.PushBack(&waiter{released: make(chan struct{})}), nil
}

// leave takes back a place that join gave; it does nothing when release already has.
func (q *queue) leave(place *list.Element) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting.Remove(place) // a no-op for an element that is in the list no more
	q.tellLocked()
}

// release lets all waiters go, in the order they came.
func (q *queue) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.releaseLocked()
}

func (q *queue) releaseLocked() {
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		close(q.waiting.Remove(e).(*waiter).released)
	}
	q.tellLocked()
}

// abolish lets all waiters go for good: the Function is deleted.
func (q *queue) abolish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deleted = true
	q.releaseLocked()
}

func (q *queue) isDeleted() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.deleted
}

// tellLocked tells the waker to look again when nobody waits.
func (q *queue) tellLocked() {
	if q.waiting.Len() > 0 {
		return
	}
	select {
	case q.emptied <- struct{}{}:
	default:
	}
}

// goneInterval is how often the client of a held request with a body is looked for; see clientGone.
const goneInterval = 250 * time.Millisecond

// hold blocks until a pod of ex's function may be tried. Its error is a *refusal when the request must be answered
// without one, else the cause why ctx ended.
func (p *proxy) hold(ctx context.Context, ex *exchange) error {
	fn := ex.fn
	obj := fn.object.Load()
	if p.held.Add(1) > int64(p.maxHeld) {
		p.held.Add(-1)
		return refuseQueueFull(fn, "this activator holds as many requests as its option MaxHeld allows")
	}
	defer p.held.Add(-1)
	place, err := fn.queue.join(cmp.Or(int(obj.Spec.Activation.MaxHeld), 1000))
	switch {
	case errors.Is(err, errDeleted):
		return refuseDeleted(fn)
	case err != nil:
		return refuseQueueFull(fn, "this activator holds as many requests for it as spec.activation.maxHeld allows")
	}
	began := fn.stats.hold(+1)
	defer func() {
		fn.queue.leave(place)
		ex.held += fn.stats.hold(-1).Sub(began)
	}()

	// A pod may have become ready between the caller's look and the join; its release has then missed this waiter.
	if fn.pods.Load().usable() {
		return nil
	}
	p.ensureWaker(fn) //nolint:contextcheck // the waker serves all that are held and outlives this request

	timeout := time.NewTimer(time.Until(ex.start.Add(obj.HoldTimeout())))
	defer timeout.Stop()
	var look <-chan time.Time
	if ex.bodyUnread {
		ticker := time.NewTicker(goneInterval)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-place.Value.(*waiter).released:
			if fn.queue.isDeleted() {
				return refuseDeleted(fn)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			return refuseTimeout(ex)
		case <-look:
			if clientGone(ctx) {
				return errClientGone
			}
		}
	}
}
