package providers

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A cluster that is away makes the lag unknown after three of its own intervals, not after three of a query's.
func TestLagAges(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		lag := Endpoint{Target: Target{
			Kind: Lag, Function: hello, Consumer: Consumer{Servers: "kafka:9092", Topics: "orders", Group: "hello"},
		}, Expected: true}
		w.asks = []Endpoint{lag}
		w.list()
		pass(time.Second)
		found := &Measurement{Answers: []Answer{{Metric: v1alpha1.KafkaLag, Value: 42}, {Metric: v1alpha1.KafkaPartitions, Value: 12}}}
		if err := w.store.Record(lag.Target, time.Now(), found, nil); err != nil {
			t.Fatal(err)
		}
		_ = w.store.Record(lag.Target, time.Now(), nil, errors.New("connection refused"))
		pass(6 * time.Second)
		w.want(v1alpha1.KafkaLag, 42)
		pass(time.Second)
		w.wantUnknown(v1alpha1.KafkaLag, Stale)
		w.wantUnknown(v1alpha1.KafkaPartitions, Stale)
	})
}

// What a lag is made of ages with it.
func TestConsumerLag(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		consumer := Consumer{Name: "two", Servers: "kafka:9092", Topics: "orders", Group: "hello"}
		lag := Endpoint{Target: Target{Kind: Lag, Function: hello, Consumer: consumer}, Expected: true}
		if _, err := w.store.ConsumerLag(hello, "kafka_two_lag"); !errors.Is(err, ErrNoFunction) {
			t.Errorf("no function: %v", err)
		}
		w.asks = []Endpoint{ask("queue_depth", "a"), lag}
		w.list()
		for _, metric := range []string{"queue_depth", "kafka_lag", "kafka_two_partitions", ""} {
			if got, err := w.store.ConsumerLag(hello, metric); !unknownFor(err, NoMetric) {
				t.Errorf("%q: %+v, %v", metric, got, err)
			}
		}
		of := func() ConsumerLag {
			t.Helper()
			got, err := w.store.ConsumerLag(hello, "kafka_two_lag")
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got := of(); got.Unknown == nil || got.Unknown.Reason != NoData || !got.At.IsZero() || got.Consumer != consumer {
			t.Errorf("never measured: %+v", got)
		}
		pass(time.Second)
		at := time.Now()
		parts := []PartitionLag{{Topic: "orders", Committed: 3, End: 10, Lag: 7}}
		found := &Measurement{Answers: []Answer{{Metric: "kafka_two_lag", Value: 7}}, Partitions: parts}
		if err := w.store.Record(lag.Target, at, found, nil); err != nil {
			t.Fatal(err)
		}
		want := ConsumerLag{Consumer: consumer, Partitions: parts, At: at}
		pass(5 * time.Second)
		if diff := cmp.Diff(want, of()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		want.Err = errors.New("connection refused")
		_ = w.store.Record(lag.Target, time.Now(), nil, want.Err)
		if diff := cmp.Diff(want, of(), cmpopts.EquateErrors()); diff != "" {
			t.Errorf("the latest attempt failed, -want +got\n%s", diff)
		}
		pass(2 * time.Second)
		if got := of(); got.Unknown == nil || got.Unknown.Reason != Stale || got.Unknown.Age != 7*time.Second || len(got.Partitions) != 1 {
			t.Errorf("stale: %+v", got)
		}
	})
}

func unknownFor(err error, reason Reason) bool {
	u := (*Unknown)(nil)
	return errors.As(err, &u) && u.Reason == reason
}
