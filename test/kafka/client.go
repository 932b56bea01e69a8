package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Client does what an application and its operator do to a cluster, by franz-go: what it says is not the opinion of the
// client under test. Connect makes it, Close ends it. Safe for concurrent use.
type Client struct {
	// Client produces and asks; records go to the partition that they name.
	*kgo.Client
	// Admin is for whatever has no method here.
	Admin *kadm.Client

	options []kgo.Opt // as given to Connect, for further clients
}

// Connect returns a client over PlaintextListener, unless the options say otherwise. It connects when it is used.
func (c *Cluster) Connect(options ...kgo.Opt) (*Client, error) {
	options = append([]kgo.Opt{
		kgo.SeedBrokers(c.Addresses(PlaintextListener)...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(100 * time.Millisecond), // topics come and go, and leaders
	}, options...)
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, err
	}
	return &Client{Client: client, Admin: kadm.NewClient(client), options: options}, nil
}

// CreateTopic makes a topic with a replica on every broker, and waits until it can be used. Config is of key, value pairs.
func (c *Client) CreateTopic(ctx context.Context, topic string, partitions int32, config ...string) error {
	settings := map[string]*string{}
	for pair := range slices.Chunk(config, 2) {
		settings[pair[0]] = &pair[1]
	}
	if _, err := c.Admin.CreateTopic(ctx, partitions, -1, settings, topic); err != nil {
		return fmt.Errorf("create topic %q: %w", topic, err)
	}
	return c.usable(ctx, topic, int(partitions))
}

// DeleteTopic removes a topic, and waits until the broker that is asked knows.
func (c *Client) DeleteTopic(ctx context.Context, topic string) error {
	if _, err := c.Admin.DeleteTopic(ctx, topic); err != nil {
		return fmt.Errorf("delete topic %q: %w", topic, err)
	}
	return c.usable(ctx, topic, 0)
}

// AddPartitions makes a topic have so many partitions in all, and waits until they can be used. Records for it that this
// client is writing at the same time may fail.
func (c *Client) AddPartitions(ctx context.Context, topic string, partitions int) error {
	answers, err := c.Admin.UpdatePartitions(ctx, partitions, topic)
	if err := errors.Join(err, answers.Error()); err != nil {
		return fmt.Errorf("add partitions to topic %q: %w", topic, err)
	}
	return c.usable(ctx, topic, partitions)
}

// usable waits until every broker knows so many partitions of the topic that somebody leads: they learn of it one after the
// other, and one that does not know it refuses its records and commits. Then it has the client look at it anew.
func (c *Client) usable(ctx context.Context, topic string, partitions int) error {
	err := poll(ctx, func() error {
		brokers, err := c.Admin.ListBrokers(ctx)
		if err != nil {
			return err
		}
		for _, broker := range brokers {
			led, err := c.ledBy(ctx, broker.NodeID, topic)
			if err == nil && led != partitions {
				err = fmt.Errorf("topic %q has %d partitions that are led, want %d", topic, led, partitions)
			}
			if err != nil {
				return fmt.Errorf("broker %d: %w", broker.NodeID, err)
			}
		}
		return nil
	})
	c.PurgeTopicsFromClient(topic)
	return err
}

// ledBy is how many partitions of the topic are led by somebody, as one broker knows.
func (c *Client) ledBy(ctx context.Context, broker int32, topic string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // one that hangs is not among the brokers for long
	defer cancel()
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	answer, err := request.RequestWith(ctx, c.Broker(int(broker)))
	if err != nil {
		return 0, err
	}
	led := 0
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 && p.Leader >= 0 {
				led++
			}
		}
	}
	return led, nil
}

// poll calls check until it has no error, or ctx ends.
func poll(ctx context.Context, check func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// Produce writes n records to a partition, in one batch.
func (c *Client) Produce(ctx context.Context, topic string, partition int32, n int) error {
	if err := c.ProduceSync(ctx, Records(topic, partition, n)...).FirstErr(); err != nil {
		return fmt.Errorf("produce to topic %q, partition %d: %w", topic, partition, err)
	}
	return nil
}

// Records are n records for a partition, whose keys and values are their numbers.
func Records(topic string, partition int32, n int) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		text := fmt.Append(nil, i)
		records[i] = &kgo.Record{Topic: topic, Partition: partition, Key: text, Value: text}
	}
	return records
}

