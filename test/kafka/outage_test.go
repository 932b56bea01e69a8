//go:build integration

package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/providers"
)

// requests counts those of 50 groups on 20 topics.
func requests(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, time.Minute)
	m := source(t, c, 0)
	all := map[string]providers.Consumer{}
	coordinators := map[int32]bool{}
	var topics []string
	for i := range 20 {
		topics = append(topics, fmt.Sprintf("t%02d", i))
	}
	created, err := client.Admin.CreateTopics(ctx, 3, 1, nil, topics...)
	must(t, errors.Join(err, created.Error()))
	must(t, client.usable(ctx, topics[len(topics)-1], 3))
	for i := range 50 {
		group := fmt.Sprintf("g%02d", i)
		all[group] = m.consumer(group, topics[i%len(topics)])
		must(t, poll(ctx, func() error { // the topic of offsets is made with the first group
			id, err := client.Coordinator(ctx, group)
			coordinators[id] = true
			return err
		}))
	}
	delete(coordinators, -1)
	delete(coordinators, 0)
	known := func() bool {
		for _, o := range m.round(t, all) {
			if o.err != nil {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(20 * time.Second); !known(); wait(t, interval) {
		if time.Now().After(end) {
			t.Fatal("the lag of all groups does not become known")
		}
	}
	const rounds = 5
	before := m.requests(t)
	for range rounds {
		wait(t, interval)
		if !known() {
			t.Error("a group is not known")
		}
	}
	got := m.requests(t)
	for api := range got {
		if got[api] -= before[api]; got[api] == 0 {
			delete(got, api)
		}
	}
	want := map[string]float64{"ListOffsets": rounds * 3, "OffsetFetch": rounds * float64(len(coordinators))}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests of %d rounds (-want +got):\n%s", rounds, diff)
	}
	t.Logf("%d groups on %d topics of 3 brokers: %v requests in %d rounds", len(all), len(topics), got, rounds)
	// The layout and the starts of logs are read every 30 s, and nothing else is.
	for end := time.Now().Add(40 * time.Second); m.requests(t)["Metadata"] == before["Metadata"] && time.Now().Before(end); {
		wait(t, interval)
		m.round(t, all)
	}
	now := m.requests(t)
	if metadata := now["Metadata"] - before["Metadata"]; metadata != 1 || now["FindCoordinator"] != before["FindCoordinator"] {
		t.Errorf("in 30 s: %v requests for metadata, %v for coordinators; want 1, 0", metadata, now["FindCoordinator"]-before["FindCoordinator"])
	}
}

// groupElsewhere is a group that the broker does not keep.
func groupElsewhere(ctx context.Context, t *testing.T, client *Client, broker int32) string {
	t.Helper()
	for i := range 100 {
		group := fmt.Sprint("elsewhere-", i)
		id, err := client.Coordinator(ctx, group)
		must(t, err)
		if id != broker {
			return group
		}
	}
	t.Fatalf("broker %d keeps all groups", broker)
	return ""
}

// oneHangs: what it leads is unknown for as long, what it keeps until others do, and the rest is always known.
func oneHangs(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, 2*time.Minute)
	created, err := client.Admin.CreateTopic(ctx, 3, 1, nil, "single") // nobody takes over its partitions
	must(t, errors.Join(err, created.Err))
	must(t, client.usable(ctx, "single", 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, "single", p, 5))
	}
	const kept = "kept"
	victim, err := client.Coordinator(ctx, kept)
	must(t, err)
	other := groupElsewhere(ctx, t, client, victim)
	m := source(t, c, 0)
	of := func(group, partitions string) providers.Consumer {
		c := m.consumer(group, "single")
		c.Partitions = partitions
		return c
	}
	var own, elsewhere []string // each broker leads one
	for p := range int32(3) {
		leader, err := client.Leader(ctx, Partition{"single", p})
		must(t, err)
		if leader == victim {
			own = append(own, fmt.Sprint(p))
		} else {
			elsewhere = append(elsewhere, fmt.Sprint(p))
		}
	}
	all := map[string]providers.Consumer{
		"elsewhere": of(other, strings.Join(elsewhere, ",")), "its own": of(other, own[0]), "all": of(other, ""),
		"kept by it": of(kept, elsewhere[0]),
	}
	want := map[string]float64{"elsewhere": 10, "its own": 5, "all": 15, "kept by it": 5}
	for name, lag := range want {
		m.wantLag(t, name, all[name], lag)
	}
	broker := c.Brokers[victim-1]
	broker.Pause()
	defer broker.Resume()
	paused := time.Now()
	var keptAfter time.Duration
	for rounds := 0; keptAfter == 0 || rounds < 8; rounds++ {
		wait(t, interval)
		began := time.Now()
		got := m.round(t, all)
		if took := time.Since(began); took >= interval*8/10 {
			t.Errorf("a round took %s, all of its time", took)
		}
		if o := got["elsewhere"]; o.err != nil || o.lag != 10 {
			t.Errorf("%s after it hung, elsewhere: %+v, want 10", time.Since(paused).Round(time.Millisecond), o)
		}
		for _, name := range []string{"its own", "all"} {
			if o := got[name]; o.err == nil || !strings.Contains(o.err.Error(), `topic "single", partition `+own[0]) {
				t.Errorf("%s after it hung, %s: %+v, want unknown for its partition", time.Since(paused).Round(time.Millisecond), name, o)
			}
		}
		switch o := got["kept by it"]; {
		case o.err == nil && o.lag != 5:
			t.Errorf("kept by it: %v, want 5", o.lag)
		case o.err == nil && keptAfter == 0:
			keptAfter = time.Since(paused)
		case time.Since(paused) > 30*time.Second:
			t.Fatalf("its groups are not known after %s: %v", time.Since(paused), o.err)
		}
	}
	t.Logf("what it keeps was known again %s after it hung", keptAfter.Round(100*time.Millisecond))
	broker.Resume()
	for name, lag := range want {
		m.wantLag(t, name+", when it goes on", all[name], lag)
	}
}

