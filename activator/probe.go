package activator

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// podReader reads pods and what selects them, from a cache of the API server's: it may be a moment old. It is called from
// many goroutines.
type podReader interface {
	// Pod reads the pod of that name. ctx bounds the call.
	Pod(ctx context.Context, name types.NamespacedName) (*corev1.Pod, error)
	// Service reads the Service of that name. ctx bounds the call.
	Service(ctx context.Context, name types.NamespacedName) (*corev1.Service, error)
	// WatchPods tells of all pods in namespace that have these labels, at first of those that there are, until ctx ends.
	WatchPods(ctx context.Context, namespace string, labels map[string]string) (watch.Interface, error)
}

// How often a pod is probed. A pod that comes up is asked every firstProbe at first and then, the longer it takes, the
// less often: a container that takes a second to open its port is found within 10 ms of that, one that takes ten within
// 100. One that answers that it is not ready has work to do, and is left in peace a little longer.
const (
	firstProbe    = 5 * time.Millisecond
	maxProbe      = 250 * time.Millisecond
	refusedShare  = 100 // of the time so far, between two probes that found nobody listening
	answeredShare = 25  // the same after an answer
	// probeBudget bounds the probes per second of all pods together.
	probeBudget = 5000
	// maxProbers bounds the pods of a function that are probed at the same time. One is enough to serve; others are
	// Kubernetes's to call ready.
	maxProbers = 32
)

// How long one attempt to connect may take. What is sent to a pod whose network does not stand yet may be lost, and TCP
// would send it again only after a second.
const (
	minProbeDial = 50 * time.Millisecond
	dialShare    = 4 // of the time so far
)

// probers probes the pods of one function that are coming, while requests wait. Its methods are the waker's alone.
type probers struct {
	proxy   *proxy
	fn      *function
	running map[*pod]*prober
	wg      sync.WaitGroup
}

func newProbers(p *proxy, fn *function) *probers {
	return &probers{proxy: p, fn: fn, running: map[*pod]*prober{}}
}

// follow has the pods in coming probed, and no others.
func (ps *probers) follow(coming []*pod) {
	wanted := make(map[*pod]bool, len(coming))
	if ps.proxy.podReader != nil && ps.fn.object.Load().ProbesAhead() {
		for _, p := range coming {
			// A slice that somebody else wrote may name a pod of another namespace.
			wanted[p] = p.name.Name != "" && p.name.Namespace == ps.fn.key.Namespace && !p.wait && len(wanted) < maxProbers
		}
	}
	for p, pr := range ps.running {
		// A pod that was proven and is back has to be proven again.
		if !wanted[p] || pr.proved.Load() {
			pr.cancel()
			delete(ps.running, p)
		}
	}
	for _, p := range coming {
		if wanted[p] && ps.running[p] == nil {
			ctx, cancel := context.WithCancel(context.Background())
			pr := &prober{proxy: ps.proxy, fn: ps.fn, pod: p, cancel: cancel}
			ps.running[p] = pr
			ps.wg.Go(func() {
				defer cancel()
				pr.run(ctx)
			})
		}
	}
}

// stop ends all probers and waits for them.
func (ps *probers) stop() {
	for p, pr := range ps.running {
		pr.cancel()
		delete(ps.running, p)
	}
	ps.wg.Wait()
}

// prober probes one pod until it is proven, or nobody wants to know any more.
type prober struct {
	proxy  *proxy
	fn     *function
	pod    *pod
	cancel context.CancelFunc
	proved atomic.Bool // it has done its work, and the pod takes requests

	checks []progress
	conn   net.Conn // to the target port, open and idle; nil for none
	spoken bool     // a probe of HTTP/1.1 was sent on it
}

// progress is how far a container has come.
type progress struct {
	check
	passed int       // successes on end
	opened time.Time // when its port first took a connection
}

