//go:build integration

package kafka

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
)

// measured is the Source under test, and how its requests are counted.
type measured struct {
	*kafka.Source
	registry *prometheus.Registry
	client   corev1client.SecretInterface // of the Functions' namespace
	servers  string
	interval time.Duration
}

// interval is that of the adapter.
const interval = 2 * time.Second

// source measures c, and looks at who leads what every period; 0 is the adapter's, 30 s.
func source(t *testing.T, c *Cluster, period time.Duration, secrets ...runtime.Object) *measured {
	t.Helper()
	return sourceBy(t, c, []string{"127.0.0.1"}, period, secrets...)
}

// sourceBy has an operator's list of servers.
func sourceBy(t *testing.T, c *Cluster, allow []string, period time.Duration, secrets ...runtime.Object) *measured {
	t.Helper()
	return sourceWith(t, c, kafka.Options{Allow: allow, Interval: interval, MetadataInterval: period}, secrets...)
}

// sourceWith has all options but those that are the same for every source here.
func sourceWith(t *testing.T, c *Cluster, o kafka.Options, secrets ...runtime.Object) *measured {
	t.Helper()
	m := &measured{registry: prometheus.NewRegistry(), servers: strings.Join(c.Addresses(PlaintextListener), ","), interval: o.Interval}
	client := fake.NewClientset(secrets...)
	m.client = client.CoreV1().Secrets("default")
	var err error
	o.Secrets, o.Registerer = providers.NewSecrets(providers.SecretsOptions{Client: client.CoreV1()}), m.registry
	m.Source, err = kafka.New(o)
	must(t, err)
	t.Cleanup(m.Close)
	return m
}

// consumer is a group of some topics, whose consumers begin at the start.
func (m *measured) consumer(group, topics string) providers.Consumer {
	return providers.Consumer{Servers: m.servers, Group: group, Topics: topics, Reset: v1alpha1.KafkaEarliest, Isolation: v1alpha1.KafkaReadUncommitted}
}

func target(c providers.Consumer) providers.Target {
	return providers.Target{Kind: providers.Lag, Function: types.NamespacedName{Namespace: "default", Name: "hello"}, Consumer: c}
}

// measure looks once, as the Collector does.
func (m *measured) measure(ctx context.Context, c providers.Consumer) (map[string]providers.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, m.interval*8/10)
	defer cancel()
	got, err := m.Measure(ctx, target(c))
	if err != nil {
		return nil, err
	}
	answers := map[string]providers.Answer{}
	for _, a := range got.Answers {
		answers[a.Metric] = a
	}
	return answers, nil
}

// outcome of a measurement.
type outcome struct {
	lag float64
	err error
}

// round measures all at the same time, as the Collector does.
func (m *measured) round(t *testing.T, all map[string]providers.Consumer) map[string]outcome {
	t.Helper()
	var mu sync.Mutex
	var measuring sync.WaitGroup
	found := map[string]outcome{}
	for name, c := range all {
		measuring.Go(func() {
			answers, err := m.measure(t.Context(), c)
			mu.Lock()
			defer mu.Unlock()
			found[name] = outcome{answers[v1alpha1.KafkaLag].Value, err}
		})
	}
	measuring.Wait()
	return found
}

// wantLag measures until the lag is want. A change of the layout is noticed within the period of the source, one of a group
// within an interval; the rest is for a machine that has other things to do.
func (m *measured) wantLag(t *testing.T, what string, c providers.Consumer, want float64) {
	t.Helper()
	got, err := math.NaN(), error(nil)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); wait(t, interval/4) {
		var answers map[string]providers.Answer
		if answers, err = m.measure(t.Context(), c); err != nil {
			continue
		}
		if got = answers[v1alpha1.KafkaLag].Value; got == want {
			return
		}
	}
	t.Errorf("%s: lag %v, want %v (%v)", what, got, want, err)
}

// wantUnknown measures until the lag is unknown, for a reason that names all of some texts.
func (m *measured) wantUnknown(t *testing.T, what string, c providers.Consumer, reasons ...string) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); wait(t, interval/4) {
		_, err = m.measure(t.Context(), c)
		if err != nil && !slices.ContainsFunc(reasons, func(reason string) bool { return !strings.Contains(err.Error(), reason) }) {
			return
		}
	}
	t.Errorf("%s: %v, want %q", what, err, reasons)
}

// requests so far, by API.
func (m *measured) requests(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	must(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if f.GetName() == "sluice_adapter_kafka_requests_total" {
				all[metric.GetLabel()[0].GetValue()] = metric.GetCounter().GetValue()
			}
		}
	}
	return all
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

// latest is c of consumers that begin at the end.
func latest(c providers.Consumer) providers.Consumer {
	c.Reset = v1alpha1.KafkaLatest
	return c
}

