package requests

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

var deploymentResource = schema.GroupResource{Group: "apps", Resource: "deployments"}

func labelled(name string, uid types.UID, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid, Labels: labels}
}

func superseded(is bool) []metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "AsExpected"}
	if is {
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonWorkloadConflict
	}
	return []metav1.Condition{c}
}

func (s *story) eventuallyObjects(what string, workload, service providers.Object) {
	s.t.Helper()
	s.eventually(what, func() string {
		fn := s.sink.functions[hello]
		return cmp.Diff([]providers.Object{workload, service}, []providers.Object{fn.Workload, fn.Service})
	})
}

func TestDiscoveryFollowsObjects(t *testing.T) {
	s := newStory(t, function(nil))
	ctx := t.Context()
	workload := providers.Object{Kind: deploymentKind, Resource: deploymentResource, Name: "hello"}
	service := providers.Object{Kind: serviceKind, Resource: serviceResource, Name: "hello"}
	s.eventuallyObjects("neither is there", workload, service)

	deployment := &appsv1.Deployment{ObjectMeta: labelled("hello", "d", map[string]string{"tier": "web"})}
	s.must(s.api.Create(ctx, deployment), deployment)
	workload.Exists, workload.Labels = true, deployment.Labels
	s.eventuallyObjects("the Deployment is made", workload, service)

	own := &corev1.Service{ObjectMeta: labelled("hello", "s", nil)}
	s.must(s.api.Create(ctx, own), own)
	service.Exists = true
	s.eventuallyObjects("the Service is made", workload, service)

	deployment.Labels = map[string]string{"tier": "back"}
	s.must(s.api.Update(ctx, deployment), deployment)
	workload.Labels = deployment.Labels
	s.eventuallyObjects("labels change", workload, service)

	// A StatefulSet of that name is another object.
	set := &appsv1.StatefulSet{ObjectMeta: labelled("hello", "t", map[string]string{"tier": "none"})}
	s.must(s.api.Create(ctx, set), set)
	s.must(s.api.Delete(ctx, deployment), deployment)
	workload.Exists, workload.Labels = false, nil
	s.eventuallyObjects("the Deployment goes", workload, service)
}

func TestDiscoveryOfStatefulSet(t *testing.T) {
	fn := function(func(fn *v1alpha1.Function) {
		fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}
		fn.Spec.Traffic = nil
	})
	s := newStory(t, fn, &appsv1.StatefulSet{ObjectMeta: labelled("db", "t", map[string]string{"a": "b"})})
	s.eventuallyObjects("found; without traffic there is no Service", providers.Object{
		Kind: statefulSetKind, Resource: schema.GroupResource{Group: "apps", Resource: "statefulsets"}, Name: "db",
		Labels: map[string]string{"a": "b"}, Exists: true,
	}, providers.Object{})
}

// The values of a workload that two Functions name are the older one's; the younger keeps its own form, and owns the
// workload again when the older one has gone.
func TestSupersededOwnsNoObjects(t *testing.T) {
	fn := function(func(fn *v1alpha1.Function) { fn.Status.Conditions = superseded(true) })
	pods := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	s := newStory(t, fn, pods, &appsv1.Deployment{ObjectMeta: labelled("hello", "d", nil)})
	s.eventuallyObjects("superseded", providers.Object{}, providers.Object{})
	pod := podEndpoint("10.0.0.1:8080", "/m", true, true, false)
	own := pod.Pod
	pod.Pod = providers.Object{}
	s.eventuallyPods("its pods are measured, and are the older one's", pod)
	if got := s.sink.functions[hello]; !got.Rule.ByPods {
		t.Errorf("function = %+v; want it told, with who counts", got)
	}

	fn.Status.Conditions = superseded(false)
	s.must(s.api.Status().Update(t.Context(), fn), fn)
	s.eventuallyObjects("no longer",
		providers.Object{Kind: deploymentKind, Resource: deploymentResource, Name: "hello", Exists: true},
		providers.Object{Kind: serviceKind, Resource: serviceResource, Name: "hello"})
	pod.Pod = own
	s.eventuallyPods("no longer", pod)
}

