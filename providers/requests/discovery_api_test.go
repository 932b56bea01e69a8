package requests

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

var sliceKind = discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice")

// apiServer answers lists and watches of the kinds that discovery watches, so that its informers are the real ones.
type apiServer struct {
	*httptest.Server
	mapper *meta.DefaultRESTMapper

	mu       sync.Mutex // protects following
	version  int
	objects  map[schema.GroupVersionResource]map[types.NamespacedName]json.RawMessage
	watchers map[schema.GroupVersionResource][]chan watchEvent
	queries  map[string]string // of the last request, by resource
}

type watchEvent struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	s := &apiServer{
		mapper:   meta.NewDefaultRESTMapper(nil),
		objects:  map[schema.GroupVersionResource]map[types.NamespacedName]json.RawMessage{},
		watchers: map[schema.GroupVersionResource][]chan watchEvent{},
		queries:  map[string]string{},
	}
	for _, kind := range []schema.GroupVersionKind{podKind, serviceKind, deploymentKind, statefulSetKind, sliceKind, functionKind} {
		s.mapper.Add(kind, meta.RESTScopeNamespace)
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		s.objects[resource] = map[types.NamespacedName]json.RawMessage{}
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// set tells of a change of o; what is "DELETED" or anything else.
func (s *apiServer) set(t testing.TB, what string, kind schema.GroupVersionKind, o client.Object) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o.SetResourceVersion(fmt.Sprint(s.version))
	o.GetObjectKind().SetGroupVersionKind(kindServed(kind))
	encoded, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	resource, _ := meta.UnsafeGuessKindToResource(kind)
	key := client.ObjectKeyFromObject(o)
	if s.objects[resource][key] = encoded; what == "DELETED" {
		delete(s.objects[resource], key)
	}
	for _, w := range s.watchers[resource] {
		w <- watchEvent{what, encoded}
	}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := schema.GroupVersionResource{Version: path[1], Resource: path[len(path)-1]}
	if path[0] == "apis" {
		resource.Group, resource.Version = path[1], path[2]
	}
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	s.mu.Lock()
	if s.objects[resource] == nil {
		s.mu.Unlock()
		http.NotFound(w, r)
		return
	}
	s.queries[resource.Resource] = strings.TrimSpace(query.Get("labelSelector") + " " + query.Get("fieldSelector"))
	all := slices.Collect(maps.Values(s.objects[resource]))
	version := s.version
	if query.Get("watch") == "" {
		s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(map[string]any{
			"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": fmt.Sprint(version)}, "items": all,
		})
		return
	}
	events := make(chan watchEvent, 100)
	s.watchers[resource] = append(s.watchers[resource], events)
	s.mu.Unlock()
	stream := json.NewEncoder(w)
	if query.Get("sendInitialEvents") == "true" {
		for _, o := range all {
			_ = stream.Encode(watchEvent{"ADDED", o})
		}
		_ = stream.Encode(watchEvent{"BOOKMARK", json.RawMessage(fmt.Sprintf(
			`{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}}}`,
			s.kindOf(resource).Kind, s.kindOf(resource).GroupVersion(), version))})
	}
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			_ = stream.Encode(e)
		}
	}
}

func (s *apiServer) kindOf(resource schema.GroupVersionResource) schema.GroupVersionKind {
	kind, _ := s.mapper.KindFor(resource)
	return kindServed(kind)
}

// kindServed is the kind in an answer: of most, the metadata alone is asked for.
func kindServed(kind schema.GroupVersionKind) schema.GroupVersionKind {
	if kind == functionKind || kind == sliceKind {
		return kind
	}
	return metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata")
}

