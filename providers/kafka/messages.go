package kafka

import (
	"github.com/segmentio/kafka-go/protocol"
)

// The module has no type for what is asked here of many at once, so that its own would cost a request per partition, or
// per group: its ListOffsets is split by partition, its OffsetFetch ends before version 8, which takes many groups, and its
// FindCoordinator before version 4, which does too. Its Metadata ends before version 10, which has the IDs of topics.
func init() { //nolint:gochecknoinits // the module's way to make a message known; what it has of its own is replaced
	protocol.Register(&findCoordinatorRequest{}, &findCoordinatorResponse{})
	protocol.Register(&listOffsetsRequest{}, &listOffsetsResponse{})
	protocol.Register(&metadataRequest{}, &metadataResponse{})
	protocol.Register(&offsetFetchRequest{}, &offsetFetchResponse{})
}

// The timestamps that ask ListOffsets for the ends of a log.
const (
	latest   int64 = -1
	earliest int64 = -2
)

// listOffsetsRequest asks one broker for the offsets of partitions that it leads. A partition may be in one request once.
type listOffsetsRequest struct {
	ReplicaID      int32                `kafka:"min=v1,max=v5"`
	IsolationLevel int8                 `kafka:"min=v2,max=v5"`
	Topics         []listOffsetsAskings `kafka:"min=v1,max=v5"`
}

type listOffsetsAskings struct {
	Topic      string              `kafka:"min=v1,max=v5"`
	Partitions []listOffsetsAsking `kafka:"min=v1,max=v5"`
}

type listOffsetsAsking struct {
	Partition          int32 `kafka:"min=v1,max=v5"`
	CurrentLeaderEpoch int32 `kafka:"min=v4,max=v5"`
	Timestamp          int64 `kafka:"min=v1,max=v5"`
}

type listOffsetsResponse struct {
	ThrottleTimeMs int32                `kafka:"min=v2,max=v5"`
	Topics         []listOffsetsAnswers `kafka:"min=v1,max=v5"`
}

type listOffsetsAnswers struct {
	Topic      string              `kafka:"min=v1,max=v5"`
	Partitions []listOffsetsAnswer `kafka:"min=v1,max=v5"`
}

type listOffsetsAnswer struct {
	Partition   int32 `kafka:"min=v1,max=v5"`
	ErrorCode   int16 `kafka:"min=v1,max=v5"`
	Timestamp   int64 `kafka:"min=v1,max=v5"`
	Offset      int64 `kafka:"min=v1,max=v5"`
	LeaderEpoch int32 `kafka:"min=v4,max=v5"`
}

// The fields named _ make messages flexible from that version on (KIP-482): strings and arrays are compact, and tagged
// fields may follow.

// offsetFetchRequest asks a coordinator for what groups have committed: of one group below version 8, of many from there.
type offsetFetchRequest struct {
	GroupID       string             `kafka:"min=v1,max=v7"`
	Topics        []offsetFetchTopic `kafka:"min=v1,max=v7,nullable"`
	Groups        []offsetFetchGroup `kafka:"min=v8,max=v8"`
	RequireStable bool               `kafka:"min=v7,max=v8"`
	_             struct{}           `kafka:"min=v6,max=v8,tag"`
}

type offsetFetchGroup struct {
	GroupID string             `kafka:"min=v8,max=v8"`
	Topics  []offsetFetchTopic `kafka:"min=v8,max=v8,nullable"`
}

type offsetFetchTopic struct {
	Name       string  `kafka:"min=v1,max=v8"`
	Partitions []int32 `kafka:"min=v1,max=v8"`
}

type offsetFetchResponse struct {
	ThrottleTimeMs int32               `kafka:"min=v3,max=v8"`
	Topics         []committedTopic    `kafka:"min=v1,max=v7"`
	ErrorCode      int16               `kafka:"min=v2,max=v7"`
	Groups         []committedOfAGroup `kafka:"min=v8,max=v8"`
	_              struct{}            `kafka:"min=v6,max=v8,tag"`
}

type committedOfAGroup struct {
	GroupID   string           `kafka:"min=v8,max=v8"`
	Topics    []committedTopic `kafka:"min=v8,max=v8"`
	ErrorCode int16            `kafka:"min=v8,max=v8"`
}

type committedTopic struct {
	Name       string               `kafka:"min=v1,max=v8"`
	Partitions []committedPartition `kafka:"min=v1,max=v8"`
}

type committedPartition struct {
	Partition   int32  `kafka:"min=v1,max=v8"`
	Offset      int64  `kafka:"min=v1,max=v8"`
	LeaderEpoch int32  `kafka:"min=v5,max=v8"`
	Metadata    string `kafka:"min=v1,max=v8,nullable"`
	ErrorCode   int16  `kafka:"min=v1,max=v8"`
}

// findCoordinatorRequest asks any broker who keeps a group below version 4, or many groups from there.
type findCoordinatorRequest struct {
	Key     string   `kafka:"min=v0,max=v3"`
	KeyType int8     `kafka:"min=v1,max=v4"`
	Keys    []string `kafka:"min=v4,max=v4"`
	_       struct{} `kafka:"min=v3,max=v4,tag"`
}

type findCoordinatorResponse struct {
	ThrottleTimeMs int32         `kafka:"min=v1,max=v4"`
	ErrorCode      int16         `kafka:"min=v0,max=v3"`
	ErrorMessage   string        `kafka:"min=v1,max=v3,nullable"`
	NodeID         int32         `kafka:"min=v0,max=v3"`
	Host           string        `kafka:"min=v0,max=v3"`
	Port           int32         `kafka:"min=v0,max=v3"`
	Coordinators   []coordinator `kafka:"min=v4,max=v4"`
	_              struct{}      `kafka:"min=v3,max=v4,tag"`
}

type coordinator struct {
	Key          string `kafka:"min=v4,max=v4"`
	NodeID       int32  `kafka:"min=v4,max=v4"`
	Host         string `kafka:"min=v4,max=v4"`
	Port         int32  `kafka:"min=v4,max=v4"`
	ErrorCode    int16  `kafka:"min=v4,max=v4"`
	ErrorMessage string `kafka:"min=v4,max=v4,nullable"`
}

// ApiKey implements protocol.Message.
func (*findCoordinatorRequest) ApiKey() protocol.ApiKey { return protocol.FindCoordinator } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*findCoordinatorResponse) ApiKey() protocol.ApiKey { return protocol.FindCoordinator } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*listOffsetsRequest) ApiKey() protocol.ApiKey { return protocol.ListOffsets } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*listOffsetsResponse) ApiKey() protocol.ApiKey { return protocol.ListOffsets } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*offsetFetchRequest) ApiKey() protocol.ApiKey { return protocol.OffsetFetch } //nolint:revive,staticcheck // the module's name

// ApiKey implements protocol.Message.
func (*offsetFetchResponse) ApiKey() protocol.ApiKey { return protocol.OffsetFetch } //nolint:revive,staticcheck // the module's name