func TestDiscoveryFollowsLabelsOfPods(t *testing.T) {
	slice := slice("default", "hello", 8080, "http", endpoint("10.0.0.1", true, true, false))
	s := newStory(t, function(nil), slice)
	ctx := t.Context()
	want := podEndpoint("10.0.0.1:8080", "/m", true, true, false)
	s.eventuallyPods("the slice is known before the pod", want)

	pod := &corev1.Pod{ObjectMeta: labelled("pod-10.0.0.1", "uid-10.0.0.1", map[string]string{"app": "hello"})}
	s.must(s.api.Create(ctx, pod), pod)
	want.Pod.Exists, want.Pod.Labels = true, pod.Labels
	s.eventuallyPods("then the pod", want)

	pod.Labels = map[string]string{"app": "hello", "canary": "yes"}
	s.must(s.api.Update(ctx, pod), pod)
	want.Pod.Labels = pod.Labels
	s.eventuallyPods("its labels change", want)

	// As with StatefulSets: the pod of that name is another one, whose labels say nothing of the one that was measured.
	s.must(s.api.Delete(ctx, pod), pod)
	again := &corev1.Pod{ObjectMeta: labelled("pod-10.0.0.1", "another", map[string]string{"app": "hello"})}
	s.must(s.api.Create(ctx, again), again)
	want.Pod.Exists, want.Pod.Labels = false, nil
	s.eventuallyPods("replaced", want)
}

