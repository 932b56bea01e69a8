package activator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// podReaderFunc is a podReader.
type podReaderFunc func(types.NamespacedName) (*corev1.Pod, error)

func (f podReaderFunc) Pod(_ context.Context, name types.NamespacedName) (*corev1.Pod, error) {
	return f(name)
}

// Service and WatchPods are of an activator that may not watch.
func (f podReaderFunc) Service(_ context.Context, name types.NamespacedName) (*corev1.Service, error) {
	return nil, apierrors.NewForbidden(corev1.Resource("services"), name.Name, nil)
}

func (f podReaderFunc) WatchPods(context.Context, string, map[string]string) (watch.Interface, error) {
	return nil, apierrors.NewForbidden(corev1.Resource("pods"), "", nil)
}

// specOf is a podReader of pods that all have that one container; their UID is their name.
func specOf(c corev1.Container) podReaderFunc {
	return func(name types.NamespacedName) (*corev1.Pod, error) {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, UID: types.UID(name.Name)},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{c}},
		}, nil
	}
}

// newPodSlice is a slice with one pod, which has a name.
func newPodSlice(service string, i int, address string, ready bool) *discoveryv1.EndpointSlice {
	s := newSlice(service, i, address, ready)
	name := service + "-" + strconv.Itoa(i)
	s.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: name, UID: types.UID(name)}
	return s
}

func terminating(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.Endpoints[0].Conditions.Terminating = new(true)
	return s
}

func portOfAddress(t *testing.T, address string) intstr.IntOrString {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return intstr.FromInt(n)
}

// serveAt serves h at address until the function that it returns is called.
func serveAt(t *testing.T, address string, h http.Handler) (stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	var once sync.Once
	stop = func() { once.Do(srv.Close) }
	t.Cleanup(stop)
	return stop
}

// A pod gets its address, then opens its port, then becomes ready by its own probe; Kubernetes says so later.
func TestPodIsProvenAheadOfReady(t *testing.T) {
	var ok atomic.Bool
	var probes atomic.Int64
	var probe, served atomic.Pointer[http.Request]
	address := refusing(t)
	p := newPlane(t, nil)
	c := container("a", readiness(httpGet("/healthz", portOfAddress(t, address))))
	c.ReadinessProbe.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "shop"}}
	p.proxy.podReader = specOf(c)
	fn := p.add(newTestFunction("hello"))
	answers := make(chan answer, 1)
	url := p.gateURL(fn)
	go func() { answers <- get(t, url+"/work") }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	serveAt(t, address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/healthz":
			served.Store(r)
			fmt.Fprint(w, "done")
		case ok.Load():
			probe.Store(r)
			fmt.Fprint(w, "ok")
		default:
			probes.Add(1)
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	eventually(t, "the pod was asked several times", func() bool { return probes.Load() > 3 })
	if held(fn) != 1 {
		t.Fatal("the request was let go before the pod passed its probe")
	}
	ok.Store(true)
	if got := <-answers; got.status != http.StatusOK || got.body != "done" {
		t.Fatalf("got %d %q, want the pod's answer while Kubernetes does not call it ready", got.status, got.body)
	}
	if a, b := probe.Load().RemoteAddr, served.Load().RemoteAddr; a != b {
		t.Errorf("the request came by %s and the probe before it by %s, want one connection", b, a)
	}
	if r := probe.Load(); r.Host != "shop" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") || r.Header.Get(headerProbe) != probeAhead {
		t.Errorf("probe: host %q, headers %v; want the probe's own, and what tells it from traffic", r.Host, r.Header)
	}
	if got := fn.stats.snapshot().started; got != 1 {
		t.Errorf("requests counted: %d, want 1, without the probes", got)
	}
	pod := fn.pods.Load().ready[0]
	p.table.setSlice(newPodSlice("hello", 0, address, true))
	if s := fn.pods.Load(); len(s.ready) != 1 || s.ready[0] != pod || pod.proof.Load() != nil {
		t.Error("the pod is another one once Kubernetes calls it ready")
	}
	if got := get(t, url+"/warm"); got.status != http.StatusOK || got.header.Get(headerColdStart) != "" {
		t.Errorf("warm: got %d, %s %q", got.status, headerColdStart, got.header.Get(headerColdStart))
	}
	p.table.setSlice(terminating(newPodSlice("hello", 0, address, true)))
	if s := fn.pods.Load(); len(s.ready)+len(s.coming) != 0 {
		t.Error("a pod that ends is still sent to")
	}
}