// TestLag is the lag of groups in all the states that they can be in, at a real broker, beside what Kafka's own tool says.
func TestLag(t *testing.T) {
	c := start(t, Options{Config: map[string]string{"offsets.retention.check.interval.ms": "500", "log.cleaner.backoff.ms": "200"}})
	client := connect(t, c)
	// Partitions that are added are noticed with the layout, which is read every 30 s; here as often as it is measured.
	m := source(t, c, interval)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *Cluster, *Client, *measured)
	}{
		{"groups", groupsThatStand},
		{"groups that are idle", idleGroups},
		{"groups that progress", progresses},
		{"groups that expire", groupsThatExpire},
		{"transactions", transactions},
		{"compaction", compaction},
		{"topics that change", topicsThatChange},
		{"topics that are made anew", topicsMadeAnew},
		{"brokers that speak less", brokersThatSpeakLess},
		{"KIP-848", newGroups},
		{"down at the start", downAtTheStart},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, c, client, m) })
	}
}

// groupsThatStand have committed, or not, or what is not there any more.
func groupsThatStand(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "orders", 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, "orders", p, 10))
	}
	nobody := m.consumer("nobody", "orders")
	m.wantLag(t, "no commit, from the end", latest(nobody), 0)
	m.wantLag(t, "no commit, from the start", nobody, 30)
	must(t, client.Produce(ctx, "orders", 1, 4))
	m.wantLag(t, "no commit, from the end, and records came", latest(nobody), 4)

	must(t, client.Commit(ctx, "readers", map[Partition]int64{{"orders", 0}: 3, {"orders", 1}: 14, {"orders", 2}: 10}))
	readers := m.consumer("readers", "orders")
	m.wantLag(t, "committed", readers, 7)
	m.wantAsTool(t, c, readers)
	must(t, client.DeleteRecordsBefore(ctx, Partition{"orders", 0}, 8))
	m.wantLag(t, "retention has deleted what was not read", readers, 2)
	only := readers
	only.Partitions = "1,2"
	m.wantLag(t, "some partitions only", only, 0)

	must(t, client.Commit(ctx, "ahead", map[Partition]int64{{"orders", 0}: 1000, {"orders", 1}: 10, {"orders", 2}: 10}))
	ahead := m.consumer("ahead", "orders")
	m.wantLag(t, "committed beyond the end, from the start", ahead, 2+4)
	m.wantLag(t, "committed beyond the end, from the end", latest(ahead), 4)
	must(t, client.Produce(ctx, "orders", 0, 1))
	m.wantLag(t, "and records came", latest(ahead), 5)
}

// wantAsTool compares with Kafka's own tool, of what nobody changes now.
func (m *measured) wantAsTool(t *testing.T, c *Cluster, of providers.Consumer) {
	t.Helper()
	sum, want := 0.0, map[Partition]Described{}
	for p, d := range lagOf(t, c, of.Group) {
		sum += float64(d.Lag)
		want[p] = Described{Committed: d.Committed, End: d.End, Lag: d.Lag}
	}
	m.wantLag(t, "Kafka's own tool", of, sum)
	ctx, cancel := context.WithTimeout(t.Context(), interval*8/10)
	defer cancel()
	measured, err := m.Measure(ctx, target(of))
	must(t, err)
	got := map[Partition]Described{}
	for _, p := range measured.Partitions {
		got[Partition{p.Topic, p.Partition}] = Described{Committed: p.Committed, End: p.End, Lag: p.Lag}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("partitions of group %q, -tool +got\n%s", of.Group, diff)
	}
}

// groupsThatExpire, or are deleted, have no commit any more.
func groupsThatExpire(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "seldom", 1))
	must(t, client.Produce(ctx, "seldom", 0, 10))
	// Before version 5 a commit says how long it is kept; after it the broker's setting does, in minutes.
	old := connect(t, c, kgo.MaxVersions(kversion.V1_0_0()))
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group, commit.RetentionTimeMillis = "expires", 3000
	partition := kmsg.NewOffsetCommitRequestTopicPartition()
	partition.Offset = 8
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic, topic.Partitions = "seldom", append(topic.Partitions, partition)
	commit.Topics = append(commit.Topics, topic)
	_, err := commit.RequestWith(ctx, old)
	must(t, err)
	must(t, client.Commit(ctx, "deleted", map[Partition]int64{{"seldom", 0}: 7}))
	expires, deleted := m.consumer("expires", "seldom"), m.consumer("deleted", "seldom")
	m.wantLag(t, "it has not expired", expires, 2)
	m.wantLag(t, "nor is it deleted", deleted, 3)
	m.wantLag(t, "from the end", latest(deleted), 3)
	m.wantLag(t, "expired", expires, 10)
	answers, err := client.Admin.DeleteGroups(ctx, "deleted")
	must(t, errors.Join(err, answers.Error()))
	m.wantLag(t, "deleted", deleted, 10)
	m.wantLag(t, "deleted, from the end", latest(deleted), 0)
	must(t, client.Produce(ctx, "seldom", 0, 1))
	m.wantLag(t, "and records came", latest(deleted), 1)
}

