package v1alpha1

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestWakeReplicas(t *testing.T) {
	for _, tt := range []struct {
		name       string
		perReplica int32
		target     string // of the concurrency metric
		limit      int32  // of it
		min, max   int32
		held       int
		want       int32
	}{
		{name: "one request, one replica", perReplica: 100, max: 5, held: 1, want: 1},
		{name: "rounded up", perReplica: 100, max: 5, held: 101, want: 2},
		{name: "the concurrency target comes first", perReplica: 100, target: "10", max: 50, held: 101, want: 11},
		{name: "a target below one", perReplica: 100, target: "500m", max: 50, held: 3, want: 6},
		{name: "a limit below the target", target: "10", limit: 5, max: 50, held: 101, want: 21},
		{name: "a limit above the target", target: "10", limit: 50, max: 50, held: 101, want: 11},
		{name: "never above maxReplicas", perReplica: 1, max: 5, held: 1000, want: 5},
		{name: "never below minReplicas", perReplica: 100, min: 3, max: 5, held: 1, want: 3},
		{name: "never zero", perReplica: 100, max: 5, held: 0, want: 1},
		{name: "unset perReplica", max: 5, held: 250, want: 3},
		{name: "more than fits", perReplica: 1, target: "1n", max: 5, held: 1 << 40, want: 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fn := Function{Spec: FunctionSpec{
				Traffic:    &Traffic{Mode: Proxied},
				Scale:      Scale{MinReplicas: tt.min, MaxReplicas: tt.max},
				Activation: Activation{PerReplica: tt.perReplica},
			}}
			if tt.target != "" {
				fn.Spec.Metrics = []Metric{{Concurrency: &ConcurrencyMetric{Target: resource.MustParse(tt.target), Limit: tt.limit}}}
			}
			if got := fn.WakeReplicas(tt.held); got != tt.want {
				t.Errorf("WakeReplicas(%d) = %d, want %d", tt.held, got, tt.want)
			}
		})
	}
}

func TestConcurrencyLimit(t *testing.T) {
	concurrency := Metric{Concurrency: &ConcurrencyMetric{Limit: 7}}
	for _, tt := range []struct {
		name    string
		traffic *Traffic
		metrics []Metric
		want    int32
	}{
		{"of the metric", &Traffic{Mode: Proxied}, []Metric{{RequestRate: &RequestRateMetric{}}, concurrency}, 7},
		{"none without it", &Traffic{Mode: Proxied}, []Metric{{RequestRate: &RequestRateMetric{}}}, 0},
		{"none past the gate", &Traffic{Mode: Direct}, []Metric{concurrency}, 0},
		{"none without traffic", nil, []Metric{concurrency}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fn := Function{Spec: FunctionSpec{Traffic: tt.traffic, Metrics: tt.metrics}}
			if got := fn.ConcurrencyLimit(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestPatchTestFailed(t *testing.T) {
	deployments := schema.GroupResource{Group: "apps", Resource: "deployments"}
	// As API server 1.37 answers a test operation that does not match.
	failed := &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: "the server rejected our request due to an error in our request", Details: &metav1.StatusDetails{},
	}}
	denied := apierrors.NewForbidden(deployments, "hello", errors.New("ValidatingAdmissionPolicy 'p' denied request"))
	denied.ErrStatus.Code, denied.ErrStatus.Reason = http.StatusUnprocessableEntity, metav1.StatusReasonInvalid
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"no error", nil, false},
		{"the test failed", fmt.Errorf("patch: %w", failed), true},
		{"denied by a policy", denied, false},
		{"not found", apierrors.NewNotFound(deployments, "hello"), false},
		{"no answer", errors.New("connection refused"), false},
	} {
		if got := PatchTestFailed(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestMaySleep(t *testing.T) {
	queue := []Metric{{Prometheus: &PrometheusMetric{Name: "queue_depth", Target: resource.MustParse("20")}}}
	for _, tt := range []struct {
		name    string
		traffic *Traffic
		metrics []Metric
		min     int32
		want    bool
	}{
		{name: "requests wake it", traffic: &Traffic{}, want: true},
		{name: "a queue wakes it", metrics: queue, want: true},
		{name: "nothing wakes it"},
		{name: "it must not", traffic: &Traffic{}, metrics: queue, min: 1},
	} {
		fn := Function{Spec: FunctionSpec{Traffic: tt.traffic, Metrics: tt.metrics, Scale: Scale{MinReplicas: tt.min}}}
		if got := fn.MaySleep(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestExternalMetric(t *testing.T) {
	for _, tt := range []struct {
		name               string
		target, activation string
		value              float64
		wantReplicas       int32
		wantActive         bool
	}{
		{name: "nothing", target: "20", activation: "0"},
		{name: "anything", target: "20", activation: "0", value: 0.001, wantReplicas: 1, wantActive: true},
		{name: "rounded up", target: "20", activation: "0", value: 41, wantReplicas: 3, wantActive: true},
		{name: "a multiple", target: "20", activation: "0", value: 40, wantReplicas: 2, wantActive: true},
		{name: "a multiple in tenths", target: "100m", activation: "0", value: 1.1, wantReplicas: 11, wantActive: true},
		{name: "at the activation", target: "20", activation: "5", value: 5, wantReplicas: 1},
		{name: "at an activation in tenths", target: "20", activation: "0.7", value: 0.7, wantReplicas: 1},
		{name: "above the activation", target: "20", activation: "5", value: 5.001, wantReplicas: 1, wantActive: true},
		{name: "more than fits", target: "1n", activation: "0", value: 1e300, wantReplicas: 1<<31 - 1, wantActive: true},
	} {
		m := ExternalMetric{Target: resource.MustParse(tt.target), Activation: resource.MustParse(tt.activation)}
		if got := m.Replicas(tt.value); got != tt.wantReplicas {
			t.Errorf("%s: Replicas(%v) = %d, want %d", tt.name, tt.value, got, tt.wantReplicas)
		}
		if got := m.IsActive(tt.value); got != tt.wantActive {
			t.Errorf("%s: IsActive(%v) = %v, want %v", tt.name, tt.value, got, tt.wantActive)
		}
	}
}

func TestExternalMetrics(t *testing.T) {
	fn := Function{Spec: FunctionSpec{Metrics: []Metric{
		{Prometheus: &PrometheusMetric{Name: "b", Target: resource.MustParse("20"), Activation: new(resource.MustParse("5"))}},
		{RequestRate: &RequestRateMetric{Target: resource.MustParse("50")}},
		{Prometheus: &PrometheusMetric{Name: "a", Target: resource.MustParse("1")}},
	}}}
	want := []ExternalMetric{
		{Name: "b", Target: resource.MustParse("20"), Activation: resource.MustParse("5")},
		{Name: "a", Target: resource.MustParse("1")},
	}
	if diff := cmp.Diff(want, fn.ExternalMetrics()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
