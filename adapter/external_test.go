package adapter

import (
	"cmp"
	"math"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

func TestGetExternalMetric(t *testing.T) {
	tests := []struct {
		name, namespace, labels, metric string
		want                            map[string]string // value by function
	}{
		{name: "one", namespace: "default", labels: "function=awake", want: map[string]string{"awake": "12346m"}},
		{name: "one that is idle", namespace: "default", labels: "function=idle", want: map[string]string{"idle": "0"}},
		{name: "two", namespace: "shop", labels: "function in (cart,pay)", want: map[string]string{"cart": "2500m", "pay": "40"}},
		{name: "two but one", namespace: "shop", labels: "function in (cart,pay),function!=pay", want: map[string]string{"cart": "2500m"}},
		{name: "all that have it", namespace: "shop", want: map[string]string{"cart": "2500m", "pay": "40"}},
		{name: "all but one", namespace: "shop", labels: "function!=cart", want: map[string]string{"pay": "40"}},
		{name: "any", namespace: "shop", labels: "function", want: map[string]string{"cart": "2500m", "pay": "40"}},
		{name: "query of all", namespace: "shop", metric: "queue_depth", want: map[string]string{"orders": "1k"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := provider.ExternalMetricInfo{Metric: cmp.Or(tt.metric, v1alpha1.RequestsPerSecond)}
			list, err := functionMetrics{functions}.GetExternalMetric(t.Context(), tt.namespace, selector(t, tt.labels), info)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, item := range list.Items {
				if item.Timestamp.IsZero() || item.MetricName != info.Metric {
					t.Errorf("item %+v", item)
				}
				got[item.MetricLabels["function"]] = item.Value.String()
			}
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

func TestGetExternalMetricItem(t *testing.T) {
	list, err := functionMetrics{functions}.GetExternalMetric(t.Context(), "default", selector(t, "function=awake"),
		provider.ExternalMetricInfo{Metric: v1alpha1.RequestsPerSecond})
	if err != nil {
		t.Fatal(err)
	}
	want := []external_metrics.ExternalMetricValue{{
		MetricName: v1alpha1.RequestsPerSecond, MetricLabels: map[string]string{"function": "awake"}, Timestamp: metav1.NewTime(at),
		WindowSeconds: new(int64(30)), Value: quantity(12.3456, math.MaxInt64),
	}}
	if diff := gocmp.Diff(want, list.Items); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// TestGetExternalMetricIsNeverASmallerSum: what is missing from the sum is an error, not a smaller sum.
func TestGetExternalMetricIsNeverASmallerSum(t *testing.T) {
	const unknown = "requests_per_second of Function default/stale is unknown: stale: the last answer of pod 10.0.0.7:8080 is " +
		"7.2s old: i/o timeout"
	tests := []struct {
		name, namespace, labels, metric string
		code                            int32
		want                            string
	}{
		{name: "one of all is unknown", namespace: "default", code: 503, want: unknown},
		{name: "one of two is unknown", namespace: "default", labels: "function in (awake,stale)", code: 503, want: unknown},
		{name: "one is not there", namespace: "shop", labels: "function in (cart,helo)", code: 404, want: "there is no Function shop/helo"},
		{
			name: "one has no such metric", namespace: "shop", labels: "function in (cart,orders)", code: 404,
			want: "Function shop/orders has no metric requests_per_second, it has queue_depth: there is no metric requests_per_second",
		},
		{
			name: "none", namespace: "shop", labels: "function notin (cart,pay)", code: 404,
			want: `no Function in namespace shop that matches "function notin (cart,pay)" has a metric requests_per_second`,
		},
		{
			name: "none at all", namespace: "shop", labels: "!function", code: 404,
			want: `no Function in namespace shop that matches "!function" has a metric requests_per_second`,
		},
		{
			name: "metric of none", namespace: "shop", metric: "latency", code: 404,
			want: `no Function in namespace shop that matches "" has a metric latency`,
		},
		{
			name: "another label", namespace: "shop", labels: "function=cart,app=x", code: 400,
			want: "labelSelector app=x: the only label of these metrics is function, the name of a Function: function=NAME",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := provider.ExternalMetricInfo{Metric: cmp.Or(tt.metric, v1alpha1.RequestsPerSecond)}
			list, err := functionMetrics{functions}.GetExternalMetric(t.Context(), tt.namespace, selector(t, tt.labels), info)
			refused(t, list == nil, err, tt.code, tt.want)
		})
	}
	if list, err := (functionMetrics{functions}).GetExternalMetric(t.Context(), "shop", labels.Nothing(),
		provider.ExternalMetricInfo{Metric: v1alpha1.RequestsPerSecond}); err == nil {
		t.Errorf("a selector of nothing answers %v, want an error", list)
	}
}

// TestGetExternalMetricSumDoesNotWrap: the HorizontalPodAutoscaler sums int64 of thousandths.
func TestGetExternalMetricSumDoesNotWrap(t *testing.T) {
	world := fakeReader{}
	for _, name := range []string{"a", "b", "c"} {
		world[named(name)] = fakeFunction{metrics: reserved, value: providers.Value{Value: 1e300, At: at, Window: time.Second}}
	}
	list, err := functionMetrics{world}.GetExternalMetric(t.Context(), "default", nil,
		provider.ExternalMetricInfo{Metric: v1alpha1.RequestsPerSecond})
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, item := range list.Items {
		sum += item.Value.MilliValue()
	}
	if len(list.Items) != 3 || sum < math.MaxInt64-3 {
		t.Errorf("%d items sum up to %d, want the largest there is", len(list.Items), sum)
	}
}
