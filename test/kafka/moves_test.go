//go:build integration

package kafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// load writes to a topic of three partitions and commits for a group that has no members, a record and an offset at a time.
// What was begun and what is done are known at any time, and so between what the lag is.
type load struct {
	producing, produced, committing, committed atomic.Int64

	running sync.WaitGroup
	stop    context.CancelFunc
}

// put starts a load, in which two of three records are committed.
func put(ctx context.Context, t *testing.T, client *Client, topic, group string) *load {
	l := &load{}
	running, stop := context.WithCancel(ctx)
	l.stop = stop
	l.running.Go(func() {
		for n := int64(0); running.Err() == nil; n++ {
			p := Partition{topic, int32(n % 3)}
			l.producing.Add(1)
			if err := client.Produce(ctx, topic, p.Partition, 1); err != nil {
				t.Error(err)
				return
			}
			l.produced.Add(1)
			if p.Partition == 2 {
				continue
			}
			l.committing.Add(1)
			if err := client.Commit(ctx, group, map[Partition]int64{p: n/3 + 1}); err != nil {
				t.Error(err)
				return
			}
			l.committed.Add(1)
		}
	})
	return l
}

// end waits for what is under way.
func (l *load) end() {
	l.stop()
	l.running.Wait()
}

// leadersMove, and coordinators, from broker to broker while all of them run, and records are written and offsets committed.
// What is known of the lag is right all the time, and it is known again soon.
func leadersMove(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, 3*time.Minute)
	const topic, group, backlog = "moving", "movers", 3 * 1000
	must(t, client.CreateTopic(ctx, topic, 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, topic, p, backlog/3))
	}
	keeper(ctx, t, client, group)
	m := source(t, c, 0)
	of := m.consumer(group, topic)
	m.wantLag(t, "before", of, backlog)
	load := put(ctx, t, client, topic, group)
	defer load.end()
	for move := range 3 {
		leader, err := client.Leader(ctx, Partition{topic, 0})
		must(t, err)
		coordinator := keeper(ctx, t, client, group)
		client.rotate(ctx, t, topic, 3)
		client.rotate(ctx, t, "__consumer_offsets", 8)
		moved, known, unknown := time.Now(), 0, 0
		for known < 2 {
			// What was done when the look began is in it, and nothing that was not begun when it ended.
			began, produced, committed := time.Now(), load.produced.Load(), load.committed.Load()
			at, lag, err := m.look(ctx, of)
			least, most := backlog+produced-load.committing.Load(), backlog+load.producing.Load()-committed
			switch {
			case err != nil:
				unknown++
				t.Logf("move %d, %s later: %v", move, time.Since(moved).Round(time.Millisecond), err)
			case at.Before(began): // it is of a look that was before
			case lag < float64(least) || lag > float64(most):
				t.Errorf("move %d: lag %v, which is not within %d and %d", move, lag, least, most)
				known++
			default:
				known++
			}
			if time.Since(moved) > 30*time.Second {
				t.Fatalf("move %d: the lag is not known again: %v", move, err)
			}
			wait(t, interval/2)
		}
		t.Logf("move %d: unknown in %d looks, known again within %s", move, unknown, time.Since(moved).Round(100*time.Millisecond))
		if now, err := client.Leader(ctx, Partition{topic, 0}); err != nil || now == leader {
			t.Errorf("move %d: broker %d leads, as before (%v)", move, now, err)
		}
		if now := keeper(ctx, t, client, group); now == coordinator {
			t.Errorf("move %d: broker %d keeps the group, as before", move, now)
		}
	}
	load.end()
	m.wantLag(t, "afterwards", of, float64(backlog+load.produced.Load()-load.committed.Load()))
	t.Logf("%d records and %d commits meanwhile", load.produced.Load(), load.committed.Load())
}

// look measures once, and says as of when.
func (m *measured) look(ctx context.Context, of providers.Consumer) (time.Time, float64, error) {
	ctx, cancel := context.WithTimeout(ctx, interval*8/10)
	defer cancel()
	got, err := m.Measure(ctx, target(of))
	if err != nil {
		return time.Time{}, 0, err
	}
	for _, a := range got.Answers {
		if a.Metric == v1alpha1.KafkaLag {
			return got.At, a.Value, nil
		}
	}
	return time.Time{}, 0, errors.New("no lag among the answers")
}

// rotate makes each partition of a topic be led by the next of its replicas, of which each broker has one.
func (c *Client) rotate(ctx context.Context, t *testing.T, topic string, partitions int32) {
	t.Helper()
	topics, err := c.Admin.ListTopicsWithInternal(ctx, topic)
	must(t, err)
	var order kadm.AlterPartitionAssignmentsReq
	moved := kadm.TopicsSet{}
	for p := range partitions {
		replicas := topics[topic].Partitions[p].Replicas
		order.Assign(topic, p, append(replicas[1:len(replicas):len(replicas)], replicas[0]))
		moved.Add(topic, p)
	}
	altered, err := c.Admin.AlterPartitionAssignments(ctx, order)
	must(t, errors.Join(err, altered.Error()))
	must(t, poll(ctx, func() error {
		elected, err := c.Admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, moved)
		if err != nil {
			return err
		}
		now, err := c.Admin.ListTopicsWithInternal(ctx, topic)
		for p := range partitions {
			if d := now[topic].Partitions[p]; d.Err != nil || d.Leader != topics[topic].Partitions[p].Replicas[1] {
				err = errors.Join(err, d.Err, elected[topic][p].Err, errors.New("it has not moved"))
			}
		}
		return err
	}))
}
