package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// batchTime is about how long the work on the records of one poll may take: that long, a group waits for its member.
const batchTime = time.Second

// KafkaOptions say what the function consumes. The zero value is nothing.
type KafkaOptions struct {
	// Servers are the addresses, host:port, of brokers to begin with. With them, Topic and Group are required.
	Servers string
	// Topic that is consumed, from its start where the group has committed nothing.
	Topic string
	// Group of the consumer.
	Group string
	// Delay is how long the work on a record takes; there is one record at a time. Default 0, at most MaxDelay.
	Delay time.Duration
	// Done is a topic to which the key of a record is written once its work is done, before its offset is committed: what
	// a pod has done is known after its end too. Default none.
	Done string
}

func (o KafkaOptions) validate() error {
	switch {
	case o == KafkaOptions{}:
		return nil
	case o.Servers == "" || o.Topic == "" || o.Group == "":
		return errors.New("to consume, give all of --kafka-servers, --kafka-topic and --kafka-group")
	case o.Delay < 0 || o.Delay > MaxDelay:
		return fmt.Errorf("kafka delay %s: must be between 0 and %s", o.Delay, MaxDelay)
	}
	return nil
}

// batch is how many records are asked for at once.
func (o KafkaOptions) batch() int {
	const most = 500
	if o.Delay == 0 {
		return most
	}
	return int(min(max(batchTime/o.Delay, 1), most))
}

// member of a consumer group: a *kgo.Client.
type member interface {
	// PollRecords blocks until there are records, at most n of them, or ctx ends. Until AllowRebalance, none of their
	// partitions goes to another member.
	PollRecords(ctx context.Context, n int) kgo.Fetches
	AllowRebalance()
	// ProduceSync and CommitRecords return when that has been done, or has failed, or ctx has ended.
	ProduceSync(ctx context.Context, records ...*kgo.Record) kgo.ProduceResults
	CommitRecords(ctx context.Context, records ...*kgo.Record) error
}

// join makes a member. It lives until Close, or until ctx ends, and leaves the group then.
func (o KafkaOptions) join(ctx context.Context) (*kgo.Client, error) {
	client, err := kgo.NewClient(
		kgo.WithContext(ctx),
		kgo.SeedBrokers(strings.Split(o.Servers, ",")...),
		kgo.ConsumerGroup(o.Group), kgo.ConsumeTopics(o.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		// Many pods start at once, and each that joins has all others join again, which they learn by a heartbeat.
		kgo.HeartbeatInterval(time.Second),
		kgo.DefaultProduceTopic(o.Done), // for records that name none: the keys
	)
	if err != nil {
		return nil, fmt.Errorf("consumer of topic %q at %s: %w", o.Topic, o.Servers, err)
	}
	return client, nil
}

// consume works on records until ctx ends, and then commits what is done and leaves the group, for opts.Drain at most.
// It returns before only with an error: what is not committed then comes again, to whoever is next.
func (f *function) consume(ctx context.Context) error {
	if err := sleep(ctx, f.opts.StartDelay); err != nil {
		return nil //nolint:nilerr // the end came before the beginning
	}
	alive, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(f.opts.Drain, end) })()
	client, err := f.opts.Kafka.join(alive)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	for ctx.Err() == nil {
		if err := f.consumeBatch(ctx, alive, client); err != nil {
			return err
		}
	}
	return nil
}

// consumeBatch works on the records of one poll, up to the one in hand when ctx ends. What is done is committed, while
// alive lasts.
func (f *function) consumeBatch(ctx, alive context.Context, m member) error {
	defer m.AllowRebalance()
	fetches := m.PollRecords(ctx, f.opts.Kafka.batch())
	for _, failed := range fetches.Errors() {
		if ctx.Err() == nil {
			// The client tries again. What it cannot mend, such as a topic that is not there, it says again and again.
			log.Printf("poll topic %q, partition %d: %v", failed.Topic, failed.Partition, failed.Err)
			_ = sleep(ctx, batchTime) // the end is seen by who called
		}
	}
	var done, keys []*kgo.Record
	for _, r := range fetches.Records() {
		if ctx.Err() != nil {
			break
		}
		_ = sleep(alive, f.opts.Kafka.Delay)
		if alive.Err() != nil {
			break
		}
		f.records.Inc()
		f.recordIDs.add(string(r.Key))
		done = append(done, r)
		keys = append(keys, &kgo.Record{Key: r.Key})
	}
	if len(done) == 0 {
		return nil
	}
	if f.opts.Kafka.Done != "" {
		// Without the keys there must be no commit, neither of these records nor of later ones.
		if err := m.ProduceSync(alive, keys...).FirstErr(); err != nil {
			return fmt.Errorf("write %d keys to topic %q: %w", len(keys), f.opts.Kafka.Done, err)
		}
	}
	if err := m.CommitRecords(alive, done...); err != nil {
		// The next commit covers these too, or else they come again.
		log.Printf("commit %d records of topic %q: %v", len(done), f.opts.Kafka.Topic, err)
	}
	return nil
}
