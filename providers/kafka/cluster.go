package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/sluice-dev/sluice/providers"
)

// missingTTL is how long it is taken for true that a topic cannot be used: it may be created, or allowed, at any time.
const missingTTL = 5 * time.Second

// want is what a subscription asks of a cluster.
type want struct {
	group     string
	topics    []string
	isolation isolation
}

// topicLayout is what metadata says of a topic.
type topicLayout struct {
	err     error
	id      topicID   // zero where it is not known
	leaders []int32   // by partition; -1 for none
	read    time.Time // when it was
}

// brokers are the connections and the layout of one cluster. Not safe for concurrent use but where it says so.
type brokers struct {
	// ttl is how long the layout is taken for true while nothing says otherwise. The starts of logs are read anew as
	// often: they only grow, so that one that is old makes a lag larger and never smaller.
	ttl       time.Duration
	bootstrap []string
	security  security
	counted   func(protocol.ApiKey) // safe for concurrent use

	addresses    map[int32]string  // of brokers by node; none where a broker advertises nothing that can be one
	advertisers  map[string]string // by address: who has named it last, if that is not the bootstrap list or itself
	topics       map[string]topicLayout
	read         time.Time         // when the layout was
	stale        bool              // something said that it is not true any more
	coordinators map[string]string // addresses by group
	starts       map[partition]int64
	started      time.Time // when starts were read

	mu    sync.Mutex // protects following
	conns map[string]*conn
}

// found is what a look found.
type found struct {
	// at is when the look began: what is found is not older.
	at     time.Time
	groups map[string]committed
	// ends by isolation: of all records, and of those that no open transaction holds back.
	ends [2]map[partition]reading
	// starts are those that were asked for in this look.
	starts map[partition]reading
}

// committed are a group's offsets, none where it has committed nothing; or why they are not known.
type committed struct {
	offsets map[partition]reading
	err     error
}

// reading is an offset of a partition, or why it is not known.
type reading struct {
	offset int64
	err    error
}

// look asks the cluster for all that is wanted. What one broker does not answer is unknown of what it leads, and of nothing
// else. ctx has a deadline, of which each step takes half of what is left at most: a broker that hangs in one leaves time
// for the others.
func (b *brokers) look(ctx context.Context, wants []want) (*found, error) {
	f := &found{at: time.Now(), groups: map[string]committed{}, ends: [2]map[partition]reading{{}, {}}}
	part, cancel := half(ctx)
	err := b.layout(part, topicsOf(wants))
	cancel()
	if err != nil {
		return nil, fmt.Errorf("metadata of the cluster: %w", err)
	}
	// Committed offsets first: what is committed after the ends were read would make the lag smaller than it ever was.
	part, cancel = half(ctx)
	b.fetchCommitted(part, wants, f)
	cancel()
	b.listEnds(ctx, wants, f)
	return f, nil
}

// half ends when half of the time that ctx has left is over.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, _ := ctx.Deadline()
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

