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
	"github.com/sluice-dev/sluice/providers/kafka"
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
		coordinators[keeper(ctx, t, client, group)] = true
	}
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
	// A broker that takes longer than an eighth of its time to answer has the next one asked at its side; but there is one look
	// at the layout, and rounds after it need none.
	looked := m.requests(t)
	if n := looked["Metadata"] - before["Metadata"]; n < 1 || n > float64(len(c.Brokers)) || looked["FindCoordinator"] != before["FindCoordinator"] {
		t.Errorf("in 30 s: %v requests for metadata, %v for coordinators; want 1 to %d, 0", n, looked["FindCoordinator"]-before["FindCoordinator"], len(c.Brokers))
	}
	for range rounds {
		wait(t, interval)
		m.round(t, all)
	}
	if now := m.requests(t); now["Metadata"] != looked["Metadata"] {
		t.Errorf("%v more requests for metadata in the %d rounds after", now["Metadata"]-looked["Metadata"], rounds)
	}
}

// keeper is the broker that keeps the group's offsets. The topic for them is made with the first group.
func keeper(ctx context.Context, t *testing.T, client *Client, group string) (broker int32) {
	t.Helper()
	must(t, poll(ctx, func() (err error) {
		broker, err = client.Coordinator(ctx, group)
		return err
	}))
	return broker
}

// groupOf is a group that the broker keeps, or that another does.
func groupOf(ctx context.Context, t *testing.T, client *Client, broker int32, keeps bool) string {
	t.Helper()
	for i := range 100 {
		group := fmt.Sprint("group-", i)
		if (keeper(ctx, t, client, group) == broker) == keeps {
			return group
		}
	}
	t.Fatalf("broker %d keeps all groups or none", broker)
	return ""
}

// refused: the operator's list has one broker, which names two others at loopback. What it leads and keeps itself is known.
func refused(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, time.Minute)
	created, err := client.Admin.CreateTopic(ctx, 3, 1, nil, "judged")
	must(t, errors.Join(err, created.Err))
	must(t, client.usable(ctx, "judged", 3))
	listed := c.Brokers[0]
	address := listed.Address(PlaintextListener)
	m := sourceBy(t, c, []string{address}, 0)
	m.servers = address
	own := m.consumer(groupOf(ctx, t, client, listed.ID, true), "judged")
	for p := range int32(3) { // each broker leads one
		must(t, client.Produce(ctx, "judged", p, 5))
		leader, err := client.Leader(ctx, Partition{"judged", p})
		must(t, err)
		if leader == listed.ID {
			own.Partitions = fmt.Sprint(p)
		}
	}
	m.wantLag(t, "led and kept by the broker in the list", own, 5)
	others := own
	others.Partitions = ""
	m.wantUnknown(t, "led by others", others, `topic "judged"`, "broker "+address+" advertises 127.0.0.1:", "(--kafka-allow)")
	others = own
	others.Group = groupOf(ctx, t, client, listed.ID, false)
	m.wantUnknown(t, "kept by others", others, `group "`+others.Group+`"`, "broker "+address+" advertises 127.0.0.1:", "(--kafka-allow)")
	m.wantLag(t, "beside them", own, 5)
	all := own
	all.Servers = strings.Join(c.Addresses(PlaintextListener), ",")
	m.wantUnknown(t, "named by the Function", all, "bootstrapServers: server "+c.Brokers[1].Address(PlaintextListener)+" is not in the operator's allow-list (--kafka-allow)")
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
	victim := keeper(ctx, t, client, kept)
	other := groupOf(ctx, t, client, victim, false)
	// A round is over an eighth of its time before its callers have to go. An eighth of 4.8 s is enough for a machine that has
	// other things to do.
	m := sourceWith(t, c, kafka.Options{Allow: []string{"127.0.0.1"}, Interval: 3 * interval})
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
	for rounds := 0; keptAfter == 0 || rounds < 5; rounds++ {
		wait(t, m.interval/2) // after which a round of before answers nobody
		began := time.Now()
		got := m.round(t, all)
		if took := time.Since(began); took >= m.interval*8/10 {
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
		case time.Since(paused) > 60*time.Second:
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
	victim := keeper(ctx, t, client, group) // which leads one of the partitions, as each of the brokers does
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
