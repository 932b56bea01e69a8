package v1alpha1

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
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
// +kubebuilder:validation:XValidation:rule="!has(self.scale.behavior) || (has(self.metrics) && size(self.metrics) > 0)",message="spec.scale.behavior shapes how spec.metrics scale and there are none; set a metric or remove behavior"
// +kubebuilder:validation:XValidation:rule="has(self.traffic) || !has(self.activation) || ((!has(self.activation.timeout) || duration(self.activation.timeout) == duration('60s')) && (!has(self.activation.maxHeld) || self.activation.maxHeld == 1000) && (!has(self.activation.perReplica) || self.activation.perReplica == 100) && !has(self.activation.probe))",message="spec.activation is about requests that are held and there is no spec.traffic; set spec.traffic or remove activation"
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

// TrafficMode says when the gate is in the path of requests.
//
// +kubebuilder:validation:Enum=Direct;Proxied
type TrafficMode string

const (
	// Direct puts the gate into the path only while the function has no pod.
	Direct TrafficMode = "Direct"
	// Proxied leads requests through the gate always, by the Service sluice-<function> and by the shared door. Only
	// what comes through them is counted: requests to the function's own Service while it is awake are seen by nobody,
	// and do not keep it awake.
	Proxied TrafficMode = "Proxied"
)

// Traffic says how HTTP requests reach the function, and who counts them.
//
// +kubebuilder:validation:XValidation:rule="!has(self.hosts) || self.mode == 'Proxied'",message="spec.traffic.hosts needs mode Proxied: the shared door always leads through the gate; set mode Proxied or remove hosts"
// +kubebuilder:validation:XValidation:rule="!has(self.podMetrics) || self.mode == 'Direct'",message="spec.traffic.podMetrics needs mode Direct: in mode Proxied the gate counts, and counting at the pods too would count twice; remove podMetrics or set mode Direct"
type Traffic struct {
	// Service is the Service in front of the function's pods. It is never edited.
	// +optional
	// +kubebuilder:default={}
	Service ServiceRef `json:"service,omitempty"`

	// Mode says when the gate is in the path. In mode Proxied all callers should use the Service sluice-<function> or
	// the shared door: requests to the function's own Service do not count and do not keep it awake.
	// +kubebuilder:default=Direct
	Mode TrafficMode `json:"mode,omitempty"`

	// Hosts are the Host names under which the shared door of the gate serves the function, lower case, without port.
	// Mode Proxied only. A host belongs to the oldest Function that names it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Hosts []string `json:"hosts,omitempty"`

	// PodMetrics says where the function's pods count their own requests. Mode Direct only.
	// +optional
	PodMetrics *PodMetrics `json:"podMetrics,omitempty"`
}

// ServiceRef names a port of a Service in the Function's namespace.
type ServiceRef struct {
	// Name of the Service. Default: the Function's own name.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`
	// Port is the name or the number of the Service's port. Default: its only port.
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 1 && int(self) <= 65535 : string(self).matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="spec.traffic.service.port must be the name of a port of the Service, or a number from 1 to 65535"
	Port *intstr.IntOrString `json:"port,omitempty"`
}

// PodMetrics says where the function's pods expose counts of their own requests, in a Prometheus exposition over HTTP.
//
// +kubebuilder:validation:XValidation:rule="has(self.requests) || has(self.preset)",message="spec.traffic.podMetrics needs requests, the name of a counter of requests, or preset, the names that a known runtime uses"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || (has(self.scheme) && self.scheme == 'HTTPS')",message="spec.traffic.podMetrics.tls needs scheme HTTPS; set it or remove tls"
type PodMetrics struct {
	// Preset fills in what is not set here with the names, the port and the path of a known runtime.
	// +optional
	Preset PodMetricsPreset `json:"preset,omitempty"`
	// Scheme is HTTP or HTTPS. Default HTTP.
	// +optional
	// +kubebuilder:validation:Enum=HTTP;HTTPS
	Scheme string `json:"scheme,omitempty"`
	// TLS says how the pods' certificates are verified. Scheme HTTPS only. Default: against the system's authorities.
	// +optional
	TLS *PodMetricsTLS `json:"tls,omitempty"`
	// Port of the pod that serves the metrics. Default: the preset's, else the target port of the function's Service port.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// Path of the metrics. Default: the preset's, else /metrics.
	// +optional
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path,omitempty"`
	// Requests is the name of a counter of requests. Its series are summed over all labels.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_:][a-zA-Z0-9_:]*$`
	// +kubebuilder:validation:MaxLength=200
	Requests string `json:"requests,omitempty"`
	// InFlight is the name of a gauge of requests in flight, summed over all labels. Name it where a call may last
	// longer than scale.idleAfter: a running call is seen only by it.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_:][a-zA-Z0-9_:]*$`
	// +kubebuilder:validation:MaxLength=200
	InFlight string `json:"inFlight,omitempty"`
	// Duration is the name of a histogram or summary of the requests' durations in seconds, of which the _sum and the
	// _count are read. Without InFlight, requests_in_flight is the increase of its sum.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_:][a-zA-Z0-9_:]*$`
	// +kubebuilder:validation:MaxLength=200
	Duration string `json:"duration,omitempty"`
}

