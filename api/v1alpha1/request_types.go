package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RequestRateMetric scales on requests_per_second.
type RequestRateMetric struct {
	// Target is the number of requests per second that one replica should serve, as a quantity ("50", "500m").
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].requestRate.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
	// Window is the time over which the rate is taken. Default 30s.
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('5s') && duration(self) <= duration('5m')",message="spec.metrics[].requestRate.window must be between 5s and 5m"
	// +optional
	Window *metav1.Duration `json:"window,omitempty"`
}

// ConcurrencyMetric scales on requests_in_flight.
//
// +kubebuilder:validation:XValidation:rule="!has(self.limit) || (type(self.target) == int ? int(self.target) <= self.limit : self.target.matches('[eE]') || quantity(self.target).asApproximateFloat() <= double(self.limit))",message="spec.metrics[].concurrency.limit must not be below target: replicas would be full, and requests wait, before one more is asked for; raise limit or lower target"
type ConcurrencyMetric struct {
	// Target is the number of requests that one replica should have in flight, as a quantity.
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].concurrency.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
	// Limit is how many requests one pod has at the same time at most, of all activators together. Those beyond it are held, in
	// the order in which they came, as while the function wakes (spec.activation), and count as in flight. Only with mode
	// Proxied; what goes to the function's own Service is not bound by it. Default: no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Limit int32 `json:"limit,omitempty"`
}
