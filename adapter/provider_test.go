package adapter

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// fakeReader has a value or an error for each function and metric.
type fakeReader map[types.NamespacedName]fakeFunction

type fakeFunction struct {
	labels  map[string]string
	metrics []string
	value   providers.Value
	err     error
}

func (r fakeReader) Info(name types.NamespacedName) (providers.Info, error) {
	fn, ok := r[name]
	if !ok {
		return providers.Info{}, providers.ErrNoFunction
	}
	return providers.Info{Name: name, Labels: fn.labels, Metrics: fn.metrics}, nil
}

func (r fakeReader) List(namespace string) []providers.Info {
	var infos []providers.Info
	for name := range r {
		if name.Namespace == namespace {
			info, _ := r.Info(name)
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b providers.Info) int { return cmp.Compare(a.Name.Name, b.Name.Name) })
	return infos
}

func (r fakeReader) Value(name types.NamespacedName, _ string) (providers.Value, error) {
	fn, ok := r[name]
	if !ok {
		return providers.Value{}, providers.ErrNoFunction
	}
	return fn.value, fn.err
}

func named(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

var at = time.Date(2026, 11, 23, 6, 30, 15, 0, time.UTC)

// functions are a world of one awake, one idle, one unknown and one uncounted function.
var functions = fakeReader{
	named("awake"): {
		labels: map[string]string{"app": "a"}, metrics: served,
		value: providers.Value{Value: 12.3456, At: at, Window: 30 * time.Second},
	},
	named("idle"): {metrics: served, value: providers.Value{At: at, Window: 29600 * time.Millisecond}},
	named("stale"): {
		labels: map[string]string{"app": "a"}, metrics: served,
		err: &providers.Unknown{
			Reason: providers.Stale, Source: "pod 10.0.0.7:8080", Age: 7200 * time.Millisecond, Err: errors.New("i/o timeout"),
		},
	},
	named("uncounted"): {
		metrics: []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds},
		err:     &providers.Unknown{Reason: providers.NotCounted, Remedy: "name a gauge in spec.traffic.podMetrics.inFlight"},
	},
	{Namespace: "other", Name: "awake"}: {value: providers.Value{Value: 1, At: at}},
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
	pods := metric(v1alpha1.RequestsPerSecond)
	pods.GroupResource = schema.GroupResource{Resource: "pods"}
	tests := []struct {
		name     string
		function types.NamespacedName
		info     provider.CustomMetricInfo
		selector string
		is       func(error) bool
		says     []string
	}{
		{
			name: "no such function", function: named("nobody"), info: metric(v1alpha1.IdleSeconds),
			is: apierrors.IsNotFound, says: []string{"default/nobody"},
		},
		{
			name: "no such metric", function: named("awake"), info: metric("latency"),
			is: apierrors.IsNotFound, says: append([]string{`"latency"`}, served...),
		},
		{
			name: "other resource", function: named("awake"), info: pods,
			is: apierrors.IsNotFound, says: []string{"pods", "functions.sluice.dev"},
		},
		{
			name: "no namespace", function: types.NamespacedName{Name: "awake"}, info: metric(v1alpha1.IdleSeconds),
			is: apierrors.IsNotFound, says: []string{"namespace"},
		},
		{
			name: "metric labels, of which there are none", function: named("awake"), info: metric(v1alpha1.IdleSeconds),
			selector: "pod=x", is: apierrors.IsNotFound, says: []string{"pod=x"},
		},
		{
			name: "unknown value", function: named("stale"), info: metric(v1alpha1.RequestsPerSecond),
			is: apierrors.IsServiceUnavailable, says: []string{"default/stale", "7.2s", "pod 10.0.0.7:8080", "i/o timeout"},
		},
		{
			name: "metric that nobody counts", function: named("uncounted"), info: metric(v1alpha1.RequestsInFlight),
			is: apierrors.IsNotFound, says: []string{"podMetrics.inFlight", "it has requests_per_second, idle_seconds"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, err := functionMetrics{functions}.GetMetricByName(t.Context(), tt.function, tt.info, selector(t, tt.selector))
			if v != nil || !tt.is(err) {
				t.Fatalf("value %v, error %v", v, err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
}

func TestGetMetricBySelector(t *testing.T) {
	tests := []struct {
		name           string
		namespace      string
		labels, metric string
		want           []string
	}{
		{name: "all whose value is known", namespace: "default", want: []string{"awake", "idle"}},
		{name: "by label", namespace: "default", labels: "app=a", want: []string{"awake"}},
		{name: "by label, none", namespace: "default", labels: "app in (b,c)"},
		{name: "by metric label, none", namespace: "default", metric: "x=y"},
		{name: "empty namespace", namespace: "empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := functionMetrics{functions}.GetMetricBySelector(t.Context(), tt.namespace, selector(t, tt.labels),
				metric(v1alpha1.RequestsPerSecond), selector(t, tt.metric))
			if err != nil || list == nil || list.Items == nil {
				t.Fatalf("list %v, error %v; want a list that is not null", list, err)
			}
			var got []string
			for _, item := range list.Items {
				got = append(got, item.DescribedObject.Name)
			}
			if diff := gocmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
	_, err := functionMetrics{functions}.GetMetricBySelector(t.Context(), "default", labels.Everything(), metric("latency"), nil)
	if !apierrors.IsNotFound(err) {
		t.Errorf("list of an unknown metric: %v, want not found", err)
	}
}

func TestDiscoveryIsConstant(t *testing.T) {
	var got []string
	for _, info := range (functionMetrics{fakeReader{}}).ListAllMetrics() {
		if info.GroupResource != v1alpha1.FunctionResource || !info.Namespaced {
			t.Errorf("%+v is not a metric of namespaced functions", info)
		}
		got = append(got, info.Metric)
	}
	if diff := gocmp.Diff([]string{"requests_per_second", "requests_in_flight", "idle_seconds"}, got); diff != "" {
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
		{math.MaxFloat64, "9223372036854775807m"},
		{9223372036854775.807, "9223372036854775807m"},
	}
	for _, tt := range tests {
		if q := quantity(tt.value); q.String() != tt.want {
			t.Errorf("quantity(%v) = %s, want %s", tt.value, q.String(), tt.want)
		}
	}
}

func TestWindowSeconds(t *testing.T) {
	for window, want := range map[time.Duration]int64{
		30 * time.Second: 30, 29600 * time.Millisecond: 30, 400 * time.Millisecond: 1,
	} {
		v := metricValue(named("x"), v1alpha1.RequestsPerSecond, providers.Value{At: at, Window: window})
		if v.WindowSeconds == nil || *v.WindowSeconds != want {
			t.Errorf("window of %s = %v s, want %d", window, v.WindowSeconds, want)
		}
	}
	if v := metricValue(named("x"), v1alpha1.IdleSeconds, providers.Value{At: at}); v.WindowSeconds != nil {
		t.Errorf("idle_seconds has a window of %d s, want none", *v.WindowSeconds)
	}
}