// transactions hold back what is read when committed; their markers have offsets of their own, and so have aborted records.
func transactions(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "payments", 1))
	all := m.consumer("cashiers", "payments")
	stable := all
	stable.Isolation = v1alpha1.KafkaReadCommitted
	for _, tt := range []struct {
		name   string
		commit bool
		read   float64 // before it
	}{{"committed", true, 0}, {"aborted", false, 6}} {
		open, err := client.Begin(ctx, "t", "payments", 0, 5)
		must(t, err)
		m.wantLag(t, "an open transaction, read committed", stable, tt.read)
		m.wantLag(t, "an open transaction, read uncommitted", all, tt.read+5)
		must(t, open.End(ctx, tt.commit))
		m.wantLag(t, tt.name, stable, tt.read+6)
	}
	must(t, client.Commit(ctx, "cashiers", map[Partition]int64{{"payments", 0}: 6}))
	m.wantLag(t, "the aborted one is left", stable, 6)
	m.wantAsTool(t, c, stable)
	must(t, client.Commit(ctx, "cashiers", map[Partition]int64{{"payments", 0}: 12})) // as a consumer does that has passed it
	m.wantLag(t, "it is passed", stable, 0)
}

// compaction removes records and leaves their offsets, which count as Kafka's own tool counts them.
func compaction(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "state", 1, "cleanup.policy", "compact", "segment.ms", "100", "min.cleanable.dirty.ratio", "0.01"))
	must(t, client.Commit(ctx, "keepers", map[Partition]int64{{"state", 0}: 3}))
	produced := 0
	must(t, poll(ctx, func() error { // the same keys, so that the first record that is left is a later one
		must(t, client.Produce(ctx, "state", 0, 10))
		produced += 10
		reader := connect(t, c, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"state": {0: kgo.NewOffset().AtStart()}}))
		defer reader.Close()
		if first := reader.PollRecords(ctx, 1).Records(); len(first) == 1 && first[0].Offset >= 10 {
			return nil
		}
		return errors.New("it is not compacted")
	}))
	keepers := m.consumer("keepers", "state")
	m.wantLag(t, "compacted", keepers, float64(produced-3))
	m.wantAsTool(t, c, keepers)
	must(t, client.Commit(ctx, "keepers", map[Partition]int64{{"state", 0}: int64(produced)}))
	m.wantLag(t, "all is read", keepers, 0)
}

// topicsThatChange get partitions, come, go, and come again.
func topicsThatChange(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, 2*time.Minute)
	must(t, client.AddPartitions(ctx, "orders", 5))
	must(t, client.Produce(ctx, "orders", 4, 6))
	readers := m.consumer("readers", "orders")
	m.wantLag(t, "partitions were added", readers, 2+1+6)
	near(t, "partitions", m.mustMeasure(t, readers)[v1alpha1.KafkaPartitions].Value, 5)

	// Who is not told that a topic is there looks for it, although the layout is that of before.
	slow := source(t, c, time.Hour)
	later := slow.consumer("readers", "later")
	slow.wantUnknown(t, "a topic that is not there", later, `topic "later"`)
	slow.wantLag(t, "beside one that is not there", readers, 9)
	must(t, client.CreateTopic(ctx, "later", 2))
	created := time.Now()
	slow.wantLag(t, "a topic that is created later", later, 0)
	if took := time.Since(created); took > 10*time.Second {
		t.Errorf("a topic was noticed %s after it was created, want 10 s at most", took)
	}

	must(t, client.DeleteTopic(ctx, "orders"))
	slow.wantUnknown(t, "a topic that is deleted", readers, `topic "orders"`)
	must(t, client.CreateTopic(ctx, "orders", 3))
	must(t, client.Produce(ctx, "orders", 0, 2))
	slow.wantLag(t, "a topic that was made anew", readers, 2)
}

// newGroups speak KIP-848.
func newGroups(t *testing.T, _ *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "events", 2))
	member, err := client.Join("new", "events", newProtocol()...)
	must(t, err)
	defer member.Close()
	must(t, client.Produce(ctx, "events", 0, 7))
	for read := 0; read < 7; {
		got := member.PollRecords(ctx, 7)
		must(t, got.Err())
		must(t, member.CommitRecords(ctx, got.Records()...))
		read += got.NumRecords()
	}
	group := m.consumer("new", "events")
	m.wantLag(t, "all is read", group, 0)
	must(t, client.Produce(ctx, "events", 0, 3))
	m.wantLag(t, "and then not", group, 3)
}

// downAtTheStart is a broker that a Function names before it runs.
func downAtTheStart(t *testing.T, c *Cluster, client *Client, before *measured) {
	ctx := within(t, time.Minute)
	c.Brokers[0].Stop()
	m := source(t, c, 0)
	group := m.consumer("new", "events")
	m.wantUnknown(t, "it is down", group, "metadata of the cluster", m.servers, "connection refused")
	before.wantUnknown(t, "it went down", group, "connection refused")
	must(t, c.Brokers[0].Start(context.Background()))
	m.wantLag(t, "it is up at last", group, 3)
	before.wantLag(t, "it is up again", group, 3)
	must(t, client.Produce(ctx, "events", 1, 1))
	m.wantLag(t, "and goes on", group, 4)
}
