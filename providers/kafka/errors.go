package kafka

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/segmentio/kafka-go"
)

// The errors of partitions, groups and brokers that decide what is done next.
const (
	unknownTopicOrPartition = kafka.UnknownTopicOrPartition
	leaderNotAvailable      = kafka.LeaderNotAvailable
	notLeader               = kafka.NotLeaderForPartition
	coordinatorLoading      = kafka.GroupLoadInProgress
	coordinatorNotAvailable = kafka.GroupCoordinatorNotAvailable
	notCoordinator          = kafka.NotCoordinatorForGroup
	groupIDNotFound         = kafka.GroupIdNotFound
	replicaNotAvailable     = kafka.ReplicaNotAvailable
	fencedLeaderEpoch       = kafka.FencedLeaderEpoch
	unknownLeaderEpoch      = kafka.UnknownLeaderEpoch
	offsetNotAvailable      = kafka.OffsetNotAvailable
)

// codeError is what a broker answers with: "[3] Unknown Topic Or Partition: ...".
func codeError(code int16) error { return kafka.Error(code) }

// moved tells of an error that comes from a layout of the cluster that is not true any more.
func moved(code kafka.Error) bool {
	switch code {
	case unknownTopicOrPartition, leaderNotAvailable, notLeader, replicaNotAvailable, fencedLeaderEpoch, unknownLeaderEpoch:
		return true
	default:
		return false
	}
}

// partitionError names the partition that cannot be told.
func partitionError(p partition, doing string, err error) error {
	return fmt.Errorf("%s of topic %q, partition %d: %w", doing, p.topic, p.id, err)
}

// disconnected tells of a connection that the other side has closed.
func disconnected(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
