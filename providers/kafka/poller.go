package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

const (
	// gather is how long the first caller of a round waits for the others, whose turn is at the same time.
	gather = 10 * time.Millisecond
	// idleAfter is how long the connections to a cluster are kept that nobody asks about.
	idleAfter = 30 * time.Second
	// forgetAfter is how long it is remembered where a group stood that nobody asks about: for as long as its Secret cannot
	// be read, it is not asked about.
	forgetAfter = 15 * time.Minute
)

// isolation is the isolation level of a request.
type isolation int8

const (
	readUncommitted isolation = 0
	readCommitted   isolation = 1
)

// subscription is whose lag is measured.
type subscription struct {
	group      string
	topics     string // with a comma between them
	partitions string // by number, with a comma between them; empty for all
	reset      v1alpha1.KafkaOffsetReset
	isolation  isolation
}

func subscriptionOf(c *providers.Consumer) subscription {
	s := subscription{group: c.Group, topics: c.Topics, partitions: c.Partitions, reset: c.Reset}
	if c.Isolation == v1alpha1.KafkaReadCommitted {
		s.isolation = readCommitted
	}
	return s
}

func (s *subscription) all() []string { return strings.Split(s.topics, ",") }

// poller looks at one cluster for all who ask about it. Who comes first looks for all, and the others wait for what it
// finds: a round costs the same requests however many they are.
type poller struct {
	interval time.Duration
	brokers  brokers

	mu    sync.Mutex // protects following
	subs  map[subscription]*subscriber
	round chan struct{} // closed at the end of the round that is under way; nil while there is none
	idle  *time.Timer
}

// subscriber is what is known for a subscription.
type subscriber struct {
	asked  time.Time     // when somebody last wanted to know
	round  chan struct{} // that said the following; nil for none
	at     time.Time     // when it began
	lag    *lag
	err    error
	memory memory
}

func newPoller(o *Options, bootstrap []string, s security, counted func(protocol.ApiKey)) *poller {
	p := &poller{interval: o.Interval, subs: map[subscription]*subscriber{}, brokers: brokers{
		ttl: o.MetadataInterval, bootstrap: bootstrap, security: s, counted: counted,
		addresses: map[int32]string{}, advertisers: map[string]string{}, topics: map[string]topicLayout{}, coordinators: map[string]string{},
		starts: map[partition]int64{}, conns: map[string]*conn{},
	}}
	p.idle = time.AfterFunc(idleAfter, p.rest)
	return p
}

// rest closes the connections, when nobody has asked for idleAfter.
func (p *poller) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.round == nil {
		p.brokers.close()
	}
}

// close ends the poller. No measurement is under way.
func (p *poller) close() {
	p.idle.Stop()
	p.rest()
}

// measure returns the lag of s as of now, or of half an interval ago. ctx has a deadline.
func (p *poller) measure(ctx context.Context, s subscription) (*lag, time.Time, error) {
	var waited chan struct{}
	for {
		p.mu.Lock()
		now := time.Now()
		sub := p.subLocked(s)
		sub.asked = now
		// What the round says that was waited for is taken however long it took: one broker that hangs makes it long, and
		// the others have answered.
		if sub.round != nil && (sub.round == waited || now.Sub(sub.at) < p.interval/2) {
			l, at, err := sub.lag, sub.at, sub.err
			p.mu.Unlock()
			return l, at, err
		}
		if ctx.Err() != nil { // no round can begin
			p.mu.Unlock()
			return nil, time.Time{}, fmt.Errorf("wait for the cluster: %w", context.Cause(ctx))
		}
		round := p.round
		leads := round == nil
		if leads {
			round = make(chan struct{})
			p.round = round
			p.idle.Reset(idleAfter)
		}
		p.mu.Unlock()
		if leads {
			p.lead(ctx)
			waited = round
			continue
		}
		select {
		case <-round: // look again: who led may have been stopped, and then it is somebody else's turn
			waited = round
		case <-ctx.Done():
		}
	}
}

func (p *poller) subLocked(s subscription) *subscriber {
	sub := p.subs[s]
	if sub == nil {
		sub = &subscriber{}
		p.subs[s] = sub
	}
	return sub
}

// knows tells whether s has been asked about.
func (p *poller) knows(s subscription) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subs[s] != nil
}

// recall returns when s was last asked about, and where it stood in which topics; false where that is not known.
func (p *poller) recall(s subscription) (time.Time, memory, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sub := p.subs[s]
	if sub == nil || sub.memory.positions == nil {
		return time.Time{}, memory{}, false
	}
	return sub.asked, memory{positions: maps.Clone(sub.memory.positions), topics: slices.Clone(sub.memory.topics)}, true
}