// discover runs discovery against the API until the test ends, and returns what it tells once it has told everything.
func (s *apiServer) discover(t testing.TB) *story {
	t.Helper()
	told := &story{t: t, sink: newRecorder()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	d := &Discovery{Config: &rest.Config{Host: s.URL, QPS: -1}, mapper: s.mapper}
	go func() { done <- d.Run(ctx, told.sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	told.eventually("synced", func() string {
		if told.sink.synced != 1 {
			return "not synced"
		}
		return ""
	})
	return told
}

// What is stripped from the cached objects leaves their changes visible: through real informers, every kind's changes
// arrive.
func TestDiscoveryThroughInformers(t *testing.T) {
	api := newAPIServer(t)
	fn := function(func(fn *v1alpha1.Function) { fn.Status.Gate = &v1alpha1.GateStatus{Port: 20001, ServicePort: "http"} })
	api.set(t, "ADDED", functionKind, fn)
	pods := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	api.set(t, "ADDED", sliceKind, pods)
	pod := &corev1.Pod{ObjectMeta: labelled("pod-10.0.0.1", "uid-10.0.0.1", map[string]string{"app": "hello"})}
	api.set(t, "ADDED", podKind, pod)
	s := api.discover(t)

	want := podEndpoint("10.0.0.1:8080", "/m", true, true, false)
	want.Pod.Exists, want.Pod.Labels = true, map[string]string{"app": "hello"}
	s.eventuallyPods("at the start", want)

	pod.Labels["canary"] = "yes"
	api.set(t, "MODIFIED", podKind, pod)
	want.Pod.Labels = map[string]string{"app": "hello", "canary": "yes"}
	s.eventuallyPods("labels of the pod", want)

	pods.Endpoints[0] = endpoint("10.0.0.1", false, false, false)
	api.set(t, "MODIFIED", sliceKind, pods)
	want.Ready, want.Expected = false, false
	s.eventuallyPods("readiness", want)

	workload := &metav1.PartialObjectMetadata{ObjectMeta: labelled("hello", "d", nil)}
	api.set(t, "ADDED", deploymentKind, workload)
	described := providers.Object{Kind: deploymentKind, Resource: deploymentResource, Name: "hello", Exists: true}
	none := providers.Object{Kind: serviceKind, Resource: serviceResource, Name: "hello"}
	s.eventuallyObjects("the Deployment comes", described, none)
	fn.Status.Conditions = superseded(true)
	api.set(t, "MODIFIED", functionKind, fn)
	s.eventuallyObjects("superseded, by the status", providers.Object{}, providers.Object{})
	fn.Status.Conditions = nil
	api.set(t, "MODIFIED", functionKind, fn)
	s.eventuallyObjects("no longer", described, none)
	api.set(t, "DELETED", deploymentKind, workload)
	described.Exists = false
	s.eventuallyObjects("the Deployment goes", described, none)

	pods.Labels[discoveryv1.LabelServiceName] = "another"
	api.set(t, "MODIFIED", sliceKind, pods)
	s.eventuallyPods("the slice becomes another Service's")
	api.set(t, "DELETED", functionKind, fn)
	s.eventually("deleted", func() string { return cmp.Diff(0, len(s.sink.functions)) })

	api.mu.Lock()
	defer api.mu.Unlock()
	if diff := cmp.Diff(map[string]string{
		"functions": "", "services": "", "deployments": "", "statefulsets": "",
		"endpointslices": "endpointslice.kubernetes.io/managed-by!=gate.sluice.dev",
		"pods":           "status.phase!=Succeeded,status.phase!=Failed",
	}, api.queries); diff != "" {
		t.Error("what is listed (-want +got):\n" + diff)
	}
}

// Writes of status that change nothing that is read, the most frequent of all events, are no look at the function.
func TestStatusIsNoChange(t *testing.T) {
	fn := func(change func(*v1alpha1.Function)) any {
		o := function(func(fn *v1alpha1.Function) { fn.Status.Gate = &v1alpha1.GateStatus{ServicePort: "http"} })
		change(o)
		kept, err := stripFunction(o)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	tests := []struct {
		name     string
		was, now any
		want     bool
	}{
		{
			name: "values of a function", want: true, was: fn(func(*v1alpha1.Function) {}),
			now: fn(func(fn *v1alpha1.Function) {
				fn.ResourceVersion, fn.Annotations = "2", map[string]string{"a": "b"}
				fn.Status.Replicas, fn.Status.Phase, fn.Status.Gate.InPath = 3, v1alpha1.Active, true
				fn.Status.Metrics = []v1alpha1.MetricStatus{{Name: v1alpha1.RequestsPerSecond}}
				fn.Status.Conditions = superseded(false)
			}),
		},
		{
			name: "the port of its Service", was: fn(func(*v1alpha1.Function) {}),
			now: fn(func(fn *v1alpha1.Function) { fn.Status.Gate.ServicePort = "web" }),
		},
		{
			name: "another has its workload", was: fn(func(*v1alpha1.Function) {}),
			now: fn(func(fn *v1alpha1.Function) { fn.Status.Conditions = superseded(true) }),
		},
		{
			name: "its labels", was: fn(func(*v1alpha1.Function) {}),
			now: fn(func(fn *v1alpha1.Function) { fn.Labels = nil }),
		},
		{
			name: "its spec", was: fn(func(*v1alpha1.Function) {}),
			now: fn(func(fn *v1alpha1.Function) { fn.Spec.Traffic.PodMetrics.Port = 1 }),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := alike(tt.was, tt.now); got != tt.want {
				t.Errorf("alike = %v, want %v", got, tt.want)
			}
		})
	}
}

// A sleeping function with its Deployment, its two Services and its empty slice, and a pod elsewhere, all as a cluster
// writes them, stay in the cache. The budget of the adapter's process is 250 MB for 10,000 functions.
func TestMemoryOfDiscovery(t *testing.T) {
	const n, most = 1000, 9 << 10
	api := newAPIServer(t)
	for i := range n {
		populate(t, api, i)
	}
	before := heap()
	s := api.discover(t)
	each := (heap() - before) / n
	t.Logf("%d bytes for each function with its objects", each)
	if each > most {
		t.Errorf("%d bytes for each function, want at most %d", each, most)
	}
	runtime.KeepAlive(s)
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // finalizers and pools take more than one
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func populate(t testing.TB, api *apiServer, i int) {
	name := fmt.Sprint("function-", i)
	described := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(fmt.Sprintf("7f1c2a3e-0000-4000-8000-%012d", i)), Generation: 3,
			CreationTimestamp: metav1.Time{Time: time.Unix(1700000000, 0)},
			Labels: map[string]string{
				"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7c5ddbdf54",
			},
			Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: strings.Repeat("x", 900)},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:replicas":{}}}`)},
			},
		}
	}
	fn := function(func(fn *v1alpha1.Function) {
		fn.ObjectMeta = described(name)
		fn.Status.Gate = &v1alpha1.GateStatus{Port: 20000, ServicePort: "http"}
		fn.Status.Conditions = superseded(false)
	})
	api.set(t, "ADDED", functionKind, fn)
	api.set(t, "ADDED", deploymentKind, &metav1.PartialObjectMetadata{ObjectMeta: described(name)})
	api.set(t, "ADDED", serviceKind, &metav1.PartialObjectMetadata{ObjectMeta: described(name)})
	api.set(t, "ADDED", serviceKind, &metav1.PartialObjectMetadata{ObjectMeta: described("sluice-" + name)})
	empty := slice("default", name, 8080, "http")
	empty.ObjectMeta = described(name + "-x7d2k")
	empty.Labels[discoveryv1.LabelServiceName] = name
	api.set(t, "ADDED", sliceKind, empty)
	api.set(t, "ADDED", podKind, &metav1.PartialObjectMetadata{ObjectMeta: described("other-" + name + "-7c5ddbdf54-x8k2p")})
}

// A change costs the same look at its function, however many others there are.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 5000} {
		b.Run(fmt.Sprint("functions=", n), func(b *testing.B) {
			api := newAPIServer(b)
			for i := range n {
				populate(b, api, i)
			}
			watched, err := cache.New(&rest.Config{Host: api.URL, QPS: -1}, cacheOptions(api.mapper))
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			b.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					b.Error(err)
				}
			})
			w := newWatcher(watched, "sluice-system", newRecorder())
			go func() { done <- watched.Start(ctx) }()
			if synced := w.watch(ctx, watched); !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
				b.Fatal("not synced")
			}
			changed := ref{functionKind, types.NamespacedName{Namespace: "default", Name: "function-7"}}
			b.ReportAllocs()
			for b.Loop() {
				if err := w.apply(ctx, changed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