// PodMetricsPreset names a runtime whose metrics are known.
//
// +kubebuilder:validation:Enum=Kubeless;OpenTelemetry;Istio;Envoy;Generic
type PodMetricsPreset string

const (
	// Kubeless is the runtimes of Kubeless: function_calls_total and function_duration_seconds at :8080/metrics.
	Kubeless PodMetricsPreset = "Kubeless"
	// OpenTelemetry is the semantic conventions for HTTP servers, as the SDKs' Prometheus exporters write them, at
	// :9464/metrics.
	OpenTelemetry PodMetricsPreset = "OpenTelemetry"
	// Istio is the sidecar of Istio, at :15090/stats/prometheus. Only requests to the pod count, not those from it.
	Istio PodMetricsPreset = "Istio"
	// Envoy is a plain Envoy beside the function, at /stats/prometheus.
	Envoy PodMetricsPreset = "Envoy"
	// Generic is the names that many libraries and frameworks use.
	Generic PodMetricsPreset = "Generic"
)

// PodMetricsTLS says how the pods' certificates are verified.
//
// +kubebuilder:validation:XValidation:rule="!has(self.insecureSkipVerify) || !self.insecureSkipVerify || !has(self.caRef)",message="spec.traffic.podMetrics.tls.caRef verifies what insecureSkipVerify does not look at; remove one of the two"
type PodMetricsTLS struct {
	// InsecureSkipVerify takes any certificate.
	// +optional
	InsecureSkipVerify bool `json:"insecureSkipVerify,omitempty"`
	// ServerName that the certificates are for. Default: the pod's address.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ServerName string `json:"serverName,omitempty"`
	// CARef names a Secret in the Function's namespace whose key ca.crt holds the authorities, in PEM.
	// +optional
	CARef *SecretRef `json:"caRef,omitempty"`
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

// Metric is one thing to scale on; exactly one member is set.
//
// +kubebuilder:validation:XValidation:rule="!has(self.resource)",message="spec.metrics[].resource is not served in this version; remove it"
// +kubebuilder:validation:XValidation:rule="[has(self.requestRate), has(self.concurrency), has(self.kafkaLag), has(self.prometheus), has(self.resource)].filter(x, x).size() == 1",message="each of spec.metrics sets exactly one of requestRate, concurrency, kafkaLag, prometheus"
type Metric struct {
	// RequestRate scales on requests per second.
	// +optional
	RequestRate *RequestRateMetric `json:"requestRate,omitempty"`
	// Concurrency scales on requests in flight, held ones included.
	// +optional
	Concurrency *ConcurrencyMetric `json:"concurrency,omitempty"`
	// KafkaLag scales on the lag of a consumer group.
	// +optional
	KafkaLag *KafkaLagMetric `json:"kafkaLag,omitempty"`
	// Prometheus scales on the answer of an instant query.
	// +optional
	Prometheus *PrometheusMetric `json:"prometheus,omitempty"`
	// Resource scales on the pods' use of CPU or memory. Not served in this version.
	// +optional
	Resource *ResourceMetric `json:"resource,omitempty"`
}

// The rules of quantities: above 1P the HorizontalPodAutoscaler's thousandths overflow. An exponent is refused before the
// quantity is read, because the pattern that stands for quantities lets through what Go cannot read (1e1.5), and the API
// server is busy for minutes with what is very large (1e99999999). A Function that Go cannot read would end all watches
// of Functions.

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
type ConcurrencyMetric struct {
	// Target is the number of requests that one replica should have in flight, as a quantity.
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].concurrency.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
}

