package v1alpha1

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

// SecretRef names a Secret in the Function's namespace.
type SecretRef struct {
	// Name of the Secret.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="the name of a Secret is lower case letters, digits, - and ., and no path: the Secret is in the Function's own namespace"
	Name string `json:"name"`
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