// run returns when the pod is proven, cannot be probed ahead, or ctx ends.
func (pr *prober) run(ctx context.Context) {
	active := &pr.proxy.probing
	active.Add(1)
	defer active.Add(-1)
	defer pr.dropConn()
	plan, err := pr.plan(ctx)
	if err != nil {
		pr.proxy.metrics.probe(probeEnded)
		return
	}
	if plan.why != "" {
		pr.proxy.metrics.probe(probeUnsupported)
		pr.tell(plan.why)
		return
	}
	for _, c := range plan.checks {
		pr.checks = append(pr.checks, progress{check: c})
	}
	began := time.Now()
	for {
		elapsed := time.Since(began)
		notBefore, err := pr.round(ctx, max(minProbeDial, elapsed/dialShare))
		switch {
		case ctx.Err() != nil:
			pr.proxy.metrics.probe(probeEnded)
			return
		case err == nil && notBefore.IsZero():
			pr.succeed(*plan) //nolint:contextcheck // it has succeeded
			return
		}
		share := time.Duration(answeredShare)
		if errors.Is(err, errNotConnected) {
			share = refusedShare
		}
		pause := min(max(elapsed/share, firstProbe), maxProbe)
		// All probers together keep to the budget.
		pause = max(pause, time.Duration(active.Load())*time.Second/probeBudget)
		sleep(ctx, max(jitter(pause), time.Until(notBefore)))
	}
}

// succeed lets the pod take requests and the held ones go.
func (pr *prober) succeed(plan probePlan) {
	pr.proved.Store(true)
	if pr.conn != nil {
		// Handed over first, so that the first request finds it.
		pr.proxy.spares.put(pr.pod.address, pr.conn, pr.spoken)
		pr.conn = nil
	}
	if !pr.fn.prove(pr.pod, time.Now().Add(plan.counts)) {
		pr.proxy.metrics.probe(probeEnded)
		return
	}
	pr.proxy.metrics.probe(probeProven)
	pr.proxy.mark(pr.fn, "probe ok", attrPod.String(pr.pod.address))
	pr.proxy.metrics.coldStart.WithLabelValues("probe").Observe(time.Since(pr.pod.seen).Seconds())
	pr.fn.letGo()
}

// round runs each check once, up to the first that fails; that one comes first in the next round. Without an error the
// pod has passed, unless it is to be asked again notBefore.
func (pr *prober) round(ctx context.Context, dialTimeout time.Duration) (notBefore time.Time, err error) {
	pr.dropConn()
	for i := range pr.checks {
		at, err := pr.ask(ctx, &pr.checks[i], dialTimeout)
		if err != nil || !at.IsZero() {
			pr.checks[0], pr.checks[i] = pr.checks[i], pr.checks[0]
			return at, err
		}
	}
	if pr.conn == nil {
		// A container that is asked nothing is ready for the kubelet once it runs; from here that cannot be seen, but that
		// it accepts connections. For others this is the connection of the first request.
		pr.conn, err = dialProbe(ctx, pr.pod.address, dialTimeout)
	}
	return time.Time{}, err
}

// ask runs one check. Without an error it has passed, unless it is to be asked again notBefore.
func (pr *prober) ask(ctx context.Context, c *progress, dialTimeout time.Duration) (notBefore time.Time, err error) {
	if c.delay > 0 {
		// The kubelet counts from the start of the container, which cannot be seen from here. A port that accepts
		// connections is never earlier.
		if c.opened.IsZero() {
			conn, err := dialProbe(ctx, c.address, dialTimeout)
			if err != nil {
				return time.Time{}, err
			}
			_ = conn.Close()
			c.opened = time.Now()
		}
		if at := c.opened.Add(c.delay); time.Now().Before(at) {
			return at, nil
		}
	}
	conn, err := c.run(ctx, dialTimeout)
	if err != nil {
		c.passed = 0
		if errors.Is(err, errNotConnected) {
			c.opened = time.Time{} // the container may be another by now
		}
		return time.Time{}, err
	}
	if conn != nil && c.address == pr.pod.address {
		pr.dropConn()
		pr.conn, pr.spoken = conn, c.kind == checkHTTP
	} else if conn != nil {
		_ = conn.Close()
	}
	if c.passed++; c.passed < c.threshold {
		return time.Now(), nil
	}
	return time.Time{}, nil
}

