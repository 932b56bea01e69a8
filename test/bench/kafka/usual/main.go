// Command usual is the usual way to measure lag, for the benchmark to compare with: a client of kafka-go for each trigger,
// with a Transport of its own, which asks for the metadata, the committed offsets of the group and the ends of its topic's
// partitions in every interval, as KEDA's scaler apache-kafka does. It is a program apart because providers/kafka replaces
// messages of the module in whatever program it is linked into.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/sluice-dev/sluice/test/bench/kafka/subject"
)

// timeout of a poll. KEDA's scaler has none.
const timeout = 30 * time.Second

func main() {
	var o subject.Options
	o.Flags()
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench kafka, a client per trigger:", err)
		os.Exit(1)
	}
}

// triggers are all of them.
type triggers struct {
	all      []*trigger
	recorder subject.Recorder
	resting  atomic.Bool // no trigger has its turn

	mu       sync.Mutex // protects following
	requests map[string]int
}

// trigger is one group's.
type trigger struct {
	client       *kafka.Client
	group, topic string

	mu     sync.Mutex // protects following
	answer subject.Answer
}

func run(ctx context.Context, o subject.Options) error {
	t := &triggers{requests: map[string]int{}}
	for i := range o.Groups {
		t.all = append(t.all, &trigger{
			client: &kafka.Client{Addr: kafka.TCP(o.Servers), Transport: &kafka.Transport{Dial: t.dial}},
			group:  subject.Group(i), topic: subject.Topic(o.TopicOf(i)),
			answer: subject.Answer{Unknown: "it was not asked yet"},
		})
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	began := time.Now()
	for i, trigger := range t.all {
		first := began.Add(o.Interval * time.Duration(i) / time.Duration(o.Groups))
		running.Go(func() { t.loop(ctx, trigger, first, o.Interval) })
	}
	return subject.Serve(ctx, o.Address, t)
}

// loop polls a trigger in every interval from first on, and leaves out turns that are past.
func (t *triggers) loop(ctx context.Context, one *trigger, first time.Time, interval time.Duration) {
	next := first
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if !t.resting.Load() {
			t.poll(ctx, one)
		}
		for now := time.Now(); !next.After(now); {
			next = next.Add(interval)
		}
		timer.Reset(time.Until(next))
	}
}

func (t *triggers) poll(ctx context.Context, one *trigger) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t.recorder.Poll(func() error {
		lag, err := one.lag(ctx)
		one.mu.Lock()
		defer one.mu.Unlock()
		one.answer = subject.Answer{Lag: lag}
		if err != nil {
			one.answer.Unknown = err.Error()
		}
		return err
	})
}

// lag asks as KEDA's scaler does, but for what follows from no design: that asks for committed offsets of no partition of
// all other topics too.
func (t *trigger) lag(ctx context.Context) (int64, error) {
	metadata, err := t.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{t.topic}})
	if err != nil {
		return 0, fmt.Errorf("metadata: %w", err)
	}
	var partitions []int
	var ask []kafka.OffsetRequest
	for _, topic := range metadata.Topics {
		for _, p := range topic.Partitions {
			partitions = append(partitions, p.ID)
			ask = append(ask, kafka.FirstOffsetOf(p.ID), kafka.LastOffsetOf(p.ID))
		}
	}
	if len(partitions) == 0 {
		return 0, fmt.Errorf("metadata: topic %q has no partitions", t.topic)
	}
	var committed *kafka.OffsetFetchResponse
	var errCommitted error
	var fetching sync.WaitGroup
	fetching.Go(func() {
		committed, errCommitted = t.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{
			GroupID: t.group, Topics: map[string][]int{t.topic: partitions},
		})
		if errCommitted == nil {
			errCommitted = committed.Error
		}
	})
	ends, err := t.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{t.topic: ask}})
	fetching.Wait()
	if err := errors.Join(errCommitted, err); err != nil {
		return 0, fmt.Errorf("offsets: %w", err)
	}
	at := map[int]int64{}
	for _, p := range committed.Topics[t.topic] {
		if p.Error != nil {
			return 0, fmt.Errorf("committed offset of partition %d: %w", p.Partition, p.Error)
		}
		at[p.Partition] = p.CommittedOffset
	}
	var lag int64
	for _, p := range ends.Topics[t.topic] {
		if p.Error != nil {
			return 0, fmt.Errorf("end of partition %d: %w", p.Partition, p.Error)
		}
		lag += p.LastOffset - at[p.Partition]
	}
	return lag, nil
}

// Lags implements subject.Subject.
func (t *triggers) Lags() []subject.Answer {
	all := make([]subject.Answer, len(t.all))
	for i, one := range t.all {
		one.mu.Lock()
		all[i] = one.answer
		one.mu.Unlock()
	}
	return all
}

// Seen implements subject.Subject.
func (t *triggers) Seen() subject.Seen {
	seen := t.recorder.Seen()
	t.mu.Lock()
	defer t.mu.Unlock()
	seen.Requests, t.requests = t.requests, map[string]int{}
	return seen
}

// Together implements subject.Crowd: the triggers have no turns of their own meanwhile.
func (t *triggers) Together(ctx context.Context) error {
	t.resting.Store(true)
	defer t.resting.Store(false)
	var polling sync.WaitGroup
	for _, one := range t.all {
		polling.Go(func() { t.poll(ctx, one) })
	}
	polling.Wait()
	return ctx.Err()
}

// dial connects, and has the requests counted that are sent.
func (t *triggers) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &counted{Conn: conn, triggers: t}, nil
}

// counted is a connection of which the requests are counted. Nobody writes to it at the same time.
type counted struct {
	net.Conn
	triggers *triggers
	left     int // of the request that is being written
}

// Write implements net.Conn. A request begins with its size and the number of its API; the module writes that at once.
func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.left == 0 {
			if len(rest) < 6 {
				return n, errors.New("the head of a request is not written at once")
			}
			c.left = 4 + int(binary.BigEndian.Uint32(rest))
			api := protocol.ApiKey(binary.BigEndian.Uint16(rest[4:])).String()
			c.triggers.mu.Lock()
			c.triggers.requests[api]++
			c.triggers.mu.Unlock()
		}
		some := min(c.left, len(rest))
		c.left, rest = c.left-some, rest[some:]
	}
	return n, err
}
