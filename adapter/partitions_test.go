package adapter

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

func consumerOf(name string) providers.Consumer {
	return providers.Consumer{
		Name: name, Servers: "kafka:9092", Group: "hello", Topics: "orders", Reset: v1alpha1.KafkaEarliest,
		Isolation: v1alpha1.KafkaReadUncommitted, AuthSecret: "kafka-auth",
	}
}

func TestPartitions(t *testing.T) {
	parts := []providers.PartitionLag{
		{Topic: "orders", Partition: 0, Committed: 7, End: 10, Lag: 3},
		{Topic: "orders", Partition: 1, Committed: -1, Start: 2, End: 10, Lag: 8},
		{Topic: "orders", Partition: 2, Committed: 100, End: 10, Lag: 10},
		{Topic: "orders", Partition: 3, Committed: 1, Start: 4, End: 10, Lag: 6},
		{Topic: "orders", Partition: 4, Committed: 7, End: 10, Lag: 10},
	}
	many := make([]providers.PartitionLag, mostPartitions+5)
	for i := range many {
		many[i] = providers.PartitionLag{Topic: "orders", Partition: int32(i), End: int64(i), Lag: int64(i)}
	}
	at := time.Now().Add(-90 * time.Second)
	reader := fakeReader{}
	for name, lag := range map[string]providers.ConsumerLag{
		"known":  {Consumer: consumerOf(""), Partitions: parts, At: at},
		"failed": {Consumer: consumerOf("two"), Partitions: parts[:1], At: at, Err: errors.New("it hangs")},
		"stale": {Consumer: consumerOf(""), Partitions: parts[:1], At: at, Unknown: &providers.Unknown{
			Reason: providers.SourceError, Source: "consumer group", Err: errors.New("it hangs"),
		}},
		"new":  {Consumer: consumerOf(""), Unknown: &providers.Unknown{Reason: providers.NoData}},
		"many": {Consumer: consumerOf(""), Partitions: many, At: at},
	} {
		reader[types.NamespacedName{Namespace: "default", Name: name}] = fakeFunction{
			metrics: []string{"idle_seconds", lag.Consumer.Metric(v1alpha1.KafkaLag)}, lag: &lag,
		}
	}
	r := start(t, func(o *Options) { o.Reader = reader })
	path := func(version, function, metric string) string {
		return fmt.Sprintf("/apis/custom.metrics.k8s.io/%s/namespaces/default/functions.sluice.dev/%s/%s/partitions", version, function, metric)
	}
	number := func(n int64) *int64 { return &n }
	first := lagOfAPartition{Topic: "orders", Committed: number(7), End: 10, Lag: 3}
	for _, tt := range []struct {
		name, function, metric string
		want                   lagInParts
	}{
		{name: "known", function: "known", metric: "kafka_lag", want: lagInParts{Lag: number(37), Partitions: []lagOfAPartition{
			first,
			{Topic: "orders", Partition: 1, Start: 2, End: 10, Lag: 8, Note: "nothing is committed: all that is there counts"},
			{Topic: "orders", Partition: 2, Committed: number(100), End: 10, Lag: 10, Note: "committed beyond the end, as if nothing were: all that is there counts"},
			{Topic: "orders", Partition: 3, Committed: number(1), Start: 4, End: 10, Lag: 6, Note: "what was not read before the start is deleted, and does not count"},
			{Topic: "orders", Partition: 4, Committed: number(7), End: 10, Lag: 10, Note: "committed in a topic that was deleted since: all that is there counts"},
		}}},
		{name: "the latest attempt failed", function: "failed", metric: "kafka_two_lag", want: lagInParts{
			Lag: number(3), Error: "the latest attempt to measure it failed: it hangs", Partitions: []lagOfAPartition{first},
		}},
		{name: "not known any more", function: "stale", metric: "kafka_lag", want: lagInParts{
			Error: "consumer group cannot be measured: it hangs", Partitions: []lagOfAPartition{first},
		}},
		{name: "not known yet", function: "new", metric: "kafka_lag", want: lagInParts{Error: "no data yet", Partitions: []lagOfAPartition{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body := r.try(path("v1beta2", tt.function, tt.metric), "good")
			var got lagInParts
			if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
				t.Fatalf("status %d, %v: %s", code, err, body)
			}
			tt.want.Function, tt.want.Metric = "default/"+tt.function, tt.metric
			tt.want.BootstrapServers, tt.want.Group, tt.want.OffsetReset, tt.want.Isolation = "kafka:9092", "hello", "Earliest", "ReadUncommitted"
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(lagInParts{}, "ObservedAt", "AgeSeconds")); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if seen := got.ObservedAt != nil; seen != (tt.function != "new") || seen && (got.ObservedAt.Unix() != at.Unix() || *got.AgeSeconds < 90 || *got.AgeSeconds > 120) {
				t.Errorf("observed at %v, want %v", got.ObservedAt, at)
			}
			if strings.Contains(body, "kafka-auth") {
				t.Error("it names the Secret")
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		_, body := r.try(path("v1beta1", "many", "kafka_lag"), "good")
		var got lagInParts
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		sum := int64((mostPartitions + 4) * (mostPartitions + 5) / 2)
		if got.Omitted != 5 || len(got.Partitions) != mostPartitions || *got.Lag != sum || got.Partitions[mostPartitions-1].Lag != 5 {
			t.Errorf("%d of %d omitted, lag %d, want 5, %d and %d", got.Omitted, len(got.Partitions), *got.Lag, mostPartitions, sum)
		}
		if many[0].Lag != 0 || many[1].Lag != 1 {
			t.Error("the reader's list is sorted")
		}
	})
	for _, tt := range []struct {
		name, path, token, method string
		code                      int
		says                      string
	}{
		{name: "no function", path: path("v1beta2", "nobody", "kafka_lag"), token: "good", code: http.StatusNotFound, says: "there is no Function default/nobody"},
		{
			name: "another metric", path: path("v1beta2", "known", "idle_seconds"), token: "good", code: http.StatusNotFound,
			says: "idle_seconds of default/known has no partitions: only the lag of a consumer group (spec.metrics[].kafkaLag) has; of all metrics there are idle_seconds, kafka_lag",
		},
		{name: "a list", path: path("v1beta2", "*", "kafka_lag"), token: "good", code: http.StatusNotFound, says: "there is no Function default/*"},
		{name: "nobody", path: path("v1beta2", "known", "kafka_lag"), code: http.StatusForbidden, says: `cannot get resource \"functions.sluice.dev/kafka_lag\"`},
		{name: "who may not", path: path("v1beta2", "known", "kafka_lag"), token: "poor", code: http.StatusForbidden, says: `in the namespace \"default\"`},
		{name: "a write", path: path("v1beta2", "known", "kafka_lag"), token: "good", method: http.MethodPost, code: http.StatusMethodNotAllowed, says: "not supported"},
		{
			name: "no part of it", path: path("v1beta2", "known", "kafka_lag") + "/0", token: "good", code: http.StatusNotFound,
			says: "",
		},
		{
			name: "of something else", token: "good", code: http.StatusNotFound,
			path: "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/known/kafka_lag/partitions",
		},
		{
			name: "of another group", token: "good", code: http.StatusNotFound,
			path: "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/functions.sluice.dev/known/kafka_lag/partitions",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.send(tt.method, tt.path, tt.token, "")
			if got.code != tt.code || !strings.Contains(got.body, tt.says) {
				t.Errorf("status %d: %s; want %d, %q", got.code, got.body, tt.code, tt.says)
			}
		})
	}
}
