package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
)

// answers are all that is ever decoded.
var answers = []protocol.Message{
	&apiversions.Response{ApiKeys: []apiversions.ApiKeyResponse{{ApiKey: 1, MaxVersion: 2}}},
	&metadataResponse{
		Brokers: []metadataBroker{{NodeID: 1, Host: "kafka", Port: 9092, Rack: "a"}},
		Topics: []metadataTopic{{Name: "t", IDHigh: -7, IDLow: 1 << 40, Partitions: []metadataPartition{
			{LeaderID: 1, ReplicaNodes: []int32{1, 2}, IsrNodes: []int32{1}, OfflineReplicas: []int32{2}},
		}}},
	},
	&findCoordinatorResponse{
		ErrorMessage: "none", Host: "kafka", Port: 9092,
		Coordinators: []coordinator{{Key: "g", NodeID: 1, Host: "kafka", Port: 9092}, {Key: "h", ErrorCode: 30, ErrorMessage: "no"}},
	},
	&saslhandshake.Response{Mechanisms: []string{"PLAIN"}},
	&saslauthenticate.Response{ErrorMessage: "no", AuthBytes: []byte("v=")},
	&listOffsetsResponse{Topics: []listOffsetsAnswers{{Topic: "t", Partitions: []listOffsetsAnswer{{Partition: 1, Offset: 7}}}}},
	&offsetFetchResponse{
		Topics: []committedTopic{{Name: "t", Partitions: []committedPartition{{Partition: 1, Offset: 7, Metadata: "m"}}}},
		Groups: []committedOfAGroup{{GroupID: "g", Topics: []committedTopic{
			{Name: "t", Partitions: []committedPartition{{Partition: 1, Offset: 7, Metadata: "m"}, {Partition: 2, Offset: 8}}},
		}}},
	},
}

// encoded is a message as a broker sends it.
func encoded(t testing.TB, m protocol.Message, version int16) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := protocol.WriteResponse(&b, version, 7, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What the encoder writes, in every version, the guard lets pass whole.
func TestFrameOfEveryVersion(t *testing.T) {
	for _, m := range answers {
		key := m.ApiKey()
		for version := key.MinVersion(); version <= key.MaxVersion(); version++ {
			sent := encoded(t, m, version)
			got, err := readFrame(bytes.NewReader(sent), maxFrame, m, version)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%s version %d: %v", key, version, err)
				continue
			}
			if _, decoded, err := protocol.ReadResponse(bytes.NewReader(got), key, version); err != nil {
				t.Errorf("%s version %d: %v", key, version, err)
			} else if again := encoded(t, decoded, version); !bytes.Equal(again, sent) {
				t.Errorf("%s version %d: decoded is not what was sent (-want +got):\n%s", key, version, cmp.Diff(sent, again))
			}
		}
	}
}

func TestFrameRefused(t *testing.T) {
	array := binary.BigEndian.AppendUint32(nil, 1<<30)
	frame := func(body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))
		return append(append(b, 0, 0, 0, 7), body...)
	}
	for _, tt := range []struct {
		name string
		sent []byte
		want string
	}{
		{"another protocol", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "a frame of 1213486160 bytes"},
		{"TLS", []byte{0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46}, "it speaks TLS"},
		{"too short", []byte{0, 0, 0, 1, 9}, "a frame of 1 bytes"},
		{"negative", []byte{0xff, 0xff, 0xff, 0xff}, "a frame of -1 bytes"},
		{"an array that is not there", frame(append([]byte{0, 0, 0, 0}, array...)), "an array of 1073741824"},
		{"cut off", frame(nil)[:6], "unexpected EOF"},
		{"a string that is not there", frame([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 0xff}), "a string of 32767 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readFrame(bytes.NewReader(tt.sent), maxFrame, &listOffsetsResponse{}, 5)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzFrame: whatever the guard lets pass is decoded without an allocation out of proportion, a panic, or bytes that it
// did not see.
func FuzzFrame(f *testing.F) {
	for i, m := range answers {
		for version := m.ApiKey().MinVersion(); version <= m.ApiKey().MaxVersion(); version++ {
			f.Add(uint8(i), version, encoded(f, m, version))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, version int16, sent []byte) {
		like := answers[int(which)%len(answers)]
		key := like.ApiKey()
		if version < key.MinVersion() || version > key.MaxVersion() {
			t.Skip("a version that is never agreed upon")
		}
		frame, err := readFrame(bytes.NewReader(sent), maxFrame, like, version)
		if err != nil {
			return
		}
		_, m, err := protocol.ReadResponse(bytes.NewReader(frame), key, version)
		if errors.Is(err, errFrame) || err == nil && reflect.TypeOf(m) != reflect.TypeOf(like) {
			t.Errorf("decoded %T: %v", m, err)
		}
	})
}
