package v1alpha1

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

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
		min, max   int32
		held       int
		want       int32
	}{
		{name: "one request, one replica", perReplica: 100, max: 5, held: 1, want: 1},
		{name: "rounded up", perReplica: 100, max: 5, held: 101, want: 2},
		{name: "the concurrency target comes first", perReplica: 100, target: "10", max: 50, held: 101, want: 11},
		{name: "a target below one", perReplica: 100, target: "500m", max: 50, held: 3, want: 6},
		{name: "never above maxReplicas", perReplica: 1, max: 5, held: 1000, want: 5},
		{name: "never below minReplicas", perReplica: 100, min: 3, max: 5, held: 1, want: 3},
		{name: "never zero", perReplica: 100, max: 5, held: 0, want: 1},
		{name: "unset perReplica", max: 5, held: 250, want: 3},
		{name: "more than fits", perReplica: 1, target: "1n", max: 5, held: 1 << 40, want: 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fn := Function{Spec: FunctionSpec{
				Scale:      Scale{MinReplicas: tt.min, MaxReplicas: tt.max},
				Activation: Activation{PerReplica: tt.perReplica},
			}}
			if tt.target != "" {
				fn.Spec.Metrics = []Metric{{Concurrency: &ConcurrencyMetric{Target: resource.MustParse(tt.target)}}}
			}
			if got := fn.WakeReplicas(tt.held); got != tt.want {
				t.Errorf("WakeReplicas(%d) = %d, want %d", tt.held, got, tt.want)
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
