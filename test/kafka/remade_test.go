//go:build integration

package kafka

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// topicsMadeAnew between two looks, with more records than there were. Kafka drops what groups have committed when it deletes
// a topic.
func topicsMadeAnew(t *testing.T, c *Cluster, client *Client, m *measured) {
	ctx := within(t, 2*time.Minute)
	fill := func(records int) {
		must(t, client.CreateTopic(ctx, "remade", 3))
		for p := range int32(3) {
			must(t, client.Produce(ctx, "remade", p, records))
		}
	}
	commit := func(group string, at int64) {
		must(t, client.Commit(ctx, group, map[Partition]int64{{"remade", 0}: at, {"remade", 1}: at, {"remade", 2}: at}))
	}
	fill(10)
	must(t, client.DeleteRecordsBefore(ctx, Partition{"remade", 0}, 6))
	commit("remakers", 8)
	// What is 30 s in the adapter is an hour here: that commits have gone is reason enough to look at who leads what.
	slow := source(t, c, time.Hour)
	readers, nobody := slow.consumer("remakers", "remade"), m.consumer("onlookers", "remade")
	slow.wantLag(t, "before, read", readers, 6)
	m.wantLag(t, "before, not read, from the end", latest(nobody), 0)
	m.wantLag(t, "before, not read, from the start", nobody, 24)

	must(t, client.DeleteTopic(ctx, "remade"))
	fill(20)
	wait(t, interval)
	slow.wantNextLag(t, "made anew, read", readers, 60)
	m.wantNextLag(t, "made anew, not read, from the end", latest(nobody), 0)
	m.wantNextLag(t, "made anew, not read, from the start", nobody, 60)
	must(t, client.Produce(ctx, "remade", 1, 3))
	m.wantLag(t, "and records came", latest(nobody), 3)

	// Consumers that were there all along, and do not know IDs, commit where they were.
	commit("remakers", 8)
	slow.wantLag(t, "committed again", readers, 3*12+3)
	slow.wantAsTool(t, c, readers)

	// Nobody hears of it twice, however often it is looked at.
	slow.wantNotice(t, readers, `topic "remade" was deleted and made anew`)
	m.wantNotice(t, latest(nobody), `topic "remade" was deleted and made anew`)
}

// wantNotice measures, and wants this one notice.
func (m *measured) wantNotice(t *testing.T, of providers.Consumer, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), interval*8/10)
	defer cancel()
	got, err := m.Measure(ctx, target(of))
	must(t, err)
	if len(got.Notices) != 1 || !strings.Contains(got.Notices[0].Text, text) {
		t.Errorf("group %q: notices %+v, want %q", of.Group, got.Notices, text)
	}
}

// wantNextLag measures until the lag is known, which is want then.
func (m *measured) wantNextLag(t *testing.T, what string, c providers.Consumer, want float64) {
	t.Helper()
	got, err := math.NaN(), error(nil)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); wait(t, interval/4) {
		var answers map[string]providers.Answer
		if answers, err = m.measure(t.Context(), c); err == nil {
			got = answers[v1alpha1.KafkaLag].Value
			break
		}
	}
	if got != want {
		t.Errorf("%s: lag %v, want %v at once (%v)", what, got, want, err)
	}
}