// oneIsKilled: it leads a partition and keeps the group. What is known until others do, and then, is never smaller than before.
func oneIsKilled(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, 2*time.Minute)
	must(t, client.CreateTopic(ctx, "invoices", 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, "invoices", p, 4))
	}
	const group = "clerks"
	victim, err := client.Coordinator(ctx, group) // which leads one of the partitions, as each of the brokers does
	must(t, err)
	must(t, client.Commit(ctx, group, map[Partition]int64{{"invoices", 0}: 1, {"invoices", 1}: 1, {"invoices", 2}: 1}))
	m := source(t, c, 0)
	consumer := m.consumer(group, "invoices")
	m.wantLag(t, "before", consumer, 9)

	producing, stop := context.WithCancel(ctx)
	produced := make(chan int, 1)
	go func() {
		n := 0
		for producing.Err() == nil && client.Produce(ctx, "invoices", int32(n%3), 1) == nil {
			n++
		}
		produced <- n
	}()
	c.Brokers[victim-1].Kill()
	killed := time.Now()
	last, unknown, after := 9.0, 0, 0
	for after < 3 {
		answers := m.round(t, map[string]providers.Consumer{"invoices": consumer})["invoices"]
		switch {
		case time.Since(killed) > 45*time.Second:
			t.Fatalf("%s after it was killed: %+v, %d rounds without an answer", time.Since(killed), answers, unknown)
		case answers.err != nil:
			unknown++
		case answers.lag < last:
			t.Fatalf("the lag went from %v to %v, and nobody read anything", last, answers.lag)
		default:
			last = answers.lag
			if unknown > 0 {
				if after++; after == 1 {
					t.Logf("known again %s after it was killed", time.Since(killed).Round(100*time.Millisecond))
				}
			}
		}
		wait(t, interval/2)
	}
	stop()
	m.wantLag(t, "afterwards", consumer, float64(9+<-produced))
	now, err := client.Coordinator(ctx, group)
	must(t, err)
	if now == victim {
		t.Errorf("broker %d was killed and keeps the group", now)
	}
	m.wantAsTool(t, c, consumer)
}