// KafkaLagMetric scales on kafka_lag: the records that a consumer group has not read, over all partitions that count. A
// partition that cannot be told makes it unknown, and never smaller.
//
// More consumers than partitions have nothing to do. So a function that scales on nothing but kafkaLag has no more replicas
// than partitions count, or than the largest number of them where it has several; minReplicas is kept. Beside other metrics
// spec.scale.maxReplicas alone bounds it.
//
// +kubebuilder:validation:XValidation:rule="has(self.topic) != has(self.topics)",message="spec.metrics[].kafkaLag needs either topic or topics"
type KafkaLagMetric struct {
	// Name tells several apart: their metrics are kafka_NAME_lag and so on. Without it they are kafka_lag,
	// kafka_lag_seconds, kafka_end_offset_rate and kafka_partitions.
	// +optional
	// +kubebuilder:validation:MaxLength=30
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z]([a-z0-9_]*[a-z0-9])?$')",message="spec.metrics[].kafkaLag.name must be of a-z, 0-9 and _, begin with a letter and not end with _"
	Name string `json:"name,omitempty"`
	// BootstrapServers of the cluster, host:port. One that answers is enough.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(s, size(s) <= 260 && s.matches('^([a-zA-Z0-9]([-a-zA-Z0-9._]*[a-zA-Z0-9])?|[[][0-9a-fA-F:]+[]]):[0-9]{1,5}$'))",message="each of spec.metrics[].kafkaLag.bootstrapServers must be HOST:PORT"
	// +kubebuilder:validation:items:MaxLength=260
	BootstrapServers []string `json:"bootstrapServers"`
	// Topic whose lag counts. It may be created later; until then the lag is unknown.
	// +optional
	// +kubebuilder:validation:MaxLength=249
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-zA-Z0-9._-]+$')",message="spec.metrics[].kafkaLag.topic must be the name of a topic, of a-z, A-Z, 0-9, '.', '_' and '-'"
	Topic string `json:"topic,omitempty"`
	// Topics whose lags count together, in place of Topic.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=249
	// +kubebuilder:validation:XValidation:rule="self.all(t, t.matches('^[a-zA-Z0-9._-]+$'))",message="each of spec.metrics[].kafkaLag.topics must be the name of a topic, of a-z, A-Z, 0-9, '.', '_' and '-'"
	Topics []string `json:"topics,omitempty"`
	// Group that consumes. One that does not exist has committed nothing.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	Group string `json:"group"`
	// Target is the number of records per replica.
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].kafkaLag.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
	// Activation is the number of records in total above which the function is awake: a sleeping one wakes, and one that
	// is awake does not go to sleep. Default 0.
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n >= 0.0 && n <= 1e15)",message="spec.metrics[].kafkaLag.activation must not be below 0 nor above 1P, and have no exponent"
	Activation *resource.Quantity `json:"activation,omitempty"`
	// OffsetReset is the auto.offset.reset of the group's consumers: where they begin in a partition in which the group
	// has committed nothing. Earliest counts all that is there; Latest what has come since the adapter first saw the
	// partition like that. Consumers that begin at the end skip records that come while the function sleeps: let them
	// begin at the start (Earliest), or commit an offset in every partition. Default Latest.
	// +optional
	// +kubebuilder:validation:Enum=Latest;Earliest
	OffsetReset KafkaOffsetReset `json:"offsetReset,omitempty"`
	// Isolation is the isolation.level of the group's consumers. ReadCommitted counts no record from the first open
	// transaction of a partition on. Default ReadUncommitted.
	// +optional
	// +kubebuilder:validation:Enum=ReadUncommitted;ReadCommitted
	Isolation KafkaIsolation `json:"isolation,omitempty"`
	// Partitions that count, by number, of each topic. Default all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:Minimum=0
	// +kubebuilder:validation:items:Maximum=2147483647
	Partitions []int32 `json:"partitions,omitempty"`
	// AuthRef names a Secret in the Function's namespace with the credentials for the cluster: sasl, username and password;
	// tls, ca.crt, tls.crt, tls.key and serverName; what OAuth and AWS need. docs/operations.md has all keys. Without it
	// brokers are talked to in the clear.
	// +optional
	AuthRef *SecretRef `json:"authRef,omitempty"`
}

// KafkaOffsetReset is where consumers begin without a committed offset.
type KafkaOffsetReset string

// KafkaIsolation says which records consumers see.
type KafkaIsolation string

const (
	// KafkaLatest begins at the end of a partition.
	KafkaLatest KafkaOffsetReset = "Latest"
	// KafkaEarliest begins at its start.
	KafkaEarliest KafkaOffsetReset = "Earliest"

	// KafkaReadUncommitted sees all records.
	KafkaReadUncommitted KafkaIsolation = "ReadUncommitted"
	// KafkaReadCommitted sees none from the first open transaction on.
	KafkaReadCommitted KafkaIsolation = "ReadCommitted"
)

// SecretRef names a Secret in the Function's namespace.
type SecretRef struct {
	// Name of the Secret.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="the name of a Secret is lower case letters, digits, - and ., and no path: the Secret is in the Function's own namespace"
	Name string `json:"name"`
}

// PrometheusMetric scales on the answer of an instant query.
type PrometheusMetric struct {
	// Name under which the value is served as a custom metric.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_][a-zA-Z0-9_:.-]*$`
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="!(self in ['requests_per_second', 'requests_in_flight', 'request_duration_seconds', 'idle_seconds']) && !self.startsWith('kafka_')",message="spec.metrics[].prometheus.name is a name that Sluice gives to a metric of its own; choose another"
	Name string `json:"name"`
	// Server is the base URL of the Prometheus server, http or https, without credentials, query or fragment.
	// +kubebuilder:validation:XValidation:rule="self.matches('^https?://[^/?#@]+(/[^?#]*)?$') && isURL(self)",message="spec.metrics[].prometheus.server must be a URL such as http://HOST:PORT or https://HOST/PATH, without user, query or fragment; credentials go into the Secret of authRef"
	// +kubebuilder:validation:MaxLength=512
	Server string `json:"server"`
	// Query in PromQL, with one number as its answer: a scalar, or a vector of one element. {{.Namespace}} and
	// {{.Function}} in it stand for the Function's own.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.replace('{{.Namespace}}', 'x').replace('{{.Function}}', 'x').contains('{{')",message="spec.metrics[].prometheus.query may hold {{.Namespace}} and {{.Function}}, written like that, and no other {{"
	Query string `json:"query"`
	// Target per replica.
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].prometheus.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
	// Activation is the value above which the function is awake: a sleeping one wakes, and one that is awake does not go
	// to sleep. Default 0.
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n >= 0.0 && n <= 1e15)",message="spec.metrics[].prometheus.activation must not be below 0 nor above 1P, and have no exponent"
	Activation *resource.Quantity `json:"activation,omitempty"`
	// EmptyIs says what an answer without any element means. Unknown holds the scale; Zero is for queries whose series
	// exist only while there is something to count. Default Unknown.
	// +optional
	// +kubebuilder:validation:Enum=Unknown;Zero
	EmptyIs string `json:"emptyIs,omitempty"`
	// AuthRef names a Secret in the Function's namespace with the credentials for Server: username and password, or
	// bearerToken, and for TLS ca.crt, tls.crt and tls.key.
	// +optional
	AuthRef *SecretRef `json:"authRef,omitempty"`
}

// ResourceMetric scales on CPU or memory. Not served in this version.
type ResourceMetric struct {
	// Name of the resource.
	// +kubebuilder:validation:Enum=cpu;memory
	Name string `json:"name"`
	// Utilization is the target in percent of the pods' requests.
	// +kubebuilder:validation:Minimum=1
	Utilization int32 `json:"utilization"`
}

// Activation tunes how requests are held while the function wakes.
//
// +kubebuilder:validation:XValidation:rule="!has(self.probe) || self.probe == 'Ready'",message="spec.activation.probe Auto is not served in this version; leave it out or set Ready"
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
	// Probe says what makes a pod take its first request: Ready waits for the pod's readiness.
	// +optional
	// +kubebuilder:validation:Enum=Ready;Auto
	Probe string `json:"probe,omitempty"`
}

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
	// InPath is true while the gate's endpoints are part of the function's own Service.
	// +optional
	InPath bool `json:"inPath"`
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
