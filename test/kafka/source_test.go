//go:build integration

package kafka

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
)

// measured is the Source under test, and how its requests are counted.
type measured struct {
	*kafka.Source
	registry *prometheus.Registry
	servers  string
}

// interval is that of the adapter.
const interval = 2 * time.Second

func source(t *testing.T, c *Cluster) *measured {
	t.Helper()
	m := &measured{registry: prometheus.NewRegistry(), servers: strings.Join(c.Addresses(PlaintextListener), ",")}
	secrets := providers.NewSecrets(providers.SecretsOptions{Client: fake.NewClientset().CoreV1()})
	var err error
	m.Source, err = kafka.New(kafka.Options{Secrets: secrets, Interval: interval, Registerer: m.registry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// consumer is a group of one topic whose consumers begin at the end.
func (m *measured) consumer(group, topics string) providers.Consumer {
	return providers.Consumer{Servers: m.servers, Group: group, Topics: topics, Reset: v1alpha1.KafkaLatest, Isolation: v1alpha1.KafkaReadUncommitted}
}

// measure looks once, as the Collector does.
func (m *measured) measure(t *testing.T, c providers.Consumer) (map[string]providers.Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), interval*8/10)
	defer cancel()
	got, err := m.Measure(ctx, providers.Target{
		Kind: providers.Lag, Function: types.NamespacedName{Namespace: "default", Name: "hello"}, Consumer: c,
	})
	if err != nil {
		return nil, err
	}
	answers := map[string]providers.Answer{}
	for _, a := range got.Answers {
		answers[a.Metric] = a
	}
	return answers, nil
}

// wantLag measures until the lag is want, for as long as it takes a change of the layout to be noticed at most.
func (m *measured) wantLag(t *testing.T, what string, c providers.Consumer, want float64) {
	t.Helper()
	got, err := math.NaN(), error(nil)
	for end := time.Now().Add(45 * time.Second); time.Now().Before(end); wait(t, interval/2) {
		var answers map[string]providers.Answer
		if answers, err = m.measure(t, c); err != nil {
			continue
		}
		if got = answers[v1alpha1.KafkaLag].Value; got == want {
			return
		}
	}
	t.Errorf("%s: lag %v, want %v (%v)", what, got, want, err)
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// TestLag is the lag of groups in all the states that they can be in, at a real broker, beside what Kafka's own tool says.
func TestLag(t *testing.T) {
	c := start(t, Options{})
	client := connect(t, c)
	ctx := within(t, 5*time.Minute)
	m := source(t, c)

	must(t, client.CreateTopic(ctx, "orders", 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, "orders", p, 10))
	}
	fresh := m.consumer("nobody", "orders")
	m.wantLag(t, "no commit, from the end", fresh, 0)
	fromStart := fresh
	fromStart.Reset = v1alpha1.KafkaEarliest
	m.wantLag(t, "no commit, from the start", fromStart, 30)
	must(t, client.Produce(ctx, "orders", 1, 4))
	m.wantLag(t, "no commit, from the end, and records came", fresh, 4)

	must(t, client.Commit(ctx, "readers", map[Partition]int64{{"orders", 0}: 3, {"orders", 1}: 14, {"orders", 2}: 10}))
	readers := m.consumer("readers", "orders")
	m.wantLag(t, "committed", readers, 7)
	sum := 0.0
	for _, d := range lagOf(t, c, "readers") {
		sum += float64(d.Lag)
	}
	if sum != 7 {
		t.Errorf("Kafka's own tool says %v", sum)
	}
	must(t, client.DeleteRecordsBefore(ctx, Partition{"orders", 0}, 8))
	m.wantLag(t, "retention has deleted what was not read", readers, 2)
	only := readers
	only.Partitions = "1,2"
	m.wantLag(t, "some partitions only", only, 0)

	must(t, client.AddPartitions(ctx, "orders", 5))
	must(t, client.Produce(ctx, "orders", 4, 6))
	fromStart.Group = "readers"
	m.wantLag(t, "partitions were added", fromStart, 8)

	must(t, client.CreateTopic(ctx, "payments", 1))
	open, err := client.Begin(ctx, "t", "payments", 0, 5)
	must(t, err)
	stable := m.consumer("readers", "payments")
	stable.Reset, stable.Isolation = v1alpha1.KafkaEarliest, v1alpha1.KafkaReadCommitted
	all := stable
	all.Isolation = v1alpha1.KafkaReadUncommitted
	m.wantLag(t, "an open transaction, read committed", stable, 0)
	m.wantLag(t, "an open transaction, read uncommitted", all, 5)
	must(t, open.End(ctx, true))
	m.wantLag(t, "it is committed", stable, 6)

	later := m.consumer("readers", "later")
	if _, err := m.measure(t, later); err == nil || !strings.Contains(err.Error(), `topic "later"`) {
		t.Errorf("a topic that is not there: %v", err)
	}
	m.wantLag(t, "beside one that is not there", stable, 6)
	must(t, client.CreateTopic(ctx, "later", 2))
	m.wantLag(t, "a topic that is created later", later, 0)

	must(t, client.DeleteTopic(ctx, "orders"))
	must(t, client.CreateTopic(ctx, "orders", 3))
	must(t, client.Produce(ctx, "orders", 0, 2))
	m.wantLag(t, "a topic that was made anew", fromStart, 2)

	member, err := client.Join("new", "later", kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer()))
	must(t, err)
	defer member.Close()
	must(t, client.Produce(ctx, "later", 0, 7))
	for read := 0; read < 7; {
		got := member.PollRecords(ctx, 7)
		must(t, got.Err())
		must(t, member.CommitRecords(ctx, got.Records()...))
		read += got.NumRecords()
	}
	m.wantLag(t, "a group by KIP-848 that has read all", m.consumer("new", "later"), 0)
	must(t, client.Produce(ctx, "later", 0, 3))
	m.wantLag(t, "and then not", m.consumer("new", "later"), 3)
}