// coldPlane holds one request for a function whose only pod, at address, has an address and is not ready.
func coldPlane(t *testing.T, address string, c corev1.Container, change ...func(*plane)) (*plane, *function, chan answer) {
	t.Helper()
	p := newPlane(t, nil)
	p.proxy.podReader = specOf(c)
	for _, f := range change {
		f(p)
	}
	fn := p.add(newTestFunction("hello"))
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	answers := make(chan answer, 1)
	url := p.gateURL(fn)
	go func() { answers <- get(t, url) }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	return p, fn, answers
}

func counterValue(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestPodWithoutProbeIsProvenByItsPort(t *testing.T) {
	address := refusing(t)
	var dials atomic.Int64 // of requests
	p, fn, answers := coldPlane(t, address, container("a"), func(p *plane) {
		dial := p.proxy.dial
		p.proxy.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, address)
		}
	})
	serveAt(t, address, http.HandlerFunc(echo))
	if got := <-answers; got.status != http.StatusOK {
		t.Fatalf("got %d %q, want 200", got.status, got.body)
	}
	if n := dials.Load(); n != 0 {
		t.Errorf("dials for the request: %d, want none: it has the probe's connection", n)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
	if n := counterValue(t, p.proxy.metrics.probes.WithLabelValues(probeProven)); n != 1 {
		t.Errorf("sluice_pod_probes_total{outcome=proven}: %v, want 1", n)
	}
}

func TestPodsThatAreNotProbed(t *testing.T) {
	okPod := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	forbidden := podReaderFunc(func(types.NamespacedName) (*corev1.Pod, error) {
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "hello-0", nil)
	})
	for _, tt := range []struct {
		name   string
		reader podReader
		change func(*v1alpha1.Function)
		why    string
	}{
		{"Off", specOf(container("a")), func(fn *v1alpha1.Function) { fn.Spec.Activation.Probe = v1alpha1.ProbeOff }, ""},
		{"a startup probe", specOf(container("a", func(c *corev1.Container) { c.StartupProbe = new(tcpSocket(1)) })), nil, "container a has a startupProbe"},
		{"no right to read it", forbidden, nil, "lacks get on pods"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := newPod(t, okPod)
			p := newPlane(t, nil)
			p.proxy.podReader = tt.reader
			obj := newTestFunction("hello")
			if tt.change != nil {
				tt.change(obj)
			}
			fn := p.add(obj)
			p.table.setSlice(newPodSlice("hello", 0, address, false))
			answers := make(chan answer, 1)
			url := p.gateURL(fn)
			go func() { answers <- get(t, url) }()
			eventually(t, "the function was woken", func() bool { return p.wakes.Load() > 0 })
			if tt.why != "" {
				eventually(t, "it says why", func() bool {
					why := fn.notProbed.Load()
					return why != nil && strings.Contains(*why, tt.why)
				})
			}
			select {
			case got := <-answers:
				t.Fatalf("got %d, want it held until Kubernetes calls the pod ready", got.status)
			default:
			}
			p.table.setSlice(newPodSlice("hello", 0, address, true))
			if got := <-answers; got.status != http.StatusOK {
				t.Errorf("got %d, want 200", got.status)
			}
		})
	}
}

// The API server's cache may still have the pod's predecessor of the same name, or nothing.
func TestPodIsReadUntilItIsTheOneWithTheAddress(t *testing.T) {
	address := newPod(t, echo)
	var reads atomic.Int64
	p := newPlane(t, nil)
	p.proxy.podReader = podReaderFunc(func(name types.NamespacedName) (*corev1.Pod, error) {
		obj, err := specOf(container("a"))(name)
		switch reads.Add(1) {
		case 1:
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name.Name)
		case 2:
			obj.UID = "of its predecessor"
			obj.Spec.HostNetwork = true
		}
		return obj, err
	})
	fn := p.add(newTestFunction("hello"))
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	if got := get(t, p.gateURL(fn)); got.status != http.StatusOK {
		t.Errorf("got %d, want 200", got.status)
	}
	if n := reads.Load(); n != 3 {
		t.Errorf("reads: %d, want 3", n)
	}
}