func (pr *prober) dropConn() {
	if pr.conn != nil {
		_ = pr.conn.Close()
		pr.conn, pr.spoken = nil, false
	}
}

// How long after a failure to read a pod the next attempt is made.
const (
	firstReread = 50 * time.Millisecond
	maxReread   = 2 * time.Second
	readTimeout = 5 * time.Second
)

// plan is what the pod is to be asked. The pod is read once in its life; failures are tried again until ctx ends.
func (pr *prober) plan(ctx context.Context) (*probePlan, error) {
	if pr.pod.plan != nil {
		return pr.pod.plan, nil
	}
	host, portString, err := net.SplitHostPort(pr.pod.address)
	if err != nil {
		return nil, err // next made the address
	}
	port, err := strconv.ParseInt(portString, 10, 32)
	if err != nil {
		return nil, err
	}
	for delay := firstReread; ; delay = min(2*delay, maxReread) {
		plan := probePlan{}
		obj, err := pr.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case apierrors.IsForbidden(err):
			plan.why = "the activator may not read it: its ClusterRole lacks get on pods"
		case err != nil:
			pr.proxy.log.V(1).Info("cannot read a pod to probe it", "namespace", pr.pod.name.Namespace, "pod", pr.pod.name.Name, "err", err.Error())
		case obj.UID == pr.pod.uid:
			plan = planProbe(&obj.Spec, host, int32(port))
		}
		if plan.why != "" || err == nil && obj.UID == pr.pod.uid {
			pr.pod.plan = &plan
			return pr.pod.plan, nil
		}
		// Not there yet, or still its predecessor: the API server's cache is behind.
		sleep(ctx, jitter(delay))
	}
}

func (pr *prober) read(ctx context.Context) (*corev1.Pod, error) {
	if pod := pr.fn.watched(pr.pod.uid); pod != nil {
		return pod, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return pr.proxy.podReader.Pod(ctx, pr.pod.name)
}

// tell logs why a function's pods are not probed ahead, when that is news.
func (pr *prober) tell(why string) {
	if old := pr.fn.notProbed.Swap(&why); old != nil && *old == why {
		return
	}
	pr.proxy.log.Info("pod cannot be probed ahead; waiting until Kubernetes calls it ready",
		"namespace", pr.fn.key.Namespace, "function", pr.fn.key.Name, "pod", pr.pod.name.Name, "why", why)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// spares are connections that a probe has left open, by address, for the first request. They are kept for spareAge:
// what a pod does with a connection on which nothing comes is its own business.
type spares struct {
	conns sync.Map // address string -> *spare
}

type spare struct {
	net.Conn
	spoken bool // HTTP/1.1
	timer  *time.Timer
}

const spareAge = time.Second

func (s *spares) put(address string, conn net.Conn, spoken bool) {
	sp := &spare{Conn: conn, spoken: spoken}
	sp.timer = time.AfterFunc(spareAge, func() {
		if s.conns.CompareAndDelete(address, sp) {
			_ = conn.Close()
		}
	})
	if old, ok := s.conns.Swap(address, sp); ok {
		old.(*spare).drop()
	}
}

// take returns a connection to address, or nil: one on which nothing was ever sent, or else, for HTTP/1.1, but a probe.
func (s *spares) take(address string, http1 bool) net.Conn {
	v, ok := s.conns.Load(address)
	if !ok || v.(*spare).spoken && !http1 || !s.conns.CompareAndDelete(address, v) {
		return nil
	}
	sp := v.(*spare)
	sp.timer.Stop()
	if peerClosed(sp.Conn) {
		_ = sp.Conn.Close()
		return nil
	}
	return sp.Conn
}

func (s *spares) close() {
	s.conns.Range(func(address, _ any) bool {
		if v, ok := s.conns.LoadAndDelete(address); ok {
			v.(*spare).drop()
		}
		return true
	})
}

func (s *spare) drop() {
	s.timer.Stop()
	_ = s.Conn.Close()
}