// remember begins with s where it stood.
func (p *poller) remember(s subscription, stood memory) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subLocked(s).memory = stood
}

// lead makes a round for all who have asked lately.
func (p *poller) lead(ctx context.Context) {
	timer := time.NewTimer(gather)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	wants := p.wantsLocked(time.Now())
	p.mu.Unlock()

	// A round is over before those have to go who wait for it: they came a moment before or after the leader, and have as
	// much time.
	deadline, _ := ctx.Deadline()
	part, cancel := context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/8))
	defer cancel()
	began := time.Now()
	f, err := p.brokers.look(part, slices.Collect(maps.Values(wants)))

	p.mu.Lock()
	defer p.mu.Unlock()
	round := p.round
	close(round)
	p.round = nil
	if errors.Is(ctx.Err(), context.Canceled) {
		return // says nothing of the cluster
	}
	// The layout is that of the round still: the next leader needs mu first.
	for s := range wants {
		sub := p.subs[s]
		sub.round, sub.at, sub.lag, sub.err = round, began, nil, err
		if err == nil {
			sub.lag, sub.err = p.judge(f, s, &sub.memory)
		}
	}
}

// wantsLocked is what to look for, without those that nobody has asked about for some rounds.
func (p *poller) wantsLocked(now time.Time) map[subscription]want {
	wants := make(map[subscription]want, len(p.subs))
	for s, sub := range p.subs {
		switch unasked := now.Sub(sub.asked); {
		case unasked > forgetAfter && unasked > 3*p.interval:
			delete(p.subs, s)
		case unasked <= 3*p.interval:
			wants[s] = want{group: s.group, topics: s.all(), isolation: s.isolation}
		}
	}
	return wants
}

// judge makes the lag of s of what was found. Whatever is missing makes it unknown.
func (p *poller) judge(f *found, s subscription, m *memory) (*lag, error) {
	partitions := 0
	for _, topic := range s.all() {
		layout, ok := p.brokers.topics[topic]
		switch {
		case !ok:
			return nil, fmt.Errorf("topic %q: the cluster said nothing of it", topic)
		case layout.err != nil:
			return nil, fmt.Errorf("topic %q: %w", topic, layout.err)
		case len(layout.leaders) == 0:
			return nil, fmt.Errorf("topic %q: it has no partitions", topic)
		}
		if former := m.recognize(f.at, topic, layout.id); former != (topicID{}) {
			m.notice(s.recreated(f.at, topic, former, layout.id, s.counting(len(layout.leaders))))
		}
		partitions += len(layout.leaders)
	}
	group := f.groups[s.group]
	if group.err != nil {
		return nil, group.err
	}
	if group.offsets == nil {
		return nil, fmt.Errorf("group %q: the cluster said nothing of it", s.group)
	}
	all := make(map[partition]offsets, partitions)
	for _, topic := range s.all() {
		for id := range p.brokers.topics[topic].leaders {
			of := partition{topic, int32(id)} //nolint:gosec // a partition's number
			if !s.counts(of.id) {
				continue
			}
			end, ok := f.ends[s.isolation][of]
			if !ok {
				return nil, partitionError(of, "end", errors.New("nobody was asked"))
			}
			if end.err != nil {
				return nil, end.err
			}
			start, ok := p.brokers.starts[of]
			if ok && start > end.offset { // of a topic that has been made anew since
				delete(p.brokers.starts, of)
				ok = false
			}
			if !ok {
				return nil, cmp.Or(f.starts[of].err, partitionError(of, "start", errors.New("it is not known yet")))
			}
			committed, ok := group.offsets[of]
			if !ok {
				return nil, partitionError(of, fmt.Sprintf("committed offset of group %q", s.group), errors.New("the coordinator said nothing of it"))
			}
			if committed.err != nil {
				return nil, committed.err
			}
			all[of] = offsets{committed: committed.offset, start: start, end: end.offset}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no partition of topics %s is among partitions %s", s.topics, s.partitions)
	}
	l, err := m.judge(f.at, &s, all)
	if errors.Is(err, errBack) {
		p.brokers.stale = true
		err = fmt.Errorf("group %q: %w", s.group, err)
	}
	return l, err
}

// counting are those of the first n partitions that count.
func (s *subscription) counting(n int) []int32 {
	return slices.DeleteFunc(numbers(n), func(id int32) bool { return !s.counts(id) })
}

// counts tells whether a partition is one that counts.
func (s *subscription) counts(id int32) bool {
	if s.partitions == "" {
		return true
	}
	number := fmt.Sprint(id)
	for one := range strings.SplitSeq(s.partitions, ",") {
		if one == number {
			return true
		}
	}
	return false
}
