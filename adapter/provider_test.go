package adapter

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
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
		{
			name: "by metric labels that there must not be", namespace: "default", selector: "x!=y,!z",
			want: []string{"Function default/awake", "Function default/idle"},
		},
		{
			name: "pods, by metric labels that there must not be", resource: "pods", namespace: "default", labels: "app=a", selector: "!z",
			want: []string{"Pod default/awake-1", "Pod default/awake-3"},
		},
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
