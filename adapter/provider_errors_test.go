package adapter

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

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
