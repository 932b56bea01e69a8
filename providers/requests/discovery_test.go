package requests

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

func function(change func(*v1alpha1.Function)) *v1alpha1.Function {
	fn := &v1alpha1.Function{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello", Labels: map[string]string{"app": "x"}},
		Spec: v1alpha1.FunctionSpec{Traffic: &v1alpha1.Traffic{
			Mode: v1alpha1.Direct, PodMetrics: &v1alpha1.PodMetrics{Path: "/m", Requests: "calls_total", InFlight: "calls"},
		}},
	}
	if change != nil {
		change(fn)
	}
	return fn
}

// slice is an EndpointSlice of service with ports named by their numbers' names.
func slice(namespace, service string, port int32, portName string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: service + "-abc", Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		Endpoints:   endpoints,
	}
}

func endpoint(address string, ready, serving, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "pod-" + address, UID: types.UID("uid-" + address)},
	}
}

func podEndpoint(address, path string, ready, expected, isNew bool) providers.Endpoint {
	host := address[:len(address)-len(":8080")]
	return providers.Endpoint{
		Target: providers.Target{
			Kind: providers.Pod, Function: hello, UID: types.UID("uid-" + host), Address: address,
			Scrape: providers.Scrape{Path: path, Requests: "calls_total", InFlight: "calls"},
		},
		Pod:   providers.Object{Kind: podKind, Resource: podResource, Name: "pod-" + host},
		Ready: ready, Expected: expected, New: isNew,
	}
}

func TestPodEndpoints(t *testing.T) {
	pods := slice("default", "hello", 8080, "http",
		endpoint("10.0.0.1", true, true, false),
		endpoint("10.0.0.2", false, false, false),
		endpoint("10.0.0.3", false, true, true),
		endpoint("10.0.0.4", false, false, true))
	gate := slice("default", "hello", 20000, "http", endpoint("10.0.9.9", true, true, false))
	gate.Labels[discoveryv1.LabelManagedBy] = v1alpha1.GateManager
	want := []providers.Endpoint{
		podEndpoint("10.0.0.1:8080", "/m", true, true, false),
		podEndpoint("10.0.0.2:8080", "/m", false, false, false),
		podEndpoint("10.0.0.3:8080", "/m", false, true, false),
		podEndpoint("10.0.0.4:8080", "/m", false, false, false),
	}
	onPort := func(port int, preset v1alpha1.PodMetricsPreset) []providers.Endpoint {
		var es []providers.Endpoint
		for _, e := range want {
			e.Address = e.Address[:len(e.Address)-len("8080")] + strconv.Itoa(port)
			e.Scrape.Preset = preset
			es = append(es, e)
		}
		return es
	}
	tests := []struct {
		name   string
		change func(*v1alpha1.Function)
		want   []providers.Endpoint
	}{
		{name: "expected: ready, or serving while it terminates; never the gate", want: want},
		{name: "port by its name", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Service.Port = new(intstr.FromString("http"))
		}, want: want},
		{name: "port by number, resolved in status", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Service.Port = new(intstr.FromInt32(80))
			fn.Status.Gate = &v1alpha1.GateStatus{ServicePort: "http"}
		}, want: want},
		{name: "port that no pod has", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Service.Port = new(intstr.FromString("grpc"))
		}},
		{name: "own metrics port", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Service.Port = new(intstr.FromString("grpc"))
			fn.Spec.Traffic.PodMetrics.Port = 9102
		}, want: onPort(9102, "")},
		{name: "the preset's port", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.PodMetrics.Preset = v1alpha1.OpenTelemetry
		}, want: onPort(9464, v1alpha1.OpenTelemetry)},
		{name: "own metrics port, before the preset's", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.PodMetrics.Preset, fn.Spec.Traffic.PodMetrics.Port = v1alpha1.OpenTelemetry, 9102
		}, want: onPort(9102, v1alpha1.OpenTelemetry)},
		{name: "proxied: activators count", change: func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Mode, fn.Spec.Traffic.PodMetrics = v1alpha1.Proxied, nil
		}},
		{name: "nobody counts", change: func(fn *v1alpha1.Function) { fn.Spec.Traffic.PodMetrics = nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fn := function(tt.change)
			got := podEndpoints(fn, providers.NewFunction(fn), []*discoveryv1.EndpointSlice{gate, pods})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

func TestActivatorEndpoints(t *testing.T) {
	s := slice("sluice-system", "sluice-activator", 9090, "metrics",
		endpoint("10.0.0.1", true, true, false), endpoint("10.0.0.2", false, false, false), endpoint("10.0.0.3", false, true, true))
	s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(8080))})
	target := func(host string, ready bool) providers.Endpoint {
		return providers.Endpoint{Target: providers.Target{
			Kind: providers.Activator, UID: types.UID("uid-" + host), Address: host + ":9090", Scrape: providers.Scrape{Path: "/metrics"},
		}, Ready: ready, Expected: true}
	}
	want := []providers.Endpoint{target("10.0.0.1", true), target("10.0.0.2", false), target("10.0.0.3", false)}
	if diff := cmp.Diff(want, activatorEndpoints([]*discoveryv1.EndpointSlice{s})); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// recorder is a Sink that keeps what it was last told.
