package activator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// waker wakes workloads. It is called from many goroutines, never twice at once for one function.
type waker interface {
	// Wake sets w to replicas if it has none, in one write. woken is false without an error when it had some, which is
	// as good. ctx bounds the call.
	Wake(ctx context.Context, w workload, replicas int32) (woken bool, err error)
}

// workload is what a function runs as, of any kind that the CRD admits: all are of the group apps, and their scales
// are patched in the same way.
type workload struct {
	kind, resource string // "Deployment", "deployments"
	name           types.NamespacedName
}

func workloadOf(obj *v1alpha1.Function) workload {
	kind, resource := obj.Workload()
	return workload{
		kind: kind.Kind, resource: resource.Resource,
		name: types.NamespacedName{Namespace: obj.Namespace, Name: obj.WorkloadName()},
	}
}

func (w workload) String() string { return w.kind + " " + w.name.String() }

// How long after a patch the next one is sent while requests are held and no pod is ready: from firstRepatch, or from
// wokenRepatch where it has woken the function, each time twice as long. They are repeated because "it has replicas" may be
// true of a function that is just being put to sleep, and because a scale to zero may come right after a wake. That is
// found out soon or not at all; when hundreds wait for slow pods, the repetitions must not take the budget of first wakes. Where
// a patch has failed there is no such budget, and what is held should not wait for long once the API server is back.
const (
	firstRepatch  = 250 * time.Millisecond
	wokenRepatch  = 2 * time.Second
	failedRepatch = 4 * time.Second
	maxRepatch    = 16 * time.Second
)

// A wake is one write, so what it asks for must count the burst that causes it: the first patch waits until no
// further request has come for gatherPause, for gatherLimit at most. A request that comes alone pays gatherPause.
const (
	gatherPause = time.Millisecond
	gatherLimit = 10 * time.Millisecond
)

// maxPatches bounds the patches under way. An API server that is asked for hundreds at once answers none of them soon, and
// those whose time is over it has worked on in vain; so the others wait here, first come first, with their time not
// running.
const maxPatches = 64

// ensureWaker starts the function's waker if requests wait and none runs; one that runs looks again.
func (p *proxy) ensureWaker(fn *function) {
	q := &fn.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.demandLocked() == 0:
	case q.waking:
		q.tell()
	default:
		q.waking = true
		p.wakers.Go(func() { p.wake(fn) })
	}
}

// wake patches the scale of fn's workload, and probes the pods that come of it, until nobody asks for a pod. That is
// how it ends: every waiter has a timeout, and leaves when its request is cut off, and so has what is wanted. It waits for nothing that could
// delay it: patches and probes run beside it, and tell.
func (p *proxy) wake(fn *function) {
	w := waking{proxy: p, fn: fn, delay: firstRepatch, next: fn.queue.beginWaking(), probers: newProbers(p, fn)}
	for {
		held := fn.queue.demand()
		if held == 0 {
			w.probers.stop()
			w.scout.stop()
			w.scout = nil // who comes from now on, to this waker, has one of another patch
			if w.patched == nil && fn.queue.endWaking() {
				return
			}
		}
		until := w.step(held)
		var at <-chan time.Time
		var timer *time.Timer
		if !until.IsZero() {
			timer = time.NewTimer(time.Until(until))
			at = timer.C
		}
		select {
		case <-at:
		case <-fn.queue.kick:
		case result := <-w.patched:
			w.took(result)
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// waking is what one run of a function's waker knows.
type waking struct {
	proxy    *proxy
	fn       *function
	probers  *probers
	scout    *scout           // of the pods that come of a patch; nil before that was answered, and where there is none
	next     time.Time        // when a patch is due
	delay    time.Duration    // from the patch that is due to the one after it
	patched  chan patchResult // of the patch that is under way, nil while none is
	gathered bool             // the burst was waited for
	logged   bool             // that patches fail
	woken    time.Time        // of the patch that woke the function, until an address was seen

	addressed bool // an address was marked
}

type patchResult struct {
	woken bool
	err   error
}

// step does what is due while held requests wait, and returns when to look again; zero for not before something is told.
func (w *waking) step(held int) time.Time {
	if held == 0 {
		return time.Time{}
	}
	w.fn.expireProofs()
	pods := w.fn.pods.Load()
	w.markAddress(pods)
	if !w.woken.IsZero() && len(pods.ready)+len(pods.coming) > 0 {
		w.proxy.metrics.coldStart.WithLabelValues("address").Observe(time.Since(w.woken).Seconds())
		w.woken = time.Time{}
	}
	if pods.usable() {
		var until time.Time
		if pods.share != nil {
			until = pods.share.nextUsable() // looked at first: what has become usable by then is given away now
		}
		// A pod that was set aside may be tried again; nobody else tells.
		w.fn.letGo()
		if pods.share != nil {
			// Those that are left wait for a place at a pod. One more has more of them.
			w.probers.follow(pods.coming)
		}
		return until
	}
	w.probers.follow(pods.coming)
	until := w.next
	if w.patched != nil {
		until = time.Time{}
	} else if now := time.Now(); !now.Before(w.next) {
		w.patch(held)
		until = time.Time{}
	}
	if at := pods.nextUsable(); !at.IsZero() && (until.IsZero() || at.Before(until)) {
		until = at
	}
	return until
}

// patch asks for replicas, and tells the outcome by w.patched.
func (w *waking) patch(held int) {
	gather := !w.gathered
	w.gathered = true
	done := make(chan patchResult, 1)
	w.patched = done
	w.proxy.wakers.Go(func() {
		if gather {
			held = max(held, w.fn.gather(held))
		}
		w.proxy.patches <- struct{}{}
		defer func() { <-w.proxy.patches }()
		var r patchResult
		// Meanwhile more may have come, or all have left.
		if now := w.fn.queue.demand(); now > 0 {
			r.woken, r.err = w.proxy.patch(w.fn, max(held, now))
		}
		done <- r
	})
}

func (w *waking) took(r patchResult) {
	w.patched = nil
	key := w.fn.key
	switch {
	case r.err != nil && !w.logged:
		w.logged = true
		w.proxy.log.Error(r.err, "cannot wake function; its requests are held and the patch repeated", "namespace", key.Namespace, "function", key.Name)
	case r.woken:
		w.delay = max(w.delay, wokenRepatch)
		w.woken = time.Now()
	}
	if r.err == nil && w.scout == nil {
		w.scout = newScout(w.proxy, w.fn) // not sooner: a write never waits behind a read
	}
	limit := maxRepatch
	if r.err != nil {
		limit = failedRepatch
	}
	w.delay = min(w.delay, limit)
	w.next = time.Now().Add(jitter(w.delay))
	w.delay = min(2*w.delay, limit)
}

// gather waits for the rest of a burst, and returns how many wait then.
func (fn *function) gather(held int) int {
	obj := fn.object.Load()
	for end := time.Now().Add(gatherLimit); obj.WakeReplicas(held) < obj.AwakeReplicas(obj.Spec.Scale.MaxReplicas) && time.Now().Before(end); {
		timer := time.NewTimer(gatherPause)
		<-timer.C
		now := fn.queue.demand()
		if now <= held {
			break
		}
		held = now
	}
	return held
}

// jitter keeps the activators' patches from falling together.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

// beginWaking tells when the first patch is due: at once, unless another waker of the function has just ended. Clients
// that come and go quickly must not each cause a write.
func (q *queue) beginWaking() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wakeErr = nil
	return q.lastPatch.Add(firstRepatch)
}

// endWaking tells whether the waker may end, as nobody waits: the next waiter starts another.
func (q *queue) endWaking() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waking = q.demandLocked() > 0
	return !q.waking
}

func (q *queue) demand() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.demandLocked()
}

// patch asks for as many replicas as held requests want.
func (p *proxy) patch(fn *function, held int) (bool, error) {
	obj := fn.object.Load()
	replicas := obj.WakeReplicas(held)
	// No request's context: the patch serves all that are held, and must not end with the client that came first.
	ctx, cancel := context.WithTimeout(context.Background(), p.patchTimeout)
	defer cancel()
	start := time.Now()
	woken, err := p.waker.Wake(ctx, workloadOf(obj), replicas)
	p.metrics.coldStart.WithLabelValues("patch").Observe(time.Since(start).Seconds())

	fn.queue.mu.Lock()
	fn.queue.lastPatch, fn.queue.wakeErr = time.Now(), err
	fn.queue.mu.Unlock()
	switch {
	case err != nil:
		p.metrics.patches.WithLabelValues("error").Inc()
		p.mark(fn, "wake patch failed", attrReplicas.Int(int(replicas)))
	case woken:
		p.metrics.patches.WithLabelValues("woken").Inc()
		p.mark(fn, "wake patch written", attrReplicas.Int(int(replicas)))
		p.log.Info("woke function", "namespace", fn.key.Namespace, "function", fn.key.Name, "replicas", replicas, "held", held)
	default:
		p.metrics.patches.WithLabelValues("already_awake").Inc()
		p.mark(fn, "already awake")
	}
	return woken, err
}

func (q *queue) lastWakeErr() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.wakeErr
}

// scaleClient is the waker that speaks to Kubernetes. It has a client of its own, so that a burst of wakes does not
// wait behind the watches.
type scaleClient struct {
	client *rest.RESTClient
	http   *http.Client
}

func newScaleClient(cfg *rest.Config) (*scaleClient, error) {
	client, httpClient, err := newClient(cfg, "/apis", appsv1.SchemeGroupVersion, "application/json")
	if err != nil {
		return nil, fmt.Errorf("make the client for wakes: %w", err)
	}
	return &scaleClient{client: client, http: httpClient}, nil
}

// Wake implements waker by a JSON patch on the scale subresource; see v1alpha1.WakePatch.
func (c *scaleClient) Wake(ctx context.Context, w workload, replicas int32) (bool, error) {
	err := c.client.Patch(types.JSONPatchType).
		Namespace(w.name.Namespace).Resource(w.resource).Name(w.name.Name).SubResource("scale").
		Body(v1alpha1.WakePatch(replicas)).
		MaxRetries(0). // the caller repeats
		Do(ctx).Error()
	switch {
	case err == nil:
		return true, nil
	case v1alpha1.PatchTestFailed(err):
		return false, nil
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Errorf("patch scale of %s: no answer in time: %w", w, err)
	default:
		return false, fmt.Errorf("patch scale of %s: %w", w, err)
	}
}

// keepOpenInterval is less than the 90 s after which an API server, and client-go, close a connection that is idle.
const keepOpenInterval = 45 * time.Second

// keepOpen asks for something small again and again until ctx ends, so that no wake has to wait for a handshake first.
func (c *scaleClient) keepOpen(ctx context.Context, interval time.Duration) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, readTimeout)
		_ = c.client.Get().AbsPath("/version").MaxRetries(0).Do(attempt).Error() // whatever the answer is, the connection stands
		cancel()
		sleep(ctx, jitter(interval))
	}
}

func (c *scaleClient) close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }
