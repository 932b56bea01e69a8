package v1alpha1

import "slices"

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