type recorder struct {
	mu         sync.Mutex // protects following
	functions  map[types.NamespacedName]providers.Function
	pods       map[types.NamespacedName][]providers.Endpoint
	activators []providers.Endpoint
	synced     int
}

func newRecorder() *recorder {
	return &recorder{
		functions: map[types.NamespacedName]providers.Function{}, pods: map[types.NamespacedName][]providers.Endpoint{},
	}
}

func (r *recorder) SetFunction(fn providers.Function, pods []providers.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.functions[fn.Name], r.pods[fn.Name] = fn, pods
}

func (r *recorder) DeleteFunction(name types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.functions, name)
	delete(r.pods, name)
}

func (r *recorder) SetActivators(activators []providers.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.activators = activators
}

func (r *recorder) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced++
}

// story is a watcher over a fake API, with the events of every change.
type story struct {
	t    testing.TB
	api  client.Client
	w    *watcher
	sink *recorder
}

func newStory(t *testing.T, objects ...client.Object) *story {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		v1alpha1.AddToScheme, discoveryv1.AddToScheme, corev1.AddToScheme, appsv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	s := &story{t: t, sink: newRecorder(), api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.Function{}).
		WithIndex(&discoveryv1.EndpointSlice{}, slicesByService, sliceService).Build()}
	s.w = newWatcher(s.api, "sluice-system", s.sink)
	atFirst := map[schema.GroupVersionKind][]any{}
	for _, o := range objects {
		if kind, err := s.api.GroupVersionKindFor(o); err == nil {
			atFirst[kind] = append(atFirst[kind], metadataOf(o))
		}
	}
	for kind, m := range s.w.metadata {
		if err := m.Replace(atFirst[kind], ""); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.w.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run = %v", err)
		}
	})
	s.eventually("synced", func() string {
		if s.sink.synced != 1 {
			return "not synced"
		}
		return ""
	})
	return s
}

// must sends the event of a change that has been made to o.
func (s *story) must(err error, o client.Object) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	kind, err := s.api.GroupVersionKindFor(o)
	if err != nil {
		s.t.Fatal(err)
	}
	if m := s.w.metadata[kind]; m != nil {
		s.follow(m, o)
		return
	}
	if kind == sliceKind {
		kind = serviceKind
	}
	s.w.changed(kind, o)
}

// follow tells m what the API has of o.
func (s *story) follow(m *metadata, o client.Object) {
	s.t.Helper()
	now := o.DeepCopyObject().(client.Object)
	err := s.api.Get(s.t.Context(), client.ObjectKeyFromObject(o), now)
	event := m.Update
	if apierrors.IsNotFound(err) {
		event, err = m.Delete, nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if err := event(metadataOf(now)); err != nil {
		s.t.Fatal(err)
	}
}

func metadataOf(o client.Object) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), Labels: o.GetLabels(),
	}}
}

func (s *story) eventually(what string, wrong func() string) {
	s.t.Helper()
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		s.sink.mu.Lock()
		last = wrong()
		s.sink.mu.Unlock()
		if last == "" {
			return
		}
	}
	s.t.Fatalf("%s: %s", what, last)
}

func (s *story) eventuallyPods(what string, want ...providers.Endpoint) {
	s.t.Helper()
	s.eventually(what, func() string { return cmp.Diff(want, s.sink.pods[hello]) })
}

