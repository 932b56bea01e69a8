package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Phase is where the function is between sleeping and serving.
//
// +kubebuilder:validation:Enum=Idle;Waking;Active
type Phase string

const (
	// Idle means no replica, the gate holds the path.
	Idle Phase = "Idle"
	// Waking means replicas are asked for and none is ready.
	Waking Phase = "Waking"
	// Active means at least one pod is ready.
	Active Phase = "Active"
)

// Condition types of a Function. Each carries observedGeneration, and a message that names the field and the remedy.
const (
	// ConditionReady is True when the function can serve: its workload and Service exist and the gate is set up.
	ConditionReady = "Ready"
	// ConditionMetricsAvailable is True when every metric of the function has a known value.
	ConditionMetricsAvailable = "MetricsAvailable"
	// ConditionScalingActive is True when Sluice scales the workload.
	ConditionScalingActive = "ScalingActive"
)

// ReasonWorkloadConflict is the reason of ConditionReady when an older Function has the same workload. The younger one
// does nothing: it is not scaled, and the gate does not serve it.
const ReasonWorkloadConflict = "WorkloadConflict"

// ReasonHostConflict is the reason of ConditionReady when another Function holds one of spec.traffic.hosts. The shared
// door leads that host to the other one; all else is served.
const ReasonHostConflict = "HostConflict"

// FunctionStatus is what Sluice last saw and did. It is written on transitions, and while the function is awake at
// most every 15 s when a value in it has moved materially; live numbers are the metrics API's.
type FunctionStatus struct {
	// ObservedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase of the function.
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// Replicas that the workload asks for.
	// +optional
	Replicas int32 `json:"replicas"`
	// ReadyReplicas are the function's pods that are ready behind its Service.
	// +optional
	ReadyReplicas int32 `json:"readyReplicas"`
	// Gate says where the gate listens for the function.
	// +optional
	Gate *GateStatus `json:"gate,omitempty"`
	// Metrics are the values last seen.
	// +optional
	// +listType=map
	// +listMapKey=name
	Metrics []MetricStatus `json:"metrics,omitempty"`
	// LastDecision is the last change of scale or path and why it was made.
	// +optional
	LastDecision *DecisionStatus `json:"lastDecision,omitempty"`
	// Conditions: Ready, MetricsAvailable, ScalingActive.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GateStatus says where the gate listens for the function.
type GateStatus struct {
	// Port on every activator that belongs to this function alone.
	Port int32 `json:"port"`
	// ServicePort is the name of the port of the function's Service, empty where that port has no name.
	// +optional
	ServicePort string `json:"servicePort"`
	// AppProtocol is that of the port of the function's Service. It says what the gate speaks to the pods.
	// +optional
	AppProtocol string `json:"appProtocol,omitempty"`
	// InPath is true while the gate's endpoints are part of the function's own Service.
	// +optional
	InPath bool `json:"inPath"`
	// Hosts are those of spec.traffic.hosts that were granted: the shared door serves the function under these alone.
	// One that has left the spec stands here until another Function has it, or for some seconds.
	// +optional
	// +listType=set
	Hosts []string `json:"hosts,omitempty"`
	// Fallback is the Service port that spec.activation.fallback names; absent where there is none.
	// +optional
	Fallback *FallbackStatus `json:"fallback,omitempty"`
}

// MetricStatus is one value with its age.
type MetricStatus struct {
	// Name of the metric, as the metrics API serves it.
	Name string `json:"name"`
	// Value last seen, in the metric's own unit. Absent when it is unknown.
	// +optional
	Value *resource.Quantity `json:"value,omitempty"`
	// Target per replica, where the function scales on this metric.
	// +optional
	Target *resource.Quantity `json:"target,omitempty"`
	// ObservedAt is the time the value was true.
	// +optional
	ObservedAt *metav1.Time `json:"observedAt,omitempty"`
	// Unknown says in words why there is no value.
	// +optional
	Unknown string `json:"unknown,omitempty"`
}

// DecisionStatus is one decision and its inputs.
type DecisionStatus struct {
	// Time of the decision.
	Time metav1.Time `json:"time"`
	// Reason in one CamelCase word.
	Reason string `json:"reason"`
	// Message gives the inputs with their age, the formula and the clamps.
	Message string `json:"message"`
	// From is the number of replicas before.
	From int32 `json:"from"`
	// To is the number of replicas asked for.
	To int32 `json:"to"`
}
