package activator

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// limited makes n the limit of each pod.
func limited(n int32) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("1"), Limit: n}}}
	}
}

// replica is one of several activators, with what they need of each other.
type replica struct {
	*plane
	name, admin string
	handOns     *handOns
	stop        func() // as if its process ended: in the middle of everything
}

// newReplicas makes activators that do not know of each other yet.
func newReplicas(t *testing.T, n int, change ...func(*Options)) []*replica {
	t.Helper()
	var all []*replica
	for i := range n {
		r := &replica{name: fmt.Sprintf("activator-%d", i)}
		r.plane = newPlane(t, nil, append(change, func(o *Options) { o.PodName = r.name })...)
		ctx, cancel := context.WithCancelCause(context.Background())
		r.handOns = newHandOns(ctx, logr.Discard(), r.table, r.proxy)
		ready := &atomic.Bool{}
		admin := newAdminServer(logr.Discard(), r.proxy.metrics, ready, r.handOns.register(func() bool { return true }))
		ln := listen(t)
		r.admin = ln.Addr().String()
		var serving sync.WaitGroup
		serving.Go(func() { _ = admin.Serve(ln) })
		serving.Go(func() { _ = r.handOns.server.Serve(r.handOns) })
		eventually(t, "what is handed on is accepted", r.handOns.accepting.Load)
		r.stop = sync.OnceFunc(func() {
			cancel(errStopping)
			_ = admin.Close()
			_ = r.handOns.server.Close()
			serving.Wait()
		})
		t.Cleanup(func() {
			r.stop()
			eventually(t, "its requests have ended", func() bool { return r.proxy.active.Load() == 0 })
		})
		all = append(all, r)
	}
	return all
}

// sees has r know of the replicas in listed, of which those in ready are ready.
func (r *replica) sees(listed, ready []*replica) {
	svc := r.proxy.peers.service
	for _, other := range listed {
		slice := newSlice(svc.Name, 0, other.admin, slices.Contains(ready, other))
		slice.Name, slice.Namespace = other.name, svc.Namespace
		slice.Ports[0].Name = new(v1alpha1.ActivatorMetricsPort)
		slice.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: svc.Namespace, Name: other.name}
		r.table.setSlice(slice)
	}
	r.table.mu.Lock()
	var gone []*discoveryv1.EndpointSlice
	for name, slice := range r.table.services[svc].slices {
		if !slices.ContainsFunc(listed, func(other *replica) bool { return other.name == name }) {
			gone = append(gone, slice)
		}
	}
	r.table.mu.Unlock()
	for _, slice := range gone {
		r.table.removeSlice(slice)
	}
}

// joined makes n activators that are ready and know each other.
func joined(t *testing.T, n int, change ...func(*Options)) []*replica {
	t.Helper()
	all := newReplicas(t, n, change...)
	for _, r := range all {
		r.sees(all, all)
	}
	return all
}

// function is r's view of the function hello.
func (r *replica) function() *function { return r.table.function("default/hello") }

// settled is how many pods of hello are r's own, and no other replica has requests there.
func (r *replica) settled() int {
	sh := r.function().pods.Load().share
	return len(sh.owned) - len(sh.unsettled())
}

// deploy has all replicas know the function and its pods, and returns the addresses of its gates.
func deploy(t *testing.T, all []*replica, obj *v1alpha1.Function, pods ...string) []string {
	t.Helper()
	var urls []string
	for _, r := range all {
		fn := r.add(obj)
		r.pods(obj.Name, pods...)
		urls = append(urls, r.gateURL(fn))
	}
	if obj.ConcurrencyLimit() > 0 {
		eventually(t, "each pod is somebody's", func() bool {
			n := 0
			for _, r := range all {
				n += r.settled()
			}
			return n == len(pods)
		})
	}
	return urls
}

// meter measures how many requests a pod has at the same time.
type meter struct {
	address  string
	now, top atomic.Int64
	served   atomic.Int64

	fills  int64         // if set, requests stay until the pod has once had so many at the same time
	filled chan struct{} // closed then, or when that has taken too long
	fill   sync.Once
}

// fillsBy has the pod's requests stay until it has had n at the same time.
func (m *meter) fillsBy(n int32) { m.fills, m.filled = int64(n), make(chan struct{}) }

// fillUp waits for that.
func (m *meter) fillUp(ctx context.Context) {
	if m.fills == 0 {
		return
	}
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-m.filled:
	case <-ctx.Done():
	case <-timer.C:
		m.fill.Do(func() { close(m.filled) })
	}
}

// begin counts a request until end is called.
func (m *meter) begin() (end func()) {
	n := m.now.Add(1)
	for top := m.top.Load(); n > top && !m.top.CompareAndSwap(top, n); top = m.top.Load() {
	}
	m.served.Add(1)
	if m.fills > 0 && n == m.fills {
		m.fill.Do(func() { close(m.filled) })
	}
	return func() { m.now.Add(-1) }
}

// newMeteredPod is a pod whose requests take as long as the query's d says, or until their client is gone.
func newMeteredPod(t *testing.T) *meter {
	t.Helper()
	m := &meter{}
	m.address = newPod(t, func(w http.ResponseWriter, r *http.Request) {
		defer m.begin()()
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not look whether the client is gone
		m.fillUp(r.Context())
		d, _ := time.ParseDuration(r.URL.Query().Get("d"))
		sleep(r.Context(), d)
		fmt.Fprint(w, "hello")
	})
	return m
}

func newMeteredPods(t *testing.T, n int) (meters []*meter, addresses []string) {
	t.Helper()
	for range n {
		m := newMeteredPod(t)
		meters, addresses = append(meters, m), append(addresses, m.address)
	}
	return meters, addresses
}

// handsOn makes two activators. The one pod of the function obj belongs to the second; gate is the address of the first.
func handsOn(t *testing.T, obj *v1alpha1.Function, pod string) (from, to *replica, gate string) {
	t.Helper()
	all := joined(t, 2)
	for _, r := range all {
		r.add(obj)
		r.pods(obj.Name, pod)
	}
	from, to = all[0], all[1]
	if len(from.function().pods.Load().share.owned) > 0 {
		from, to = to, from
	}
	eventually(t, "the pod is the second's", func() bool { return to.settled() == 1 })
	if obj.IsTCP() {
		return from, to, from.tcpGate(from.function())
	}
	return from, to, strings.TrimPrefix(from.gateURL(from.function()), "http://")
}

// waits is how many requests for hello wait at r, those that were handed on included.
func (r *replica) waits() int {
	q := &r.function().queue
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.Len()
}
