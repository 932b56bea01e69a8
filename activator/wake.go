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
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
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

// How long after a patch the next one is sent while requests are held and no pod is ready. They are repeated because
// "it has replicas" may be true of a function that is just being put to sleep, and because a scale to zero may come
// right after a wake.
const (
	firstRepatch = 250 * time.Millisecond
	maxRepatch   = 2 * time.Second
)

// A wake is one write, so what it asks for must count the burst that causes it: the first patch waits until no
// further request has come for gatherPause, for gatherLimit at most. A request that comes alone pays gatherPause.
const (
	gatherPause = time.Millisecond
	gatherLimit = 10 * time.Millisecond
)

// ensureWaker starts the function's waker if requests wait and none runs.
func (p *proxy) ensureWaker(fn *function) {
	q := &fn.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waking || q.waiting.Len() == 0 {
		return
	}
	q.waking = true
	p.wakers.Go(func() { p.wake(fn) })
}

// wake patches the scale of fn's workload until nobody waits for a pod, which is how it ends: every waiter has a
// timeout, and leaves when its request is cut off.
func (p *proxy) wake(fn *function) {
	delay := firstRepatch
	logged := false
	gathered := false
	next, held := fn.queue.beginWaking()
	for ; held > 0; held = fn.queue.stillWaiting() {
		now := time.Now()
		pods := fn.pods.Load()
		if pods.usable() {
			// A pod that was set aside may be tried again; nobody else tells.
			fn.queue.release()
			continue
		}
		if !now.Before(next) {
			if !gathered {
				gathered = true
				held = max(held, fn.gather(held))
			}
			woken, err := p.patch(fn, held)
			switch {
			case err != nil && !logged:
				logged = true
				p.log.Error(err, "cannot wake function; its requests are held and the patch repeated", "namespace", fn.key.Namespace, "function", fn.key.Name)
			case woken:
				delay = maxRepatch
			}
			now = time.Now()
			next = now.Add(jitter(delay))
			delay = min(2*delay, maxRepatch)
		}
		until := next
		if at := pods.nextUsable(); !at.IsZero() && at.Before(until) {
			until = at
		}
		timer := time.NewTimer(until.Sub(now))
		select {
		case <-timer.C:
		case <-fn.queue.emptied:
		}
		timer.Stop()
	}
}

// gather waits for the rest of a burst, and returns how many wait then.
func (fn *function) gather(held int) int {
	obj := fn.object.Load()
	for end := time.Now().Add(gatherLimit); obj.WakeReplicas(held) < obj.AwakeReplicas(obj.Spec.Scale.MaxReplicas) && time.Now().Before(end); {
		timer := time.NewTimer(gatherPause)
		<-timer.C
		fn.queue.mu.Lock()
		now := fn.queue.waiting.Len()
		fn.queue.mu.Unlock()
		if now <= held {
			break
		}
		held = now
	}
	return held
}

// jitter keeps the activators' patches from falling together.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

// beginWaking tells when the first patch is due and how many wait. It is due at once, unless another waker of the
// function has just ended: clients that come and go quickly must not each cause a write.
func (q *queue) beginWaking() (first time.Time, held int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wakeErr = nil
	return q.lastPatch.Add(firstRepatch), q.stillWaitingLocked()
}

// stillWaiting returns how many wait. When nobody does the waker must end: the next waiter starts another.
func (q *queue) stillWaiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stillWaitingLocked()
}

func (q *queue) stillWaitingLocked() int {
	n := q.waiting.Len()
	q.waking = n > 0
	return n
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
	case woken:
		p.metrics.patches.WithLabelValues("woken").Inc()
		p.log.Info("woke function", "namespace", fn.key.Namespace, "function", fn.key.Name, "replicas", replicas, "held", held)
	default:
		p.metrics.patches.WithLabelValues("already_awake").Inc()
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
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 200, 400
	cfg.RateLimiter = nil
	cfg.APIPath = "/apis"
	cfg.GroupVersion = &appsv1.SchemeGroupVersion
	cfg.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	cfg.ContentType, cfg.AcceptContentTypes = "application/json", "application/json"
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make the client for wakes: %w", err)
	}
	client, err := rest.RESTClientForConfigAndClient(cfg, httpClient)
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

func (c *scaleClient) close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }
