package v1alpha1

import (
	"k8s.io/apimachinery/pkg/util/intstr"
)

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

// Traffic says how requests reach the function, and who counts them.
//
// +kubebuilder:validation:XValidation:rule="!has(self.hosts) || self.mode == 'Proxied'",message="spec.traffic.hosts needs mode Proxied: the shared door always leads through the gate; set mode Proxied or remove hosts"
// +kubebuilder:validation:XValidation:rule="!has(self.podMetrics) || self.mode == 'Direct'",message="spec.traffic.podMetrics needs mode Direct: in mode Proxied the gate counts, and counting at the pods too would count twice; remove podMetrics or set mode Direct"
// +kubebuilder:validation:XValidation:rule="!has(self.hosts) || self.protocol != 'TCP'",message="spec.traffic.hosts needs protocol HTTP: the shared door knows the function by the Host of its requests, and TCP has none; remove hosts or set protocol HTTP"
// +kubebuilder:validation:XValidation:rule="!has(self.podMetrics) || self.protocol != 'TCP' || (!has(self.podMetrics.preset) && has(self.podMetrics.requests) && has(self.podMetrics.inFlight) && has(self.podMetrics.port))",message="spec.traffic.podMetrics with protocol TCP needs requests (a counter of accepted connections), inFlight (a gauge of open ones: else the function would sleep under them) and port (which speaks HTTP), and no preset, which counts HTTP requests"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || (has(self.hosts) && size(self.hosts) > 0)",message="spec.traffic.tls is the certificate of spec.traffic.hosts, and there are none; set hosts and mode Proxied, or remove tls"
type Traffic struct {
	// Service is the Service in front of the function's pods. It is never edited.
	// +optional
	// +kubebuilder:default={}
	Service ServiceRef `json:"service,omitempty"`

	// Mode says when the gate is in the path. In mode Proxied all callers should use the Service sluice-<function> or
	// the shared door: requests to the function's own Service do not count and do not keep it awake.
	// +kubebuilder:default=Direct
	Mode TrafficMode `json:"mode,omitempty"`

	// Protocol of what comes to the function: HTTP (1.1 and 2, gRPC and WebSocket included), or TCP for everything else,
	// TLS to the pods included. A TCP connection counts as one request for as long as it is open. Default HTTP.
	// +kubebuilder:default=HTTP
	Protocol TrafficProtocol `json:"protocol,omitempty"`

	// Hosts are the Host names under which the shared door of the gate serves the function, lower case, without port.
	// Mode Proxied only. A host belongs to the Function that named it first, in whatever namespace, until that one does
	// so no more; of several that name it at the same time, to the oldest. status.gate.hosts has those that were granted.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Hosts []string `json:"hosts,omitempty"`

	// TLS says by which certificate the shared door serves hosts over TLS. Without it they are served in the clear alone.
	// +optional
	TLS *TrafficTLS `json:"tls,omitempty"`

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
