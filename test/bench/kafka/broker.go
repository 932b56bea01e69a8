package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/bench/kafka/subject"
	"github.com/sluice-dev/sluice/test/bench/world"
	"github.com/sluice-dev/sluice/test/kafka"
)

// heap is the broker's: each connection of the usual design has buffers of its own there.
const heap = "-Xmx2g"

// patient keeps a broker that is short of time from being taken for gone by its own controller.
var patient = map[string]string{"broker.session.timeout.ms": "60000"}

// truth is what has been produced and committed.
type truth struct {
	*options
	cluster *kafka.Cluster
	client  *kafka.Client

	ends      [][]int64 // by topic and partition
	committed [][]int64 // by group and partition
}

// startBroker starts a broker, with topics, records and groups that have committed offsets. Stop it.
func startBroker(ctx context.Context, o *options, dir string) (t *truth, err error) {
	classPath, err := kafka.Find(ctx, filepath.Join(o.state, "kafka"))
	if err != nil {
		return nil, err
	}
	t = &truth{options: o}
	if t.cluster, err = kafka.Start(ctx, kafka.Options{ClassPath: classPath, Dir: dir, JVM: []string{heap}, Config: patient}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.stop()
		}
	}()
	if t.client, err = t.cluster.Connect(kgo.UnknownTopicRetries(-1)); err != nil {
		return t, err
	}
	var names []string
	for i := range o.Topics {
		names = append(names, subject.Topic(i))
		t.ends = append(t.ends, make([]int64, o.partitions))
	}
	for range o.Groups {
		t.committed = append(t.committed, make([]int64, o.partitions))
	}
	for some := range slices.Chunk(names, 50) {
		created, err := t.client.Admin.CreateTopics(ctx, int32(o.partitions), 1, nil, some...)
		if err := errors.Join(err, created.Error()); err != nil {
			return t, fmt.Errorf("create topics: %w", err)
		}
	}
	if err := world.Eventually(ctx, settling, "topics that are led", func(ctx context.Context) error {
		return t.led(ctx, names)
	}); err != nil {
		return t, err
	}
	return t, t.move(ctx)
}

// led has no error once somebody leads all partitions.
func (t *truth) led(ctx context.Context, names []string) error {
	topics, err := t.client.Admin.ListTopics(ctx, names...)
	if err != nil {
		return err
	}
	n := 0
	topics.EachPartition(func(p kadm.PartitionDetail) {
		if p.Err == nil && p.Leader >= 0 {
			n++
		}
	})
	if want := len(names) * t.partitions; n != want {
		return fmt.Errorf("%d partitions are, want %d", n, want)
	}
	return nil
}

func (t *truth) stop() {
	if t.client != nil {
		t.client.Close()
	}
	t.cluster.Stop()
}

// move has records come to all partitions, and all groups go on by a part of what they have not read: each by another one.
func (t *truth) move(ctx context.Context) error {
	var records []*kgo.Record
	for topic, ends := range t.ends {
		for p := range ends {
			n := 2 + (topic+p)%4
			records = append(records, kafka.Records(subject.Topic(topic), int32(p), n)...)
			ends[p] += int64(n)
		}
	}
	if err := t.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	var committing errgroup.Group
	committing.SetLimit(16)
	for i, at := range t.committed {
		topic, commit := t.TopicOf(i), kadm.Offsets{}
		for p := range at {
			at[p] += int64(i+p) % (t.ends[topic][p] - at[p] + 1)
			commit.AddOffset(subject.Topic(topic), int32(p), at[p], -1)
		}
		committing.Go(func() error {
			return world.Eventually(ctx, settling, "commit for "+subject.Group(i), func(ctx context.Context) error {
				return t.client.Admin.CommitAllOffsets(ctx, subject.Group(i), commit)
			})
		})
	}
	return committing.Wait()
}

// lag is the true one of a group.
func (t *truth) lag(group int) (sum int64) {
	for p, end := range t.ends[t.TopicOf(group)] {
		sum += end - t.committed[group][p]
	}
	return sum
}

// check compares answers with the truth.
func (t *truth) check(answers []subject.Answer) verdict {
	var v verdict
	for i, a := range answers {
		switch want := t.lag(i); {
		case a.Unknown != "":
			v.unknown++
			v.example = fmt.Sprintf("%s is unknown: %s", subject.Group(i), a.Unknown)
		case a.Lag != want:
			v.wrong++
			v.example = fmt.Sprintf("%s is %d behind, want %d", subject.Group(i), a.Lag, want)
		default:
			v.right++
		}
	}
	return v
}

// verdict is how many answers are what they should be.
type verdict struct {
	right, wrong, unknown int
	example               string // of those that are not
}

func (v verdict) err() error {
	if v.wrong+v.unknown == 0 {
		return nil
	}
	return fmt.Errorf("%d lags are true, %d are wrong, %d are unknown: %s", v.right, v.wrong, v.unknown, v.example)
}
