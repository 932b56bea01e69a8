package v1alpha1

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
)

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

// The metrics of a kafkaLag, without a name of its own.
const (
	// KafkaLag is how many records the group has not read, over all partitions that count.
	KafkaLag = "kafka_lag"
	// KafkaLagSeconds is how long the group needs for them, at the rate at which it has committed in the last minute.
	KafkaLagSeconds = "kafka_lag_seconds"
	// KafkaEndOffsetRate is how many records per second have come, in the last minute.
	KafkaEndOffsetRate = "kafka_end_offset_rate"
	// KafkaPartitions is how many partitions count. More consumers than that have nothing to do.
	KafkaPartitions = "kafka_partitions"
)

// Metric is the name under which this one's metric of the kind is served: KafkaLag and so on.
func (m *KafkaLagMetric) Metric(kind string) string {
	if m.Name == "" {
		return kind
	}
	return "kafka_" + m.Name + kind[len("kafka"):]
}

// AllTopics are the topics that count, in order.
func (m *KafkaLagMetric) AllTopics() []string {
	if m.Topic != "" {
		return []string{m.Topic}
	}
	return slices.Sorted(slices.Values(m.Topics))
}