func topicsOf(wants []want) []string {
	var topics []string
	for _, w := range wants {
		topics = append(topics, w.topics...)
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// layout reads which brokers there are and what they lead, as far as that is not known.
func (b *brokers) layout(ctx context.Context, topics []string) error {
	all := b.stale || time.Since(b.read) >= b.ttl
	unsure := topics
	if !all {
		unsure = slices.DeleteFunc(slices.Clone(topics), func(t string) bool {
			known, ok := b.topics[t]
			return ok && (known.err == nil || time.Since(known.read) < missingTTL)
		})
	}
	if len(unsure) == 0 {
		return nil
	}
	request := &metadataRequest{Topics: make([]metadataAsking, len(unsure))}
	for i, t := range unsure {
		request.Topics[i].Name = t
	}
	answer, from, err := first[*metadataResponse](ctx, b, request)
	if err == nil {
		err = bounded(answer)
	}
	switch {
	case err == nil:
		b.adopt(answer, from, all)
	case all:
		return err
	default: // the others are as they were
		for _, t := range unsure {
			b.topics[t] = topicLayout{err: fmt.Errorf("metadata: %w", err)}
		}
	}
	return nil
}

// Most that a cluster may have of what is asked about: each leader is a connection, and each partition is kept. What calls
// itself a bootstrap server may be anything.
const maxBrokers, maxPartitions = 1000, 200_000

func bounded(m *metadataResponse) error {
	partitions := 0
	for _, t := range m.Topics {
		partitions += len(t.Partitions)
	}
	if len(m.Brokers) > maxBrokers || partitions > maxPartitions {
		return fmt.Errorf("%w: %d brokers and %d partitions; %d and %d are the most", errFrame, len(m.Brokers), partitions, maxBrokers, maxPartitions)
	}
	return nil
}

// first asks one broker after the other, until one answers, and returns its address too. It does not wait for one that is
// slow: the next is asked at the side after an eighth of the time, so that neither a broker that hangs takes the time of the
// others, nor many brokers that of one that is far away.
func first[T protocol.Message](ctx context.Context, b *brokers, request protocol.Message) (T, string, error) {
	type result struct {
		answer T
		from   string
		err    error
	}
	all := b.candidates()
	results := make(chan result, len(all))
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Wait, by the order of defers
	deadline, _ := ctx.Deadline()
	patience := time.Until(deadline) / 8
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var none T
	var errs []error
	for asked := 0; len(errs) < len(all); {
		if asked < len(all) {
			address := all[asked]
			asked++
			timer.Reset(patience)
			asking.Go(func() {
				answer, err := ask[T](ctx, b, address, request)
				if err != nil {
					err = b.failed(address, err)
				}
				results <- result{answer, address, err}
			})
		}
		select {
		case r := <-results:
			if r.err == nil {
				return r.answer, r.from, nil
			}
			errs = append(errs, r.err)
		case <-timer.C:
		}
	}
	return none, "", someOf(errs)
}

// someOf is what the first of many errors say, on one line. There is at least one.
func someOf(errs []error) error {
	const most = 3
	err := errs[0]
	for _, another := range errs[1:min(len(errs), most)] {
		err = fmt.Errorf("%w; %w", err, another)
	}
	if n := len(errs) - most; n > 0 {
		err = fmt.Errorf("%w; and %d more", err, n)
	}
	return err
}

// candidates are whom to ask what every broker knows: those that answered last, then those of the bootstrap list.
func (b *brokers) candidates() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Sorted(maps.Keys(b.conns)) // those that failed have none
	for _, address := range b.bootstrap {
		if !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	return all
}

// adopt takes what m, which is from a broker, says of its topics; where it is of all topics, there are no others any more.
func (b *brokers) adopt(m *metadataResponse, from string, all bool) {
	now := time.Now()
	was, remade := b.topics, map[string]bool{}
	if all {
		b.read, b.stale = now, false
		b.topics = make(map[string]topicLayout, len(m.Topics))
	}
	b.addresses = make(map[int32]string, len(m.Brokers))
	before := b.advertisers
	b.advertisers = make(map[string]string, len(m.Brokers))
	for _, address := range b.coordinators {
		if by, ok := before[address]; ok {
			b.advertisers[address] = by
		}
	}
	for _, broker := range m.Brokers {
		if address, ok := b.advertised(from, broker.Host, broker.Port); ok {
			b.addresses[broker.NodeID] = address
		}
	}
	for _, t := range m.Topics {
		layout := topicLayout{id: t.id(), leaders: make([]int32, len(t.Partitions)), read: now}
		if t.ErrorCode != 0 {
			layout.err = codeError(t.ErrorCode)
		}
		for i := range layout.leaders {
			layout.leaders[i] = -1
		}
		for _, p := range t.Partitions {
			if int(p.PartitionIndex) >= len(layout.leaders) || p.PartitionIndex < 0 {
				layout.err = fmt.Errorf("%w: partition %d of %d", errFrame, p.PartitionIndex, len(layout.leaders))
				break
			}
			layout.leaders[p.PartitionIndex] = p.LeaderID
		}
		if was[t.Name].id != layout.id {
			remade[t.Name] = true
		}
		b.topics[t.Name] = layout
	}
	// A topic that cannot be used may be another one when it can.
	maps.DeleteFunc(b.starts, func(p partition, _ int64) bool {
		layout, ok := b.topics[p.topic]
		return !ok || layout.err != nil || int(p.id) >= len(layout.leaders) || remade[p.topic]
	})
	b.prune()
}

// advertised is an address that a broker has named; false where it can be none. Who names addresses may be anything: where
// they lead is seen when they are dialled.
func (b *brokers) advertised(from, host string, port int32) (string, bool) {
	address := net.JoinHostPort(host, strconv.Itoa(int(port)))
	if _, err := providers.ParseAddress(address); err != nil {
		return "", false
	}
	if address != from && !slices.Contains(b.bootstrap, address) {
		b.advertisers[address] = from
	}
	return address, true
}

// failed says of which broker err is, and who has named its address if it is none at which there is one. Safe for
// concurrent use.
func (b *brokers) failed(address string, err error) error {
	if from, ok := b.advertisers[address]; ok {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return fmt.Errorf("broker %s advertises %s: %w", from, address, err)
		}
	}
	return fmt.Errorf("broker %s: %w", address, err)
}

// prune closes connections to brokers that are gone.
func (b *brokers) prune() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for address, c := range b.conns {
		known := slices.Contains(b.bootstrap, address)
		for _, a := range b.addresses {
			known = known || a == address
		}
		if !known {
			c.close()
			delete(b.conns, address)
		}
	}
}

// close closes all connections. The next look opens them again.
func (b *brokers) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.close()
	}
	clear(b.conns)
}

// ask sends request to the broker at address, over the connection that there is, or over a new one. A connection that
// the broker has closed meanwhile, as it does when it has been idle or its session has ended, is replaced once. Safe for
// concurrent use for different addresses.
func ask[T protocol.Message](ctx context.Context, b *brokers, address string, request protocol.Message) (T, error) {
	b.mu.Lock()
	c, kept := b.conns[address]
	b.mu.Unlock()
	for {
		if c == nil {
			var err error
			if c, err = dial(ctx, address, b.security, b.counted); err != nil {
				var none T
				return none, err
			}
		}
		answer, err := exchange[T](ctx, c, request)
		if err == nil {
			b.mu.Lock()
			b.conns[address] = c
			b.mu.Unlock()
			return answer, nil
		}
		c.close()
		c = nil
		b.mu.Lock()
		delete(b.conns, address)
		b.mu.Unlock()
		if !kept || !disconnected(err) || ctx.Err() != nil {
			return answer, err
		}
		kept = false
	}
}

// each calls do for each address side by side, and returns when all have returned.
func each[T any](by map[string]T, do func(address string, part T)) {
	var all sync.WaitGroup
	for address, part := range by {
		all.Go(func() { do(address, part) })
	}
	all.Wait()
}
