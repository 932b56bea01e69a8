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

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

const (
	// metadataTTL is how long the layout of a cluster is taken for true while nothing says otherwise. The starts of logs
	// are read anew as often: they only grow, so that one that is old makes a lag larger and never smaller.
	metadataTTL = 30 * time.Second
	// groupsAtOnce bounds the groups of one request.
	groupsAtOnce = 500
)

// want is what a subscription asks of a cluster.
type want struct {
	group     string
	topics    []string
	isolation isolation
}

// topicLayout is what metadata says of a topic.
type topicLayout struct {
	err     error
	leaders []int32 // by partition; -1 for none
}

// brokers are the connections and the layout of one cluster. Not safe for concurrent use but where it says so.
type brokers struct {
	bootstrap []string
	security  security
	counted   func(protocol.ApiKey) // safe for concurrent use

	addresses    map[int32]string // of brokers by node
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
	ends [2]map[partition]end
}

// committed are a group's offsets, or why they are not known. A partition without one is absent.
type committed struct {
	offsets map[partition]int64
	err     error
}

// end of a partition's log, or why it is not known.
type end struct {
	offset int64
	err    error
}

// look asks the cluster for all that is wanted. What one broker does not answer is unknown of what it leads, and of nothing
// else. ctx has a deadline; a broker that hangs takes its share of the time.
func (b *brokers) look(ctx context.Context, wants []want) (*found, error) {
	f := &found{at: time.Now(), groups: map[string]committed{}, ends: [2]map[partition]end{{}, {}}}
	// Each step has its part of what is left, so that a broker that hangs in one leaves time for the others.
	step := func(part time.Duration) (context.Context, context.CancelFunc) {
		deadline, _ := ctx.Deadline()
		return context.WithTimeout(ctx, time.Until(deadline)/part)
	}
	topics := topicsOf(wants)
	if b.stale || time.Since(b.read) >= metadataTTL || slices.ContainsFunc(topics, func(t string) bool { _, ok := b.topics[t]; return !ok }) {
		ctx, cancel := step(3)
		err := b.layout(ctx, topics)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("metadata of the cluster: %w", err)
		}
	}
	// Committed offsets first: what is committed after the ends were read would make the lag smaller than it ever was.
	part, cancel := step(2)
	b.fetchCommitted(part, wants, f)
	cancel()
	b.listEnds(ctx, wants, f)
	return f, nil
}

