package activator

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// queue is where the requests of one function wait for a pod, first come first.
type queue struct {
	kick chan struct{} // tells the waker to look again; holds one

	mu        sync.Mutex // protects following
	waiting   list.List  // of *waiter
	wanted    time.Time  // until then a pod is asked for though nobody waits, for those who were given a placeholder
	deleted   bool       // the Function is gone, nobody may wait
	waking    bool       // a waker runs; exactly one does while anybody waits
	lastPatch time.Time  // of the workload's scale, also across wakers
	wakeErr   error      // of the last patch
}

// waiter is one held request.
type waiter struct {
	since    time.Time     // when the request came
	hops     int           // of the exchange
	released chan struct{} // closed when there is a pod to try, or none to come
	pod      *pod          // the one to try where pods have a limit; set before released is closed
}

var (
	errQueueFull = errors.New("as many requests as allowed are held")
	errDeleted   = errors.New("the function is deleted")
)

// join takes in a waiter unless as many as limit wait: behind those that came before it, wherever they have been since.
func (q *queue) join(limit int, w *waiter) (*list.Element, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.deleted:
		return nil, errDeleted
	case q.waiting.Len() >= limit:
		return nil, errQueueFull
	}
	for e := q.waiting.Back(); e != nil; e = e.Prev() {
		if !e.Value.(*waiter).since.After(w.since) {
			return q.waiting.InsertAfter(w, e), nil
		}
	}
	return q.waiting.PushFront(w), nil
}

// leave takes back a place that join gave; it does nothing when release already has.
func (q *queue) leave(place *list.Element) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting.Remove(place) // a no-op for an element that is in the list no more
	q.tellEmptyLocked()
}

// releaseLocked lets all waiters go at once. In which order their goroutines run is the runtime's; see dialQueue.
func (q *queue) releaseLocked() {
	q.wanted = time.Time{}
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		close(q.waiting.Remove(e).(*waiter).released)
	}
	q.tellEmptyLocked()
}

// abolish lets all waiters go for good: the Function is deleted.
func (q *queue) abolish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deleted = true
	q.releaseLocked()
}

// want has a pod asked for until then, or one is ready; zero for no longer. It returns false if the Function is deleted.
func (q *queue) want(until time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.deleted {
		return false
	}
	q.wanted = until
	q.tell()
	return true
}

// demandLocked is how many requests ask for a pod. All that were given a placeholder are one.
func (q *queue) demandLocked() int {
	if n := q.waiting.Len(); n > 0 || !time.Now().Before(q.wanted) {
		return n
	}
	return 1
}

func (q *queue) isDeleted() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.deleted
}

func (q *queue) tellEmptyLocked() {
	if q.waiting.Len() == 0 {
		q.tell()
	}
}

// tell has the waker, if one runs, look again.
func (q *queue) tell() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// goneInterval is how often the client of a held request with a body is looked for; see clientGone.
const goneInterval = 250 * time.Millisecond

// hold blocks until a pod of ex's function may be tried. Where pods have a limit it returns one, at which ex is counted
// already. Its error is a *refusal when the request must be answered without one, else the cause why ctx ended.
func (p *proxy) hold(ctx context.Context, ex *exchange) (*pod, error) {
	obj := ex.fn.object.Load()
	if ex.static != nil {
		return nil, p.answerStatic(ex.fn, ex.static)
	}
	if page := placeholderFor(obj, ex); page != nil && !ex.fn.pods.Load().full() {
		return p.holdOrShow(ctx, ex, obj, page)
	}
	return p.wait(ctx, ex, obj, obj.HoldTimeout())
}

// holdOrShow is hold for a while, and then page.
func (p *proxy) holdOrShow(ctx context.Context, ex *exchange, obj *v1alpha1.Function, page *v1alpha1.Placeholder) (*pod, error) {
	if first := min(page.HoldFirst(), obj.HoldTimeout()); time.Since(ex.start) < first {
		if pod, err := p.wait(ctx, ex, obj, first); unserved(err) == nil {
			return pod, err
		}
	}
	return nil, p.answerPlaceholder(ex.fn, obj, page) //nolint:contextcheck // the waker serves all and outlives this request
}

// wait is hold without what is answered in its place, until timeout after the request came.
func (p *proxy) wait(ctx context.Context, ex *exchange, obj *v1alpha1.Function, timeout time.Duration) (_ *pod, err error) {
	fn := ex.fn
	if p.held.Add(1) > int64(p.maxHeld) {
		p.held.Add(-1)
		return nil, refuseQueueFull(fn, "this activator holds as many requests as its option MaxHeld allows")
	}
	defer p.held.Add(-1)
	w := &waiter{since: ex.start, hops: ex.hops, released: make(chan struct{})}
	place, err := fn.queue.join(cmp.Or(int(obj.Spec.Activation.MaxHeld), 1000), w)
	switch {
	case errors.Is(err, errDeleted):
		return nil, refuseDeleted(fn)
	case err != nil:
		return nil, refuseQueueFull(fn, "this activator holds as many requests for it as spec.activation.maxHeld allows")
	}
	end := p.countHeld(ex)
	defer func() { end(err) }()
	// A pod may have become ready, or a place at one free, between the caller's look and the join; whoever let others go
	// then has missed this waiter.
	fn.letGo()
	p.ensureWaker(fn) //nolint:contextcheck // the waker serves all that are held and outlives this request
	err = ex.await(ctx, w, timeout)
	fn.queue.leave(place)
	if err != nil && w.pod != nil {
		fn.leave(w.pod) // it came too late
		return nil, err
	}
	return w.pod, err
}

// countHeld counts that ex is held, until what it returns is called, with the outcome.
func (p *proxy) countHeld(ex *exchange) (end func(err error)) {
	full := ex.fn.pods.Load().full()
	count := ex.fn.stats.hold
	if ex.hops > 0 {
		count = func(int64) time.Time { return time.Now() } // whoever handed it on has counted it as in flight
	}
	began := count(+1)
	return func(err error) {
		ended := count(-1)
		if full {
			p.metrics.limitWait.Observe(ended.Sub(began).Seconds())
		} else {
			ex.held += ended.Sub(began)
		}
		if ex.spans != nil {
			ex.spans.held(ex, began, ended, err)
		}
	}
}

// await returns when w is released, or with an error as hold.
func (ex *exchange) await(ctx context.Context, w *waiter, timeout time.Duration) error {
	fn := ex.fn
	timer := time.NewTimer(time.Until(ex.start.Add(timeout)))
	defer timer.Stop()
	var look <-chan time.Time
	if ex.bodyUnread {
		ticker := time.NewTicker(goneInterval)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-w.released:
			if fn.queue.isDeleted() {
				return refuseDeleted(fn)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return refuseTimeout(ex)
		case <-look:
			if clientGone(ctx) {
				return errClientGone
			}
		}
	}
}
