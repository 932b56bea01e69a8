package kafka

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/segmentio/kafka-go/protocol"
)

// topicID tells a topic from one that has its name, and is there after it was deleted. It is zero where a broker does not
// say, as none does before Kafka 2.8.
type topicID struct{ high, low int64 }

// String is as Kafka's own tools write it.
func (id topicID) String() string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(id.high)) //nolint:gosec // bits
	b = binary.BigEndian.AppendUint64(b, uint64(id.low))                     //nolint:gosec // bits
	return base64.RawURLEncoding.EncodeToString(b)
}

// metadataRequest asks any broker for topics by their names. An ID is two numbers here and below: a structure of its own
// would have tagged fields.
type metadataRequest struct {
	Topics                             []metadataAsking `kafka:"min=v1,max=v12,nullable"`
	AllowAutoTopicCreation             bool             `kafka:"min=v4,max=v12"`
	IncludeClusterAuthorizedOperations bool             `kafka:"min=v8,max=v10"`
	IncludeTopicAuthorizedOperations   bool             `kafka:"min=v8,max=v12"`
	_                                  struct{}         `kafka:"min=v9,max=v12,tag"`
}

type metadataAsking struct {
	IDHigh int64  `kafka:"min=v10,max=v12"` // zero: it is asked for by its name
	IDLow  int64  `kafka:"min=v10,max=v12"`
	Name   string `kafka:"min=v1,max=v12"`
}

type metadataResponse struct {
	ThrottleTimeMs              int32            `kafka:"min=v3,max=v12"`
	Brokers                     []metadataBroker `kafka:"min=v1,max=v12"`
	ClusterID                   string           `kafka:"min=v2,max=v12,nullable"`
	ControllerID                int32            `kafka:"min=v1,max=v12"`
	Topics                      []metadataTopic  `kafka:"min=v1,max=v12"`
	ClusterAuthorizedOperations int32            `kafka:"min=v8,max=v10"`
	_                           struct{}         `kafka:"min=v9,max=v12,tag"`
}

type metadataBroker struct {
	NodeID int32  `kafka:"min=v1,max=v12"`
	Host   string `kafka:"min=v1,max=v12"`
	Port   int32  `kafka:"min=v1,max=v12"`
	Rack   string `kafka:"min=v1,max=v12,nullable"`
}

type metadataTopic struct {
	ErrorCode                 int16               `kafka:"min=v1,max=v12"`
	Name                      string              `kafka:"min=v1,max=v12"` // null in version 12 for an ID that is not there
	IDHigh                    int64               `kafka:"min=v10,max=v12"`
	IDLow                     int64               `kafka:"min=v10,max=v12"`
	IsInternal                bool                `kafka:"min=v1,max=v12"`
	Partitions                []metadataPartition `kafka:"min=v1,max=v12"`
	TopicAuthorizedOperations int32               `kafka:"min=v8,max=v12"`
}

func (t *metadataTopic) id() topicID { return topicID{t.IDHigh, t.IDLow} }

type metadataPartition struct {
	ErrorCode       int16   `kafka:"min=v1,max=v12"`
	PartitionIndex  int32   `kafka:"min=v1,max=v12"`
	LeaderID        int32   `kafka:"min=v1,max=v12"`
	LeaderEpoch     int32   `kafka:"min=v7,max=v12"`
	ReplicaNodes    []int32 `kafka:"min=v1,max=v12"`
	IsrNodes        []int32 `kafka:"min=v1,max=v12"`
	OfflineReplicas []int32 `kafka:"min=v5,max=v12"`
}

// ApiKey implements protocol.Message.
func (*metadataRequest) ApiKey() protocol.ApiKey { return protocol.Metadata } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*metadataResponse) ApiKey() protocol.ApiKey { return protocol.Metadata } //nolint:revive,staticcheck // the module's name