func TestQueryEndpoints(t *testing.T) {
	query := func(change func(*v1alpha1.PrometheusMetric)) v1alpha1.Metric {
		m := &v1alpha1.PrometheusMetric{
			Name: "depth", Server: "http://prometheus:9090", Query: `sum(depth{ns="{{.Namespace}}",fn="{{ .Function }}"})`,
		}
		if change != nil {
			change(m)
		}
		return v1alpha1.Metric{Prometheus: m}
	}
	want := func(change func(*providers.Ask)) providers.Endpoint {
		ask := providers.Ask{
			Metric: "depth", Server: "http://prometheus:9090", Expr: `sum(depth{ns="default",fn="hello"})`,
		}
		if change != nil {
			change(&ask)
		}
		return providers.Endpoint{
			Target: providers.Target{Kind: providers.Query, Function: hello, Ask: ask}, Ready: true, Expected: true,
		}
	}
	tests := []struct {
		name    string
		metrics []v1alpha1.Metric
		want    []providers.Endpoint
	}{
		{name: "none"},
		{name: "only those of Prometheus", metrics: []v1alpha1.Metric{{RequestRate: &v1alpha1.RequestRateMetric{}}}},
		{name: "names filled in", metrics: []v1alpha1.Metric{query(nil)}, want: []providers.Endpoint{want(nil)}},
		{
			name: "each with its own",
			metrics: []v1alpha1.Metric{
				query(func(m *v1alpha1.PrometheusMetric) { m.AuthRef = &v1alpha1.SecretRef{Name: "auth"} }),
				query(func(m *v1alpha1.PrometheusMetric) { m.Name, m.EmptyIs = "errors", "Zero" }),
				query(func(m *v1alpha1.PrometheusMetric) { m.Name, m.EmptyIs = "others", "Unknown" }),
			},
			want: []providers.Endpoint{
				want(func(a *providers.Ask) { a.AuthSecret = "auth" }),
				want(func(a *providers.Ask) { a.Metric, a.EmptyIsZero = "errors", true }),
				want(func(a *providers.Ask) { a.Metric = "others" }),
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fn := function(func(fn *v1alpha1.Function) { fn.Spec.Metrics = tt.metrics })
			if diff := cmp.Diff(tt.want, queryEndpoints(fn)); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

// A query is measured from the first look on, however late it appears: it has no past that could be missed.
func TestQueriesWithoutTraffic(t *testing.T) {
	fn := function(func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil })
	s := newStory(t, fn)
	s.eventuallyPods("nothing to measure")
	fn.Spec.Metrics = []v1alpha1.Metric{{Prometheus: &v1alpha1.PrometheusMetric{Name: "depth", Server: "http://p", Query: "1"}}}
	s.must(s.api.Update(t.Context(), fn), fn)
	s.eventuallyPods("a query comes", providers.Endpoint{
		Target: providers.Target{Kind: providers.Query, Function: hello, Ask: providers.Ask{Metric: "depth", Server: "http://p", Expr: "1"}},
		Ready:  true, Expected: true,
	})
}

// What a function named is forgotten with it, and what it names no more is not followed.
func TestNamesDoNotPile(t *testing.T) {
	w := newWatcher(nil, "sluice-system", newRecorder())
	named := func(kind schema.GroupVersionKind, name string) ref {
		return ref{kind, types.NamespacedName{Namespace: "default", Name: name}}
	}
	a, b := types.NamespacedName{Namespace: "default", Name: "a"}, types.NamespacedName{Namespace: "default", Name: "b"}
	shared := named(serviceKind, "web")
	w.name(a, nil, []ref{shared, named(podKind, "a-1")})
	w.name(b, nil, []ref{shared})
	w.name(a, []ref{shared, named(podKind, "a-1")}, []ref{shared, named(podKind, "a-2")})
	want := map[ref][]types.NamespacedName{shared: {b, a}, named(podKind, "a-2"): {a}}
	if diff := cmp.Diff(want, w.namedBy); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	w.name(a, []ref{shared, named(podKind, "a-2")}, nil)
	w.name(b, []ref{shared}, nil)
	if len(w.namedBy) != 0 {
		t.Errorf("left behind: %v", w.namedBy)
	}
}

// Thousands of events about the pods of one function are one look at it.
func TestBurstsAreOneLook(t *testing.T) {
	w := newWatcher(nil, "sluice-system", newRecorder())
	var names []ref
	for i := range 1000 {
		names = append(names, ref{podKind, types.NamespacedName{Namespace: "default", Name: fmt.Sprint("pod-", i)}})
	}
	w.name(hello, nil, names)
	for _, r := range names {
		w.queue.Add(r)
	}
	for range names {
		r, _ := w.queue.Get()
		if err := w.apply(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		w.queue.Done(r)
	}
	if got := w.queue.Len(); got != 1 {
		t.Errorf("%d looks are queued, want 1", got)
	}
}

// TestAgeOfAPod: an object is as old as the watch has known it, whatever changes on it, and another of its name is not.
func TestAgeOfAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := func(name string, uid types.UID, labels map[string]string) *metav1.PartialObjectMetadata {
			return &metav1.PartialObjectMetadata{ObjectMeta: labelled(name, uid, labels)}
		}
		m := &metadata{changed: func(types.NamespacedName) {}}
		tell := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
		}
		want := func(name string, uid types.UID, least, most time.Duration) {
			t.Helper()
			if age := m.age(types.NamespacedName{Namespace: "default", Name: name}, uid); age < least || age > most {
				t.Errorf("%s is %s old, want %s to %s", name, age, least, most)
			}
		}
		tell(m.Replace([]any{of("a", "1", nil)}, ""))
		want("a", "1", time.Hour, math.MaxInt64)
		tell(m.Add(of("b", "2", nil)))
		tell(m.Update(of("b", "2", map[string]string{"x": "y"})))
		want("b", "2", 2*time.Minute, 2*time.Minute)
		tell(m.Replace([]any{of("a", "1", nil), of("b", "2", nil), of("c", "3", nil)}, ""))
		want("a", "1", time.Hour, math.MaxInt64)
		want("b", "2", 3*time.Minute, 3*time.Minute)
		want("c", "3", time.Minute, time.Minute)
		tell(m.Update(of("c", "4", nil)))
		want("c", "4", time.Minute, time.Minute)
		want("c", "3", 0, 0)
		want("d", "5", 0, 0)
	})
}
