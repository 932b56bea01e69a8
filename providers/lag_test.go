package providers

import (
	"errors"
	"testing"
	"time"

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