// Transaction is one that is open.
type Transaction struct {
	id     string
	client *kgo.Client
}

// Begin opens a transaction and writes n records to a partition in it. End it.
func (c *Client) Begin(ctx context.Context, id, topic string, partition int32, n int) (*Transaction, error) {
	client, err := kgo.NewClient(append(slices.Clone(c.options), kgo.TransactionalID(id))...)
	if err != nil {
		return nil, err
	}
	err = client.BeginTransaction()
	if err == nil {
		err = client.ProduceSync(ctx, Records(topic, partition, n)...).FirstErr()
	}
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("transaction %q: %w", id, err)
	}
	return &Transaction{id: id, client: client}, nil
}

// End commits or aborts, and waits until the markers are written. One has an offset of its own, after the records.
func (t *Transaction) End(ctx context.Context, commit bool) error {
	defer t.client.Close()
	if err := t.client.EndTransaction(ctx, kgo.TransactionEndTry(commit)); err != nil {
		return fmt.Errorf("end transaction %q: %w", t.id, err)
	}
	// The answer says that the end is decided; only afterwards are the markers written.
	return poll(ctx, func() error {
		described, err := kadm.NewClient(t.client).DescribeTransactions(ctx, t.id)
		if state := described[t.id].State; err == nil && state != "CompleteCommit" && state != "CompleteAbort" {
			err = fmt.Errorf("transaction %q is in state %q", t.id, state)
		}
		return err
	})
}

// Consume joins a group, reads n records of a topic from where the group stands or the start, commits them and leaves.
// With the options kgo.ServerSideBalancer() and kgo.Balancers(kgo.RangeBalancer()) it speaks KIP-848.
func (c *Client) Consume(ctx context.Context, group, topic string, n int, options ...kgo.Opt) error {
	member, err := c.Join(group, topic, options...)
	if err != nil {
		return err
	}
	defer member.Close()
	for read := 0; read < n; {
		got := member.PollRecords(ctx, n-read)
		if err := got.Err(); err != nil {
			return fmt.Errorf("group %q after %d records of %q: %w", group, read, topic, err)
		}
		read += got.NumRecords()
		if err := member.CommitRecords(ctx, got.Records()...); err != nil {
			return fmt.Errorf("commit for group %q: %w", group, err)
		}
	}
	return nil
}

// Join returns a member of a group, which joins when it is polled and commits what it is told to. Close leaves the group.
func (c *Client) Join(group, topic string, options ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(slices.Concat(c.options, []kgo.Opt{
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, options)...)
}

// Commit writes offsets for a group that has no members.
func (c *Client) Commit(ctx context.Context, group string, offsets map[Partition]int64) error {
	commit := kadm.Offsets{}
	for p, at := range offsets {
		commit.AddOffset(p.Topic, p.Partition, at, -1)
	}
	if err := c.Admin.CommitAllOffsets(ctx, group, commit); err != nil {
		return fmt.Errorf("commit for group %q: %w", group, err)
	}
	return nil
}

// DeleteRecordsBefore moves the log start of a partition, as retention does.
func (c *Client) DeleteRecordsBefore(ctx context.Context, p Partition, offset int64) error {
	before := kadm.Offsets{}
	before.AddOffset(p.Topic, p.Partition, offset, -1)
	answers, err := c.Admin.DeleteRecords(ctx, before)
	if err := errors.Join(err, answers.Error()); err != nil {
		return fmt.Errorf("delete records of %v: %w", p, err)
	}
	return nil
}

// Leader is the node id of the broker that leads a partition; it is that of a broker that is away until another takes over.
func (c *Client) Leader(ctx context.Context, p Partition) (int32, error) {
	topics, err := c.Admin.ListTopics(ctx, p.Topic)
	if err != nil {
		return 0, err
	}
	known, ok := topics[p.Topic].Partitions[p.Partition]
	if !ok {
		return 0, fmt.Errorf("no partition %v", p)
	}
	return known.Leader, known.Err
}

// Coordinator is the node id of the broker that keeps a group's offsets.
func (c *Client) Coordinator(ctx context.Context, group string) (int32, error) {
	answer := c.Admin.FindGroupCoordinators(ctx, group)[group]
	return answer.NodeID, answer.Err
}
