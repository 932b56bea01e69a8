//go:build integration

package kafka

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// progresses: how fast records come, and how long a group needs for them at its own pace.
func progresses(t *testing.T, _ *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "steady", 2))
	must(t, client.Produce(ctx, "steady", 0, 100))
	stand := func(at int64) {
		must(t, client.Commit(ctx, "walkers", map[Partition]int64{{"steady", 0}: at, {"steady", 1}: 0}))
	}
	stand(10)
	walkers := m.consumer("walkers", "steady")
	m.wantLag(t, "first", walkers, 90)
	// Nothing of this is by a clock of ours: what came and was committed since the first look is divided by the time since.
	must(t, client.Produce(ctx, "steady", 1, 30))
	m.wantLag(t, "records came", walkers, 120)
	now := m.mustMeasure(t, walkers)
	near(t, "partitions", now[v1alpha1.KafkaPartitions].Value, 2)
	near(t, "records in the window", now.perWindow(v1alpha1.KafkaEndOffsetRate), 30)
	if got := now[v1alpha1.KafkaLagSeconds]; !strings.Contains(got.Unknown, "the group has committed nothing new in the last minute") {
		t.Errorf("seconds of a group that stands: %+v", got)
	}
	stand(50)
	m.wantLag(t, "the group goes on", walkers, 80)
	now = m.mustMeasure(t, walkers)
	near(t, "records in the window", now.perWindow(v1alpha1.KafkaEndOffsetRate), 30)
	seconds := now[v1alpha1.KafkaLagSeconds]
	near(t, "windows", seconds.Value/seconds.Window.Seconds(), 80./40) // 40 records took one
	stand(100)
	must(t, client.Commit(ctx, "walkers", map[Partition]int64{{"steady", 0}: 100, {"steady", 1}: 30}))
	m.wantLag(t, "all is read", walkers, 0)
	near(t, "seconds for nothing", m.mustMeasure(t, walkers)[v1alpha1.KafkaLagSeconds].Value, 0)
}

// answers by metric.
type answers map[string]providers.Answer

func (m *measured) mustMeasure(t *testing.T, of providers.Consumer) answers {
	t.Helper()
	got, err := m.measure(t.Context(), of)
	must(t, err)
	return got
}

// perWindow is what came or went in the time over which the rate is taken.
func (a answers) perWindow(rate string) float64 { return a[rate].Value * a[rate].Window.Seconds() }

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.001*want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// idleGroups have no members: those that had some, of either protocol, and those that never had.
func idleGroups(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "visits", 1))
	must(t, client.Produce(ctx, "visits", 0, 9))
	groups := map[string]func(context.Context) error{
		"classic": func(ctx context.Context) error { return client.Consume(ctx, "classic", "visits", 4) },
		"KIP-848": func(ctx context.Context) error { return client.Consume(ctx, "KIP-848", "visits", 4, newProtocol()...) },
		"neither": func(ctx context.Context) error {
			return client.Commit(ctx, "neither", map[Partition]int64{{"visits", 0}: 4})
		},
	}
	for group, consume := range groups {
		must(t, consume(ctx))
		m.wantLag(t, group+" has left", m.consumer(group, "visits"), 5)
	}
	must(t, client.Produce(ctx, "visits", 0, 2))
	for group := range groups {
		of := m.consumer(group, "visits")
		m.wantLag(t, group+", records came", of, 7)
		m.wantAsTool(t, c, of)
	}
	for group, kind := range map[string]string{"classic": "classic", "KIP-848": "consumer"} {
		listed, err := client.Admin.ListGroupsByType(ctx, []string{kind})
		must(t, err)
		if _, ok := listed[group]; !ok {
			t.Errorf("group %s is not of type %s", group, kind)
		}
	}
}

// newProtocol makes a member speak KIP-848.
func newProtocol() []kgo.Opt {
	return []kgo.Opt{kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer())}
}
