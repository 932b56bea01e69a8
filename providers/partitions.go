package providers

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// PartitionLag is how far a consumer group is behind in one partition, in records.
type PartitionLag struct {
	// Topic and Partition of it.
	Topic     string
	Partition int32
	// Committed is the next offset that the group reads, -1 where it has committed nothing. It may be beyond End, or below
	// Start, or of a topic that was deleted since; then Lag is not what is between it and End.
	Committed int64
	// Start and End of the log: End is one past the last record that counts.
	Start, End int64
	// Lag is what counts as not read.
	Lag int64
}

// ConsumerLag is a consumer group's lag in parts.
type ConsumerLag struct {
	// Consumer is the group.
	Consumer Consumer
	// Partitions as of At, by topic and number; none where the group was never measured. The list is shared, and not to be
	// written to.
	Partitions []PartitionLag
	// At is when they were looked at; zero for never.
	At time.Time
	// Unknown is why the group's lag is not known now; nil where it is the sum of Partitions.
	Unknown *Unknown
	// Err is why the latest attempt to measure it failed; nil where it did not.
	Err error
}

// ConsumerLag tells of the consumer group whose lag is the function's metric of that name. The error is ErrNoFunction, or
// an *Unknown: there is no such metric, or it is none of a consumer group.
func (s *Store) ConsumerLag(name types.NamespacedName, metric string) (ConsumerLag, error) {
	f := s.function(name)
	if f == nil {
		return ConsumerLag{}, ErrNoFunction
	}
	wall := time.Now()
	now := s.tick(wall)
	for _, src := range *f.queries.Load() {
		if src.Kind != Lag || src.Consumer.Metric(v1alpha1.KafkaLag) != metric {
			continue
		}
		st := src.state.Load()
		lag := ConsumerLag{Consumer: src.Consumer, Partitions: st.partitions, Unknown: src.stale(st, now), Err: st.err}
		if st.sampled != never {
			lag.At = wall.Add(-time.Duration(now - min(st.sampled, now)))
		}
		return lag, nil
	}
	return ConsumerLag{}, &Unknown{Reason: NoMetric, Detail: "no consumer group has a metric " + metric}
}