// A pod that was proven and dies before Kubernetes calls it ready has to be proven again.
func TestProvenPodThatDiesIsProvenAgain(t *testing.T) {
	address := refusing(t)
	p := newPlane(t, nil)
	p.proxy.podReader = specOf(container("a", readiness(httpGet("/", portOfAddress(t, address)))))
	fn := p.add(newTestFunction("hello"))
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	url := p.gateURL(fn)
	stop := serveAt(t, address, http.HandlerFunc(echo))
	if got := get(t, url); got.status != http.StatusOK {
		t.Fatalf("got %d, want 200", got.status)
	}
	pod := fn.pods.Load().ready[0]
	stop()
	answers := make(chan answer, 1)
	go func() { answers <- get(t, url) }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 && len(fn.pods.Load().ready) == 0 })
	serveAt(t, address, http.HandlerFunc(echo))
	if got := <-answers; got.status != http.StatusOK {
		t.Errorf("after the restart: got %d, want 200", got.status)
	}
	if s := fn.pods.Load(); len(s.ready) != 1 || s.ready[0] != pod {
		t.Error("the pod is another one after its container has started again")
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 2})
}

func TestProofExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		fn := p.add(newTestFunction("hello"))
		p.table.setSlice(newPodSlice("hello", 0, "10.0.0.1:80", false))
		pod := fn.pods.Load().coming[0]
		if !fn.prove(pod, time.Now().Add(time.Minute)) || fn.pods.Load().pick(nil) != pod {
			t.Fatal("a proven pod is not picked")
		}
		p.table.setSlice(newPodSlice("hello", 0, "10.0.0.1:80", false))
		pass(time.Minute - 1)
		if fn.pods.Load().pick(nil) != pod {
			t.Error("a proven pod is not picked until its proof ends")
		}
		pass(1)
		if fn.pods.Load().pick(nil) != nil {
			t.Error("a pod is picked that Kubernetes has not called ready for a minute")
		}
		fn.expireProofs()
		if s := fn.pods.Load(); len(s.ready) != 0 || len(s.coming) != 1 || !s.coming[0].wait {
			t.Errorf("got %+v, want the pod waited for and not probed", s)
		}
		p.table.setSlice(newPodSlice("hello", 0, "10.0.0.1:80", true))
		if s := fn.pods.Load(); len(s.ready) != 1 || s.pick(nil) == nil {
			t.Error("the pod is not picked when Kubernetes calls it ready after all")
		}
		// Turning unready is for the kubelet to judge, who needs several failures, and as many successes.
		p.table.setSlice(newPodSlice("hello", 0, "10.0.0.1:80", false))
		if s := fn.pods.Load(); len(s.ready) != 0 || len(s.coming) != 1 || !s.coming[0].wait {
			t.Errorf("got %+v, want a pod that was ready waited for and not probed", s)
		}
	})
}

func TestNobodyIsProbedWhenNobodyWaits(t *testing.T) {
	var asked atomic.Int64
	address := newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.Error(w, "", http.StatusServiceUnavailable)
	})
	p := newPlane(t, nil)
	p.proxy.podReader = specOf(container("a", readiness(httpGet("/", portOfAddress(t, address)))))
	fn := p.add(newTestFunction("hello"))
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.proxy.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx), fn, &gate{fn: fn})
	}()
	eventually(t, "the pod is probed", func() bool { return asked.Load() > 0 })
	cancel()
	<-ended
	p.proxy.wakers.Wait()
	if n := p.proxy.probing.Load(); n != 0 {
		t.Errorf("%d probers run though nobody waits", n)
	}
}

// The kubelet waits for initialDelaySeconds and counts successThreshold successes.
func TestDelayAndThreshold(t *testing.T) {
	var first atomic.Pointer[time.Time]
	var asked atomic.Int64
	address := newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerProbe) != "" {
			first.CompareAndSwap(nil, new(time.Now()))
			asked.Add(1)
		}
	})
	c := container("a", readiness(httpGet("/", portOfAddress(t, address))))
	c.ReadinessProbe.InitialDelaySeconds, c.ReadinessProbe.SuccessThreshold = 1, 3
	start := time.Now()
	_, _, answers := coldPlane(t, address, c)
	if got := <-answers; got.status != http.StatusOK {
		t.Fatalf("got %d, want 200", got.status)
	}
	if d := first.Load().Sub(start); d < time.Second {
		t.Errorf("first asked after %s, want not before initialDelaySeconds", d)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times, want successThreshold", n)
	}
}

func TestSpareThatThePodClosedIsNotUsed(t *testing.T) {
	ln := listen(t)
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var s spares
	s.put("a", conn, true)
	if s.take("a", false) != nil {
		t.Error("got a connection that speaks HTTP/1.1 for another protocol")
	}
	_ = other.Close()
	eventually(t, "the end has arrived", func() bool { return peerClosed(conn) })
	for range 2 {
		if s.take("a", true) != nil {
			t.Error("got a connection that the pod has closed")
		}
	}
}