func topicsOf(wants []want) []string {
	var topics []string
	for _, w := range wants {
		topics = append(topics, w.topics...)
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// layout reads which brokers there are and what they lead.
func (b *brokers) layout(ctx context.Context, topics []string) error {
	answer, err := first[*metadata.Response](ctx, b, &metadata.Request{TopicNames: topics})
	if err != nil {
		return err
	}
	b.adopt(answer)
	return nil
}

// first asks one broker after the other, until one answers. A broker that hangs has its share of the time.
func first[T protocol.Message](ctx context.Context, b *brokers, request protocol.Message) (T, error) {
	var errs []error
	all := b.candidates()
	for i, address := range all {
		deadline, _ := ctx.Deadline()
		part, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(all)-i))
		answer, err := ask[T](part, b, address, request)
		cancel()
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("broker %s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	var none T
	return none, errors.Join(errs...)
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

func (b *brokers) adopt(m *metadata.Response) {
	b.read, b.stale = time.Now(), false
	b.addresses = make(map[int32]string, len(m.Brokers))
	for _, broker := range m.Brokers {
		b.addresses[broker.NodeID] = net.JoinHostPort(broker.Host, strconv.Itoa(int(broker.Port)))
	}
	b.topics = make(map[string]topicLayout, len(m.Topics))
	for _, t := range m.Topics {
		layout := topicLayout{leaders: make([]int32, len(t.Partitions))}
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
		b.topics[t.Name] = layout
	}
	maps.DeleteFunc(b.starts, func(p partition, _ int64) bool { _, ok := b.topics[p.topic]; return !ok })
	b.prune()
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

// coordinator returns the address of a group's coordinator, as it is known, or as a broker says.
func (b *brokers) coordinator(ctx context.Context, group string) (string, error) {
	if address, ok := b.coordinators[group]; ok {
		return address, nil
	}
	answer, err := first[*findcoordinator.Response](ctx, b, &findcoordinator.Request{Key: group})
	if err != nil {
		return "", err
	}
	if answer.ErrorCode != 0 {
		return "", codeError(answer.ErrorCode)
	}
	b.coordinators[group] = net.JoinHostPort(answer.Host, strconv.Itoa(int(answer.Port)))
	return b.coordinators[group], nil
}

// fetchCommitted reads the committed offsets of all groups.
func (b *brokers) fetchCommitted(ctx context.Context, wants []want, f *found) {
	groups := map[string][]string{}
	for _, w := range wants {
		groups[w.group] = append(groups[w.group], w.topics...)
	}
	by := map[string][]offsetFetchGroup{}
	for group, topics := range groups {
		slices.Sort(topics)
		asked := offsetFetchGroup{GroupID: group}
		for _, topic := range slices.Compact(topics) {
			if n := len(b.topics[topic].leaders); n > 0 {
				asked.Topics = append(asked.Topics, offsetFetchTopic{Name: topic, Partitions: numbers(n)})
			}
		}
		if len(asked.Topics) == 0 {
			continue // none of its topics is there, which is what is said of it
		}
		address, err := b.coordinator(ctx, group)
		if err != nil {
			f.groups[group] = committed{err: fmt.Errorf("coordinator of group %q: %w", group, err)}
			continue
		}
		by[address] = append(by[address], asked)
	}
	var mu sync.Mutex // protects f and b.coordinators
	each(by, func(address string, asked []offsetFetchGroup) {
		for some := range slices.Chunk(asked, groupsAtOnce) {
			answers, err := b.offsetFetch(ctx, address, some)
			mu.Lock()
			b.takeCommitted(f, some, answers, err)
			mu.Unlock()
		}
	})
}

func numbers(n int) []int32 {
	all := make([]int32, n)
	for i := range all {
		all[i] = int32(i) //nolint:gosec // a partition's number
	}
	return all
}

// offsetFetch asks one coordinator: in one request where it takes many groups, else in one for each.
func (b *brokers) offsetFetch(ctx context.Context, address string, asked []offsetFetchGroup) ([]committedOfAGroup, error) {
	version, err := b.version(ctx, address, protocol.OffsetFetch)
	if err != nil {
		return nil, err
	}
	if version >= 8 {
		answer, err := ask[*offsetFetchResponse](ctx, b, address, &offsetFetchRequest{Groups: asked})
		if err != nil {
			return nil, err
		}
		return answer.Groups, nil
	}
	var all []committedOfAGroup
	for _, g := range asked {
		answer, err := ask[*offsetFetchResponse](ctx, b, address, &offsetFetchRequest{GroupID: g.GroupID, Topics: g.Topics})
		if err != nil {
			return all, err
		}
		all = append(all, committedOfAGroup{GroupID: g.GroupID, Topics: answer.Topics, ErrorCode: answer.ErrorCode})
	}
	return all, nil
}

// version of an API that the broker at address speaks.
func (b *brokers) version(ctx context.Context, address string, key protocol.ApiKey) (int16, error) {
	b.mu.Lock()
	c := b.conns[address]
	b.mu.Unlock()
	if c == nil {
		var err error
		if c, err = dial(ctx, address, b.security, b.counted); err != nil {
			return 0, err
		}
		b.mu.Lock()
		b.conns[address] = c
		b.mu.Unlock()
	}
	v, ok := c.speaks(key)
	if !ok {
		return 0, fmt.Errorf("the broker speaks no version of %s that is known here", key)
	}
	return v, nil
}

// takeCommitted puts answers into f. A group that is asked for and not answered is not known.
func (b *brokers) takeCommitted(f *found, asked []offsetFetchGroup, answers []committedOfAGroup, err error) {
	if err == nil {
		err = errors.New("the coordinator said nothing of it")
	}
	for _, g := range asked {
		f.groups[g.GroupID] = committed{err: fmt.Errorf("offsets of group %q: %w", g.GroupID, err)}
	}
	for _, a := range answers {
		if _, ok := f.groups[a.GroupID]; !ok {
			continue
		}
		c := committed{offsets: map[partition]int64{}}
		switch code := kafka.Error(a.ErrorCode); code {
		case 0:
		case groupIDNotFound: // a group that is not there has committed nothing
			a.Topics = nil
		default:
			c.err = fmt.Errorf("offsets of group %q: %w", a.GroupID, code)
		}
		for _, t := range a.Topics {
			for _, p := range t.Partitions {
				switch of := (partition{t.Name, p.Partition}); {
				case p.ErrorCode != 0:
					c.err = partitionError(of, fmt.Sprintf("committed offset of group %q", a.GroupID), codeError(p.ErrorCode))
				case p.Offset >= 0:
					c.offsets[of] = p.Offset
				}
			}
		}
		f.groups[a.GroupID] = c
	}
	// Whatever went wrong, the group may have another coordinator by now.
	for _, g := range asked {
		if f.groups[g.GroupID].err != nil {
			delete(b.coordinators, g.GroupID)
		}
	}
}