func TestDiscoveryFollowsPods(t *testing.T) {
	pods := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	s := newStory(t, function(nil), pods)
	ctx := t.Context()
	old := podEndpoint("10.0.0.1:8080", "/m", true, true, false)
	s.eventuallyPods("at the start: not new", old)
	if fn := s.sink.functions[hello]; !fn.Rule.ByPods || !fn.Rule.Gauge || fn.Labels["app"] != "x" {
		t.Errorf("function = %+v", fn)
	}

	pods.Endpoints = append(pods.Endpoints, endpoint("10.0.0.2", false, false, false))
	s.must(s.api.Update(ctx, pods), pods)
	s.eventuallyPods("a pod comes", old, podEndpoint("10.0.0.2:8080", "/m", false, false, true))

	pods.Endpoints[1] = endpoint("10.0.0.2", true, true, false)
	s.must(s.api.Update(ctx, pods), pods)
	two := podEndpoint("10.0.0.2:8080", "/m", true, true, true)
	s.eventuallyPods("it is ready, and still new", old, two)

	fn := &v1alpha1.Function{}
	if err := s.api.Get(ctx, hello, fn); err != nil {
		t.Fatal(err)
	}
	fn.Spec.Traffic.PodMetrics.Path = "/other"
	s.must(s.api.Update(ctx, fn), fn)
	s.eventuallyPods("counted otherwise: nobody is new",
		podEndpoint("10.0.0.1:8080", "/other", true, true, false), podEndpoint("10.0.0.2:8080", "/other", true, true, false))

	s.must(s.api.Delete(ctx, pods), pods)
	s.eventuallyPods("asleep")

	s.must(s.api.Delete(ctx, fn), fn)
	s.eventually("deleted", func() string { return cmp.Diff(0, len(s.sink.functions)) })
}

// TestServiceLedToOtherPods: pods that have been there for long have counted before, although they were not the function's.
func TestServiceLedToOtherPods(t *testing.T) {
	pod := func(address string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: labelled("pod-"+address, types.UID("uid-"+address), nil)}
	}
	pods := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	s := newStory(t, function(nil), pods, pod("10.0.0.1"), pod("10.0.0.2"), pod("10.0.0.3"))
	exists := func(address string, ready, isNew bool) providers.Endpoint {
		e := podEndpoint(address+":8080", "/m", ready, ready, isNew)
		e.Pod.Exists = true
		return e
	}
	s.eventuallyPods("at the start", exists("10.0.0.1", true, false))
	pods.Endpoints = []discoveryv1.Endpoint{endpoint("10.0.0.2", true, true, false), endpoint("10.0.0.3", false, false, false)}
	s.must(s.api.Update(t.Context(), pods), pods)
	s.eventuallyPods("one that serves already, and one that was slow to begin",
		exists("10.0.0.2", true, false), exists("10.0.0.3", false, true))

	made := pod("10.0.0.4")
	s.must(s.api.Create(t.Context(), made), made)
	pods.Endpoints = []discoveryv1.Endpoint{endpoint("10.0.0.4", true, true, false)}
	s.must(s.api.Update(t.Context(), pods), pods)
	s.eventuallyPods("one that was just made, and is ready at once", exists("10.0.0.4", true, true))
}

func TestKnownPodAtAnotherPortIsNotNew(t *testing.T) {
	pods := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	fn := function(func(fn *v1alpha1.Function) { fn.Status.Gate = &v1alpha1.GateStatus{ServicePort: "http"} })
	s := newStory(t, fn, pods)
	s.eventuallyPods("at the start", podEndpoint("10.0.0.1:8080", "/m", true, true, false))
	pods.Ports[0].Port = new(int32(9999))
	s.must(s.api.Update(t.Context(), pods), pods)
	want := podEndpoint("10.0.0.1:8080", "/m", true, true, false)
	want.Address = "10.0.0.1:9999"
	s.eventuallyPods("after the port changed", want)
}

func TestDiscoveryFollowsActivators(t *testing.T) {
	s := newStory(t)
	ctx := t.Context()
	acts := slice("sluice-system", v1alpha1.ActivatorService, 9090, "metrics", endpoint("10.0.0.1", true, true, false))
	s.must(s.api.Create(ctx, acts), acts)
	elsewhere := slice("default", v1alpha1.ActivatorService, 9090, "metrics", endpoint("10.6.6.6", true, true, false))
	s.must(s.api.Create(ctx, elsewhere), elsewhere)
	s.eventually("listed", func() string {
		var got []string
		for _, a := range s.sink.activators {
			if !a.New {
				got = append(got, "old")
			}
			got = append(got, a.Address)
		}
		return cmp.Diff([]string{"10.0.0.1:9090"}, got)
	})
	s.must(s.api.Delete(ctx, acts), acts)
	s.eventually("gone", func() string { return cmp.Diff(0, len(s.sink.activators)) })
}
