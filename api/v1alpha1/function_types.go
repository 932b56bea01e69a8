package v1alpha1

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Function makes a workload with a Service in front of it scale on its own traffic, down to zero and back.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=fn,categories=all
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.status.replicas`
// +kubebuilder:printcolumn:name="Rate",type=string,JSONPath=`.status.metrics[?(@.name=="requests_per_second")].value`
// +kubebuilder:printcolumn:name="Lag",type=string,JSONPath=`.status.metrics[?(@.name=="kafka_lag")].value`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.lastDecision.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 56 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name must be a DNS label of at most 56 characters, because sluice-<name> names a Service; choose a shorter name without dots"
type Function struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   FunctionSpec   `json:"spec"`
	Status FunctionStatus `json:"status,omitempty"`
}

// FunctionList is a list of Functions.
//
// +kubebuilder:object:root=true
type FunctionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Function `json:"items"`
}

// FunctionSpec says what the function runs as, how requests reach it, and what it scales on.
//
// +kubebuilder:validation:XValidation:rule="self.scale.minReplicas > 0 || has(self.traffic) || (has(self.metrics) && self.metrics.exists(m, has(m.prometheus) || has(m.kafkaLag)))",message="spec.scale.minReplicas 0 needs something that wakes the function: set spec.traffic, a metric of another source in spec.metrics, or minReplicas of at least 1"
// +kubebuilder:validation:XValidation:rule="self.scale.minReplicas > 0 || !has(self.traffic) || self.traffic.mode == 'Proxied' || has(self.traffic.podMetrics)",message="spec.scale.minReplicas 0 in mode Direct needs spec.traffic.podMetrics, because past the gate only the pods can tell that they are idle; set podMetrics, or mode Proxied"
// +kubebuilder:validation:XValidation:rule="!has(self.metrics) || !self.metrics.exists(m, has(m.requestRate)) || (has(self.traffic) && (self.traffic.mode == 'Proxied' || has(self.traffic.podMetrics)))",message="spec.metrics[].requestRate needs someone who counts: set spec.traffic.mode Proxied, or spec.traffic.podMetrics"
// +kubebuilder:validation:XValidation:rule="!has(self.metrics) || !self.metrics.exists(m, has(m.concurrency)) || (has(self.traffic) && (self.traffic.mode == 'Proxied' || (has(self.traffic.podMetrics) && (has(self.traffic.podMetrics.inFlight) || has(self.traffic.podMetrics.duration) || has(self.traffic.podMetrics.preset)))))",message="spec.metrics[].concurrency needs someone who counts: set spec.traffic.mode Proxied, or name a gauge in spec.traffic.podMetrics.inFlight or a histogram in podMetrics.duration"
// +kubebuilder:validation:XValidation:rule="!has(self.metrics) || !self.metrics.exists(m, has(m.concurrency) && has(m.concurrency.limit)) || (has(self.traffic) && self.traffic.mode == 'Proxied')",message="spec.metrics[].concurrency.limit needs spec.traffic.mode Proxied: in mode Direct requests go to the pods past the gate, which cannot hold them; set mode Proxied or remove limit"
// +kubebuilder:validation:XValidation:rule="!has(self.scale.behavior) || (has(self.metrics) && size(self.metrics) > 0)",message="spec.scale.behavior shapes how spec.metrics scale and there are none; set a metric or remove behavior"
// +kubebuilder:validation:XValidation:rule="has(self.traffic) || !has(self.activation) || ((!has(self.activation.timeout) || duration(self.activation.timeout) == duration('60s')) && (!has(self.activation.maxHeld) || self.activation.maxHeld == 1000) && (!has(self.activation.perReplica) || self.activation.perReplica == 100) && (!has(self.activation.probe) || self.activation.probe == 'Auto') && !has(self.activation.fallback) && !has(self.activation.placeholder) && !has(self.activation.static))",message="spec.activation is about requests that are held and there is no spec.traffic; set spec.traffic or remove activation"
// +kubebuilder:validation:XValidation:rule="!has(self.traffic) || self.traffic.protocol != 'TCP' || !has(self.activation) || (!has(self.activation.fallback) && !has(self.activation.placeholder) && !has(self.activation.static))",message="spec.activation: fallback, placeholder and static are answers of HTTP, and spec.traffic.protocol is TCP; remove them or set protocol HTTP"
// +kubebuilder:validation:XValidation:rule="has(self.workloadRef) == has(oldSelf.workloadRef) && (!has(self.workloadRef) || self.workloadRef == oldSelf.workloadRef)",message="spec.workloadRef cannot be changed, because the old workload may be asleep; delete the Function, which wakes it, and create it anew"
type FunctionSpec struct {
	// WorkloadRef names what is scaled. Default: the apps/v1 Deployment with the Function's own name.
	// +optional
	WorkloadRef *WorkloadRef `json:"workloadRef,omitempty"`

	// Traffic says how HTTP requests reach the function. Leave it out when they do not.
	// +optional
	Traffic *Traffic `json:"traffic,omitempty"`

	// Scale bounds the replicas.
	Scale Scale `json:"scale"`

	// Metrics are what the function scales on; the largest answer wins, as in the HorizontalPodAutoscaler. Without
	// any, the function only sleeps and wakes, and no HorizontalPodAutoscaler is made.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.filter(m, has(m.requestRate)).size() <= 1",message="spec.metrics may hold one requestRate; remove the others"
	// +kubebuilder:validation:XValidation:rule="self.filter(m, has(m.concurrency)).size() <= 1",message="spec.metrics may hold one concurrency; remove the others"
	// +kubebuilder:validation:XValidation:rule="self.filter(m, has(m.kafkaLag) && !has(m.kafkaLag.name)).size() <= 1 && self.all(m, !has(m.kafkaLag) || !has(m.kafkaLag.name) || self.filter(n, has(n.kafkaLag) && has(n.kafkaLag.name) && n.kafkaLag.name == m.kafkaLag.name).size() == 1)",message="each of spec.metrics[].kafkaLag needs a name of its own, by which its metrics are told from the others'"
	// +kubebuilder:validation:XValidation:rule="self.all(m, !has(m.prometheus) || self.filter(n, has(n.prometheus) && n.prometheus.name == m.prometheus.name).size() == 1)",message="each of spec.metrics[].prometheus needs a name of its own; rename one"
	Metrics []Metric `json:"metrics,omitempty"`

	// Activation tunes how requests are held while the function wakes. Only with traffic.
	// +optional
	// +kubebuilder:default={}
	Activation Activation `json:"activation,omitempty"`
}

// WorkloadRef names a workload in the Function's namespace.
//
// +kubebuilder:validation:XValidation:rule="self.apiVersion == 'apps/v1' && self.kind in ['Deployment', 'StatefulSet']",message="spec.workloadRef must name a Deployment or a StatefulSet of apps/v1; other kinds are not served in this version"
type WorkloadRef struct {
	// APIVersion of the workload.
	// +kubebuilder:default="apps/v1"
	APIVersion string `json:"apiVersion,omitempty"`
	// Kind of the workload.
	// +kubebuilder:default="Deployment"
	Kind string `json:"kind,omitempty"`
	// Name of the workload.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// Scale bounds the replicas of the workload.
//
// +kubebuilder:validation:XValidation:rule="!has(self.behavior) || ((!has(self.behavior.scaleUp) || !has(self.behavior.scaleUp.stabilizationWindowSeconds) || (self.behavior.scaleUp.stabilizationWindowSeconds >= 0 && self.behavior.scaleUp.stabilizationWindowSeconds <= 3600)) && (!has(self.behavior.scaleDown) || !has(self.behavior.scaleDown.stabilizationWindowSeconds) || (self.behavior.scaleDown.stabilizationWindowSeconds >= 0 && self.behavior.scaleDown.stabilizationWindowSeconds <= 3600)))",message="spec.scale.behavior: stabilizationWindowSeconds must be between 0 and 3600"
// +kubebuilder:validation:XValidation:rule="self.minReplicas <= self.maxReplicas",message="spec.scale.minReplicas must not be above spec.scale.maxReplicas; lower minReplicas or raise maxReplicas"
type Scale struct {
	// MinReplicas is the lower bound. 0 lets the function sleep. Default 0.
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	MinReplicas int32 `json:"minReplicas"`
	// MaxReplicas is the upper bound.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	MaxReplicas int32 `json:"maxReplicas"`
	// IdleAfter is how long the function is without any request, started or running, before it sleeps. Default 60s.
	// +kubebuilder:default="60s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('24h')",message="spec.scale.idleAfter must be between 1s and 24h"
	// +optional
	IdleAfter *metav1.Duration `json:"idleAfter,omitempty"`
	// Behavior is passed to the HorizontalPodAutoscaler as it is.
	// +optional
	// +kubebuilder:validation:XValidation:rule="(!has(self.scaleUp) || !has(self.scaleUp.tolerance) || string(self.scaleUp.tolerance).matches('^[0-9.]{1,20}([a-zA-Z]?|[eE]-?[0-9]{1,2})$')) && (!has(self.scaleDown) || !has(self.scaleDown.tolerance) || string(self.scaleDown.tolerance).matches('^[0-9.]{1,20}([a-zA-Z]?|[eE]-?[0-9]{1,2})$'))",message="spec.scale.behavior: tolerance must be a quantity that is not below 0, such as 0.05 or 50m"
	Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
}

// Activation tunes how requests are held while the function wakes.
//
// +kubebuilder:validation:XValidation:rule="!has(self.fallback) || !has(self.placeholder)",message="spec.activation.placeholder is given where spec.activation.fallback would be asked; remove one of the two"
type Activation struct {
	// Timeout bounds how long one request is held. Default 60s.
	// +kubebuilder:default="60s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('10m')",message="spec.activation.timeout must be between 1s and 10m"
	// +optional
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// MaxHeld bounds the requests that one activator holds for the function. Default 1000.
	// +kubebuilder:default=1000
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	MaxHeld int32 `json:"maxHeld,omitempty"`
	// PerReplica is how many held requests ask for one replica when spec.metrics has no concurrency. Default 100.
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=1
	PerReplica int32 `json:"perReplica,omitempty"`
	// Probe says what makes a pod take the requests that are held: Auto, that it passes its own readiness probes, which
	// the gate runs as soon as the pod has an address; Off, that Kubernetes calls it ready. Default Auto.
	// +kubebuilder:default=Auto
	Probe Probe `json:"probe,omitempty"`
	// Fallback answers the requests that the gate would have to refuse. Not with a placeholder, which is given in their
	// stead.
	// +optional
	Fallback *Fallback `json:"fallback,omitempty"`
	// Placeholder is given to who only wants to read instead of being held.
	// +optional
	Placeholder *Placeholder `json:"placeholder,omitempty"`
	// Static are answers that the gate gives by itself while the function sleeps, such as to health checks and crawlers.
	// They never wake it. The first that fits is given.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Static []StaticAnswer `json:"static,omitempty"`
}
