package adapter

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// fakeReader has a value or an error for each function and metric.
type fakeReader map[types.NamespacedName]fakeFunction

type fakeFunction struct {
	labels            map[string]string
	metrics           []string
	value             providers.Value
	err               error
	workload, service providers.Object
	pods              []fakePod
}

type fakePod struct {
	name   string
	labels map[string]string
	value  providers.Value
	err    error
}

func (r fakeReader) Info(name types.NamespacedName) (providers.Info, error) {
	fn, ok := r[name]
	if !ok {
		return providers.Info{}, providers.ErrNoFunction
	}
	return providers.Info{
		Name: name, Labels: fn.labels, Metrics: fn.metrics, Workload: fn.workload, Service: fn.service,
	}, nil
}

func (r fakeReader) List(namespace string) []providers.Info {
	var infos []providers.Info
	for name := range r {
		if namespace == "" || name.Namespace == namespace {
			info, _ := r.Info(name)
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b providers.Info) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	return infos
}

func (r fakeReader) Value(name types.NamespacedName, metric string) (providers.Value, error) {
	fn, ok := r[name]
	switch {
	case !ok:
		return providers.Value{}, providers.ErrNoFunction
	case fn.err == nil && !slices.Contains(fn.metrics, metric):
		return providers.Value{}, &providers.Unknown{Reason: providers.NoMetric, Detail: "there is no metric " + metric}
	case metric == v1alpha1.IdleSeconds:
		return providers.Value{Value: fn.value.Value, At: fn.value.At}, fn.err
	}
	return fn.value, fn.err
}

func (r fakeReader) Owner(namespace string, resource schema.GroupResource, name string) (providers.Info, error) {
	var found []providers.Info
	for _, fn := range r.List(namespace) {
		for _, o := range []providers.Object{fn.Workload, fn.Service} {
			if o.Resource == resource && o.Name == name {
				found = append(found, fn)
			}
		}
	}
	switch len(found) {
	case 0:
		return providers.Info{}, providers.ErrNoFunction
	case 1:
		return found[0], nil
	}
	ambiguous := &providers.Ambiguous{}
	for _, fn := range found {
		ambiguous.Functions = append(ambiguous.Functions, fn.Name)
	}
	return providers.Info{}, ambiguous
}

func (r fakeReader) Pods(namespace string) []providers.PodInfo {
	var infos []providers.PodInfo
	for _, fn := range r.List(namespace) {
		for _, pod := range r[fn.Name].pods {
			infos = append(infos, providers.PodInfo{
				Pod: providers.Object{Kind: podKind, Resource: pods, Name: pod.name, Labels: pod.labels, Exists: true}, Function: fn.Name,
			})
		}
	}
	slices.SortFunc(infos, func(a, b providers.PodInfo) int { return cmp.Compare(a.Pod.Name, b.Pod.Name) })
	return infos
}

func (r fakeReader) PodValue(namespace, name, metric string) (providers.Value, error) {
	for _, fn := range r.List(namespace) {
		for _, pod := range r[fn.Name].pods {
			switch {
			case pod.name != name:
			case !slices.Contains(ofPods, metric):
				return providers.Value{}, &providers.Unknown{Reason: providers.NoMetric, Detail: "there is no metric " + metric + " of a pod"}
			default:
				return pod.value, pod.err
			}
		}
	}
	return providers.Value{}, providers.ErrNoPod
}

func named(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func deployment(name string, labels map[string]string) providers.Object {
	return providers.Object{
		Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
		Resource: schema.GroupResource{Group: "apps", Resource: "deployments"}, Name: name, Labels: labels, Exists: true,
	}
}

func service(name string, labels map[string]string) providers.Object {
	return providers.Object{
		Kind:     schema.GroupVersionKind{Version: "v1", Kind: "Service"},
		Resource: schema.GroupResource{Resource: "services"}, Name: name, Labels: labels, Exists: true,
	}
}

var (
	at     = time.Date(2026, 11, 23, 6, 30, 15, 0, time.UTC)
	silent = &providers.Unknown{
		Reason: providers.Stale, Source: "pod 10.0.0.7:8080", Age: 7200 * time.Millisecond, Err: errors.New("i/o timeout"),
	}
)

// functions are a world of one awake, one idle, one unknown and one uncounted function. In namespace shop all is known:
// two functions, of which one has pods that count, and a third that only has a query.
var functions = fakeReader{
	named("awake"): {
		labels: map[string]string{"app": "a"}, metrics: append(slices.Clone(reserved), "queue_depth"),
		value:    providers.Value{Value: 12.3456, At: at, Window: 30 * time.Second},
		workload: deployment("awake-v2", map[string]string{"tier": "web"}),
		service:  service("front", map[string]string{"tier": "web"}),
		pods: []fakePod{
			{name: "awake-1", labels: map[string]string{"app": "a"}, value: providers.Value{Value: 8, At: at, Window: 30 * time.Second}},
			{name: "awake-2", labels: map[string]string{"app": "a"}, err: silent},
			{name: "awake-3", labels: map[string]string{"app": "a"}, value: providers.Value{Value: 4.3456, At: at, Window: 12 * time.Second}},
		},
	},
	named("idle"): {
		metrics: reserved, value: providers.Value{At: at, Window: 29600 * time.Millisecond},
		workload: providers.Object{
			Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"},
			Resource: schema.GroupResource{Group: "apps", Resource: "statefulsets"}, Name: "idle", Exists: true,
		},
		service: service("shared", nil),
	},
	named("stale"): {
		labels: map[string]string{"app": "a"}, metrics: reserved, err: silent,
		workload: deployment("stale", map[string]string{"tier": "web"}),
		service:  service("shared", nil),
		pods:     []fakePod{{name: "stale-1", labels: map[string]string{"app": "stale"}, err: silent}},
	},
	named("uncounted"): {
		metrics: []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds},
		err:     &providers.Unknown{Reason: providers.NotCounted, Remedy: "name a gauge in spec.traffic.podMetrics.inFlight"},
		workload: providers.Object{
			Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
			Resource: schema.GroupResource{Group: "apps", Resource: "deployments"}, Name: "gone",
		},
	},
	{Namespace: "other", Name: "awake"}: {metrics: reserved, value: providers.Value{Value: 1, At: at}},
	{Namespace: "shop", Name: "cart"}: {
		metrics: reserved, value: providers.Value{Value: 2.5, At: at.Add(-2 * time.Second), Window: time.Minute},
		workload: deployment("cart", nil),
	},
	{Namespace: "shop", Name: "orders"}: {
		metrics: []string{"queue_depth"}, value: providers.Value{Value: 1000, At: at},
	},
	{Namespace: "shop", Name: "pay"}: {
		metrics: reserved, value: providers.Value{Value: 40, At: at, Window: 30 * time.Second}, workload: deployment("pay", nil),
	},
}

func metric(name string) provider.CustomMetricInfo {
	return provider.CustomMetricInfo{GroupResource: v1alpha1.FunctionResource, Namespaced: true, Metric: name}
}

func selector(t *testing.T, s string) labels.Selector {
	t.Helper()
	parsed, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestGetMetricByNameExplainsWhatItCannotAnswer(t *testing.T) {
	long := providers.Unknown{Reason: providers.SourceError, Source: "query q at http://p", Err: errors.New("bad\n\tgate " + strings.Repeat("\u00e9", 999))}
	world := maps.Clone(functions)
	world[types.NamespacedName{Namespace: "lies", Name: "long"}] = fakeFunction{metrics: reserved, err: &long}
	nan := providers.Value{Value: math.NaN(), At: at}
	world[types.NamespacedName{Namespace: "lies", Name: "nan"}] = fakeFunction{metrics: reserved, value: nan}
	world[types.NamespacedName{Namespace: "lies", Name: "negative"}] = fakeFunction{metrics: reserved, value: providers.Value{Value: -1, At: at}}
	world[types.NamespacedName{Namespace: "lies", Name: "infinite"}] = fakeFunction{metrics: reserved, value: providers.Value{Value: math.Inf(1), At: at}}
	world[types.NamespacedName{Namespace: "lies", Name: "timeless"}] = fakeFunction{metrics: reserved, value: providers.Value{Value: 1}}
	tests := []struct {
		name      string
		resource  string // default functions.sluice.dev
		namespace string // default default
		object    string
		metric    string // default requests_per_second
		selector  string
		code      int32
		want      string
	}{
		{name: "no such function", object: "helo", code: 404, want: "there is no Function default/helo"},
		{
			name: "no such metric", object: "awake", metric: "latency", code: 404,
			want: "Function default/awake has no metric latency, it has requests_per_second, requests_in_flight, " +
				"request_duration_seconds, idle_seconds, queue_depth",
		},
		{
			name: "no such metric of a function without any that is known", object: "uncounted", metric: "latency", code: 404,
			want: "Function default/uncounted has no metric latency, it has requests_per_second, idle_seconds",
		},
		{
			name: "metric that nobody counts", object: "uncounted", metric: v1alpha1.RequestsInFlight, code: 404,
			want: "Function default/uncounted has no metric requests_in_flight, it has requests_per_second, idle_seconds: " +
				"nobody counts it: name a gauge in spec.traffic.podMetrics.inFlight",
		},
		{
			name: "unknown value", object: "stale", code: 503,
			want: "requests_per_second of Function default/stale is unknown: stale: the last answer of pod 10.0.0.7:8080 " +
				"is 7.2s old: i/o timeout",
		},
		{
			name: "words of a source are one line and end", namespace: "lies", object: "long", code: 503,
			want: "requests_per_second of Function lies/long is unknown: query q at http://p cannot be measured: bad gate " +
				strings.Repeat("\u00e9", 231) + "...",
		},
		{name: "not a number", namespace: "lies", object: "nan", code: 503, want: "requests_per_second of Function lies/nan is unknown: no data yet"},
		{name: "negative", namespace: "lies", object: "negative", code: 503, want: "requests_per_second of Function lies/negative is unknown: no data yet"},
		{name: "infinite", namespace: "lies", object: "infinite", code: 503, want: "requests_per_second of Function lies/infinite is unknown: no data yet"},
		{name: "of no time", namespace: "lies", object: "timeless", code: 503, want: "requests_per_second of Function lies/timeless is unknown: no data yet"},
		{
			name: "metric labels, of which there are none", object: "awake", selector: "pod=x", code: 404,
			want: `metric requests_per_second has no labels, so metricLabelSelector "pod=x" matches none`,
		},
		{
			name: "no namespace", object: "/awake", code: 404,
			want: "functions.sluice.dev are namespaced: read " +
				"/apis/custom.metrics.k8s.io/v1beta2/namespaces/NAMESPACE/functions.sluice.dev/awake/METRIC",
		},
		{
			name: "Deployment that is nobody's", resource: "deployments.apps", object: "awake", code: 404,
			want: "no Function has deployments.apps default/awake as its workload or Service",
		},
		{
			name: "Deployment of an unknown value", resource: "deployments.apps", object: "stale", code: 503,
			want: "requests_per_second of Function default/stale (for Deployment default/stale) is unknown: stale: the last " +
				"answer of pod 10.0.0.7:8080 is 7.2s old: i/o timeout",
		},
		{
			name: "Deployment that is not there", resource: "deployments.apps", object: "gone", code: 404,
			want: "there is no Deployment default/gone, which Function default/uncounted names",
		},
		{
			name: "Service of two functions", resource: "services", object: "shared", code: 404,
			want: "services default/shared has no metric of its own: it belongs to 2 functions, default/idle, default/stale: " +
				"ask for one of them, as functions.sluice.dev",
		},
		{
			name: "function of Kubeless", resource: "functions.kubeless.io", object: "helo", code: 404,
			want: "there is no Function default/helo",
		},
		{
			name: "resource of another kind", resource: "configmaps", object: "awake", code: 404,
			want: "no Function has configmaps default/awake as its workload or Service",
		},
		{
			name: "pod that nobody counts", resource: "pods", object: "idle-0", code: 404,
			want: "Pod default/idle-0 does not count its own requests: only pods do that a Function in mode Direct finds by its " +
				"Service, with spec.traffic.podMetrics",
		},
		{
			name: "pod that does not answer", resource: "pods", object: "awake-2", code: 503,
			want: "requests_per_second of Pod default/awake-2 is unknown: stale: the last answer of pod 10.0.0.7:8080 is 7.2s " +
				"old: i/o timeout",
		},
		{
			name: "metric that pods have not", resource: "pods", object: "awake-1", metric: v1alpha1.IdleSeconds, code: 404,
			want: "Pod default/awake-1 has no metric idle_seconds: there is no metric idle_seconds of a pod",
		},
		{
			name: "namespace with an unknown function", resource: "namespaces", object: "/default", code: 503,
			want: "requests_per_second of Function default/stale is unknown: stale: the last answer of pod 10.0.0.7:8080 " +
				"is 7.2s old: i/o timeout",
		},
		{
			name: "metric without a sum", resource: "namespaces", object: "/shop", metric: v1alpha1.IdleSeconds, code: 404,
			want: "a namespace has no metric idle_seconds, it has requests_per_second, requests_in_flight: a sum of anything " +
				"else says nothing",
		},
		{
			name: "namespace without functions", resource: "namespaces", object: "/empty", code: 404,
			want: "namespace empty has no metric requests_per_second: it has no Function of which somebody counts it",
		},
		{
			name: "namespace in a namespace", resource: "namespaces", object: "default", code: 404,
			want: "metrics of a namespace are at /apis/custom.metrics.k8s.io/v1beta2/namespaces/NAMESPACE/metrics/METRIC",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := types.NamespacedName{Namespace: cmp.Or(tt.namespace, "default"), Name: tt.object}
			if root, ok := strings.CutPrefix(tt.object, "/"); ok {
				name = types.NamespacedName{Name: root}
			}
			info := metric(cmp.Or(tt.metric, v1alpha1.RequestsPerSecond))
			info.GroupResource = schema.ParseGroupResource(cmp.Or(tt.resource, "functions.sluice.dev"))
			v, err := functionMetrics{world}.GetMetricByName(t.Context(), name, info, selector(t, tt.selector))
			refused(t, v == nil, err, tt.code, tt.want)
		})
	}
}

// refused checks an answer that is no value.
func refused(t *testing.T, none bool, err error, code int32, want string) {
	t.Helper()
	var status apierrors.APIStatus
	if !none || !errors.As(err, &status) {
		t.Fatalf("an answer: %t, error %v; want no answer and a status", !none, err)
	}
	if status.Status().Code != code {
		t.Errorf("code %d, want %d", status.Status().Code, code)
	}
	if diff := gocmp.Diff(want, err.Error()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	if strings.ContainsAny(err.Error(), "\n\t") {
		t.Errorf("more than one line: %q", err)
	}
}

func TestGetMetricBySelector(t *testing.T) {
	tests := []struct {
		name             string
		resource         string // default functions.sluice.dev
		namespace        string
		labels, selector string
		metric           string // default requests_per_second
		want             []string
	}{
		{name: "all whose value is known", namespace: "default", want: []string{"Function default/awake", "Function default/idle"}},
		{name: "by label", namespace: "default", labels: "app=a", want: []string{"Function default/awake"}},
		{name: "by label, none", namespace: "default", labels: "app in (b,c)"},
		{name: "by metric label, none", namespace: "default", selector: "x=y"},
		{name: "empty namespace", namespace: "empty"},
		{name: "all namespaces", want: []string{
			"Function default/awake", "Function default/idle", "Function other/awake", "Function shop/cart", "Function shop/pay",
		}},
		{name: "a query that one has", namespace: "default", metric: "queue_depth", want: []string{"Function default/awake"}},
		{name: "a query, all namespaces", metric: "queue_depth", want: []string{"Function default/awake", "Function shop/orders"}},
		{
			name: "Kubeless", resource: "functions.kubeless.io", namespace: "default",
			want: []string{"Function default/awake", "Function default/idle"},
		},
		{name: "Deployments", resource: "deployments.apps", namespace: "default", want: []string{"Deployment default/awake-v2"}},
		{name: "by the workload's labels, not the function's", resource: "deployments.apps", namespace: "default", labels: "app=a"},
		{
			name: "by the workload's labels", resource: "deployments.apps", namespace: "default", labels: "tier=web",
			want: []string{"Deployment default/awake-v2"},
		},
		{name: "Deployments of all namespaces", resource: "deployments.apps", want: []string{
			"Deployment default/awake-v2", "Deployment shop/cart", "Deployment shop/pay",
		}},
		{name: "StatefulSets", resource: "statefulsets.apps", namespace: "default", want: []string{"StatefulSet default/idle"}},
		{name: "Services, but one that is shared", resource: "services", namespace: "default", want: []string{"Service default/front"}},
		{name: "no Services", resource: "services", namespace: "shop"},
		{
			name: "pods that are known", resource: "pods", namespace: "default", labels: "app=a",
			want: []string{"Pod default/awake-1", "Pod default/awake-3"},
		},
		{name: "pods of all namespaces", resource: "pods", want: []string{"Pod default/awake-1", "Pod default/awake-3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := metric(cmp.Or(tt.metric, v1alpha1.RequestsPerSecond))
			info.GroupResource = schema.ParseGroupResource(cmp.Or(tt.resource, "functions.sluice.dev"))
			list, err := functionMetrics{functions}.GetMetricBySelector(t.Context(), tt.namespace, selector(t, tt.labels),
				info, selector(t, tt.selector))
			if err != nil || list == nil || list.Items == nil {
				t.Fatalf("list %v, error %v; want a list that is not null", list, err)
			}
			var got []string
			for _, item := range list.Items {
				o := item.DescribedObject
				got = append(got, o.Kind+" "+o.Namespace+"/"+o.Name)
				if item.Timestamp.IsZero() {
					t.Errorf("no time: %+v", item)
				}
			}
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

func TestGetMetricBySelectorExplainsWhatItCannotAnswer(t *testing.T) {
	tests := []struct {
		name, resource, namespace, labels, selector, metric string
		code                                                int32
		want                                                string
	}{
		{
			name: "metric of no function", resource: "functions.sluice.dev", namespace: "default", metric: "latency", code: 404,
			want: "no Function in namespace default has a metric latency: the names that every one may have are " +
				"requests_per_second, requests_in_flight, request_duration_seconds, idle_seconds, beside those of its spec.metrics",
		},
		{
			name: "resource of no function", resource: "configmaps", code: 404, metric: v1alpha1.RequestsPerSecond,
			want: "no Function in any namespace has any of configmaps as its workload or Service",
		},
		{
			name: "namespaces", resource: "namespaces", code: 404, metric: v1alpha1.RequestsPerSecond,
			want: "metrics of a namespace are at /apis/custom.metrics.k8s.io/v1beta2/namespaces/NAMESPACE/metrics/METRIC",
		},
		{
			name: "a namespace called *", resource: "functions.sluice.dev", namespace: "*", code: 404, metric: v1alpha1.RequestsPerSecond,
			want: "* is no namespace: leave out namespaces/*, or name one",
		},
		{
			name: "pods of nobody", resource: "pods", namespace: "default", labels: "app=zzz", code: 404, metric: v1alpha1.RequestsPerSecond,
			want: `no pod in namespace default that matches "app=zzz" counts its own requests: only pods do that a Function in ` +
				"mode Direct finds by its Service, with spec.traffic.podMetrics",
		},
		{
			name: "pods of which none is known", resource: "pods", namespace: "default", labels: "app=stale", code: 503, metric: v1alpha1.RequestsPerSecond,
			want: "requests_per_second of Pod default/stale-1 is unknown: stale: the last answer of pod 10.0.0.7:8080 is 7.2s old: i/o timeout",
		},
		{
			name: "metric that pods have not", resource: "pods", namespace: "default", labels: "app=a", code: 404, metric: v1alpha1.IdleSeconds,
			want: "Pod default/awake-1 has no metric idle_seconds: there is no metric idle_seconds of a pod",
		},
		{
			name: "labels of pods' metrics", resource: "pods", namespace: "default", selector: "x=y", code: 404, metric: v1alpha1.RequestsPerSecond,
			want: `metric requests_per_second has no labels, so metricLabelSelector "x=y" matches none`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := metric(tt.metric)
			info.GroupResource = schema.ParseGroupResource(tt.resource)
			list, err := functionMetrics{functions}.GetMetricBySelector(t.Context(), tt.namespace, selector(t, tt.labels), info,
				selector(t, tt.selector))
			refused(t, list == nil, err, tt.code, tt.want)
		})
	}
}

// TestStore asks a real Store, of which the fakeReader has to be a likeness.
func TestStore(t *testing.T) {
	store := providers.NewStore(providers.Intervals{})
	for _, name := range []string{"hello", "twin"} {
		store.SetFunction(providers.Function{
			Name: named(name), Window: v1alpha1.DefaultWindow, Rule: providers.Rule{Proxied: true},
			Workload: deployment(name, map[string]string{"app": name}), Service: service("shared", nil),
		}, nil)
	}
	const unknown = "requests_per_second of Function default/hello%s is unknown: no activator is listed, so nobody knows what " +
		"happens at the gate"
	tests := []struct {
		resource schema.GroupResource
		object   types.NamespacedName
		metric   string
		code     int32
		want     string
	}{
		{v1alpha1.FunctionResource, named("hello"), v1alpha1.RequestsPerSecond, 503, fmt.Sprintf(unknown, "")},
		{deployment("", nil).Resource, named("hello"), v1alpha1.RequestsPerSecond, 503, fmt.Sprintf(unknown, " (for Deployment default/hello)")},
		{namespaces, types.NamespacedName{Name: "default"}, v1alpha1.RequestsPerSecond, 503, fmt.Sprintf(unknown, "")},
		{
			service("", nil).Resource, named("shared"), v1alpha1.RequestsPerSecond, 404, "services default/shared has no metric of " +
				"its own: it belongs to 2 functions, default/hello, default/twin: ask for one of them, as functions.sluice.dev",
		},
		{
			v1alpha1.FunctionResource, named("hello"), "latency", 404,
			"Function default/hello has no metric latency, it has requests_per_second, requests_in_flight, idle_seconds",
		},
		{v1alpha1.FunctionResource, named("helo"), "latency", 404, "there is no Function default/helo"},
		{pods, named("hello-1"), v1alpha1.RequestsPerSecond, 404, "Pod default/hello-1 does not count its own requests: " + podsCount},
	}
	for _, tt := range tests {
		v, err := functionMetrics{store}.GetMetricByName(t.Context(), tt.object,
			provider.CustomMetricInfo{GroupResource: tt.resource, Metric: tt.metric}, nil)
		refused(t, v == nil, err, tt.code, tt.want)
	}
	list, err := functionMetrics{store}.GetMetricBySelector(t.Context(), "", nil, metric(v1alpha1.IdleSeconds), nil)
	if err != nil || len(list.Items) != 0 {
		t.Errorf("list = %+v, %v; want none that is known", list, err)
	}
}

// TestNamespaceSum: the sum is as old as the oldest value in it, and as long as the longest window.
func TestNamespaceSum(t *testing.T) {
	info := provider.CustomMetricInfo{GroupResource: namespaces, Metric: v1alpha1.RequestsPerSecond}
	v, err := functionMetrics{functions}.GetMetricByName(t.Context(), types.NamespacedName{Name: "shop"}, info, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &custom_metrics.MetricValue{
		DescribedObject: custom_metrics.ObjectReference{Kind: "Namespace", APIVersion: "v1", Name: "shop"},
		Metric:          custom_metrics.MetricIdentifier{Name: v1alpha1.RequestsPerSecond},
		Timestamp:       metav1.NewTime(at.Add(-2 * time.Second)), WindowSeconds: new(int64(60)), Value: resource.MustParse("42500m"),
	}
	if diff := gocmp.Diff(want, v); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

func TestQuantity(t *testing.T) {
	tests := []struct {
		value float64
		want  string
	}{
		{0, "0"},
		{0.0004, "0"},
		{0.0005, "1m"},
		{0.9996, "1"},
		{12.3456, "12346m"},
		{3e7, "30M"},
		{1e15, "1P"},
		{9.1e15, "9100T"},
		{math.MaxFloat64, "9223372036854775807m"},
		{9223372036854775.807, "9223372036854775807m"},
	}
	for _, tt := range tests {
		if q := quantity(tt.value, math.MaxInt64); q.String() != tt.want {
			t.Errorf("quantity(%v) = %s, want %s", tt.value, q.String(), tt.want)
		}
	}
}

// FuzzQuantity: a value loses less than a thousandth and a bit of a float64, keeps its order, and does not wrap around
// where the HorizontalPodAutoscaler reads it or sums it.
func FuzzQuantity(f *testing.F) {
	for _, v := range []float64{0, 0.0005, 1, 12.3456, 1e15, 9.3e15, math.MaxFloat64} {
		f.Add(v, uint16(1))
	}
	f.Fuzz(func(t *testing.T, v float64, items uint16) {
		v, err := checkedNumber(v)
		if err != nil || items == 0 {
			t.Skip()
		}
		most := math.MaxInt64 / int64(items)
		milli := quantity(v, most)
		got := milli.MilliValue()
		if got < 0 || got > most {
			t.Fatalf("quantity(%v) is %d thousandths, want 0 to %d", v, got, most)
		}
		if off := math.Abs(float64(got) - v*1000); v*1000 < float64(most) && off > 0.5+v*1000*1e-15 {
			t.Errorf("quantity(%v) is %d thousandths, %v off", v, got, off)
		}
		if next := quantity(v*1.5, most); next.Cmp(milli) < 0 {
			t.Errorf("quantity(%v) = %s, less than %s of %v", v*1.5, next.String(), milli.String(), v)
		}
	})
}

func checkedNumber(v float64) (float64, error) {
	checked, err := checked(providers.Value{Value: v, At: at}, nil)
	return checked.Value, err
}

func TestWindowSeconds(t *testing.T) {
	for window, want := range map[time.Duration]int64{
		30 * time.Second: 30, 29600 * time.Millisecond: 30, 400 * time.Millisecond: 1,
	} {
		if got := windowSeconds(window); got == nil || *got != want {
			t.Errorf("window of %s = %v s, want %d", window, got, want)
		}
	}
	if got := windowSeconds(0); got != nil {
		t.Errorf("no window is %d s, want none", *got)
	}
}
