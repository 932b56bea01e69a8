package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// groupsAtOnce bounds the groups of one request.
const groupsAtOnce = 500

// fetchCommitted reads the committed offsets of all groups.
func (b *brokers) fetchCommitted(ctx context.Context, wants []want, f *found) {
	topics := map[string][]string{}
	for _, w := range wants {
		topics[w.group] = append(topics[w.group], w.topics...)
	}
	maps.DeleteFunc(b.coordinators, func(group, _ string) bool { _, ok := topics[group]; return !ok })
	var groups []offsetFetchGroup
	for group, topics := range topics {
		slices.Sort(topics)
		asked := offsetFetchGroup{GroupID: group}
		for _, topic := range slices.Compact(topics) {
			if n := len(b.topics[topic].leaders); n > 0 {
				asked.Topics = append(asked.Topics, offsetFetchTopic{Name: topic, Partitions: numbers(n)})
			}
		}
		if len(asked.Topics) > 0 { // else none of its topics is there, which is what is said of it
			groups = append(groups, asked)
		}
	}
	finding, cancel := half(ctx) // those that are found are asked, however many are not
	b.findCoordinators(finding, groups, f)
	cancel()
	by := map[string][]offsetFetchGroup{}
	for _, asked := range groups {
		if address, ok := b.coordinators[asked.GroupID]; ok {
			by[address] = append(by[address], asked)
		}
	}
	var mu sync.Mutex // protects f and b.coordinators
	each(by, func(address string, asked []offsetFetchGroup) {
		for some := range slices.Chunk(asked, groupsAtOnce) {
			answers, err := b.offsetFetch(ctx, address, some)
			if err != nil {
				err = b.failed(address, err)
			}
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

// findCoordinators finds those of the groups that are not known, and says in f of which it cannot.
func (b *brokers) findCoordinators(ctx context.Context, groups []offsetFetchGroup, f *found) {
	var unknown []string
	for _, g := range groups {
		if _, ok := b.coordinators[g.GroupID]; !ok {
			unknown = append(unknown, g.GroupID)
		}
	}
	one := false // group in a request is all that a broker takes
	for len(unknown) > 0 {
		some := unknown[:min(len(unknown), groupsAtOnce)]
		if one {
			some = unknown[:1]
		}
		answer, from, err := first[*findCoordinatorResponse](ctx, b, &findCoordinatorRequest{Key: some[0], Keys: some})
		if err == nil && answer.Coordinators == nil { // below version 4
			one, some = true, some[:1]
			answer.Coordinators = []coordinator{{some[0], answer.NodeID, answer.Host, answer.Port, answer.ErrorCode, answer.ErrorMessage}}
		}
		b.takeCoordinators(f, some, answer, from, err)
		unknown = unknown[len(some):]
	}
}

// takeCoordinators remembers those that a broker has answered for the groups asked for, and says in f why the others are not.
func (b *brokers) takeCoordinators(f *found, asked []string, answer *findCoordinatorResponse, from string, err error) {
	if err == nil {
		err = errors.New("nothing was said of it")
	}
	for _, group := range asked {
		f.groups[group] = committed{err: fmt.Errorf("coordinator of group %q: %w", group, err)}
	}
	if answer == nil {
		return
	}
	for _, c := range answer.Coordinators {
		switch _, ok := f.groups[c.Key]; {
		case !ok: // nobody asked
		case c.ErrorCode != 0:
			f.groups[c.Key] = committed{err: fmt.Errorf("coordinator of group %q: %w", c.Key, codeError(c.ErrorCode))}
		default:
			address, ok := b.advertised(from, c.Host, c.Port)
			if !ok {
				f.groups[c.Key] = committed{err: fmt.Errorf("coordinator of group %q: broker %d %w", c.Key, c.NodeID, errNoAddress)}
				continue
			}
			b.coordinators[c.Key] = address
			delete(f.groups, c.Key)
		}
	}
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

// takeCommitted puts answers into f. A group that is asked for and not answered is not known; its coordinator may be
// another one by now, unless it has answered for others until the time was over.
func (b *brokers) takeCommitted(f *found, asked []offsetFetchGroup, answers []committedOfAGroup, err error) {
	slow := len(answers) > 0 && errors.Is(err, context.DeadlineExceeded)
	if err == nil {
		err = errors.New("the coordinator said nothing of it")
	}
	pending := make(map[string]*offsetFetchGroup, len(asked))
	for i := range asked {
		pending[asked[i].GroupID] = &asked[i]
	}
	for _, a := range answers {
		g := pending[a.GroupID]
		if g == nil {
			continue // nobody asked
		}
		code := kafka.Error(a.ErrorCode)
		switch code {
		case 0, groupIDNotFound:
			f.groups[a.GroupID] = committed{offsets: g.offsets(&a)}
		default:
			f.groups[a.GroupID] = committed{err: fmt.Errorf("offsets of group %q: %w", a.GroupID, code)}
		}
		if code == 0 || code == groupIDNotFound || code == kafka.GroupAuthorizationFailed {
			delete(pending, a.GroupID) // it is the coordinator who says so
		}
	}
	for group := range pending {
		if _, said := f.groups[group]; !said {
			f.groups[group] = committed{err: fmt.Errorf("offsets of group %q: %w", group, err)}
		}
		if !slow {
			delete(b.coordinators, group)
		}
	}
}

// offsets are those of an answer. A partition that it leaves out is not known.
func (g *offsetFetchGroup) offsets(a *committedOfAGroup) map[partition]reading {
	n := 0
	for _, t := range g.Topics {
		n += len(t.Partitions)
	}
	all := make(map[partition]reading, n)
	if kafka.Error(a.ErrorCode) == groupIDNotFound { // a group that is not there has committed nothing
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				all[partition{t.Name, p}] = reading{offset: none}
			}
		}
		return all
	}
	for _, t := range a.Topics {
		for _, p := range t.Partitions {
			of := partition{t.Name, p.Partition}
			r := reading{offset: max(p.Offset, none)}
			if p.ErrorCode != 0 {
				r.err = partitionError(of, fmt.Sprintf("committed offset of group %q", a.GroupID), codeError(p.ErrorCode))
			}
			all[of] = r
		}
	}
	return all
}
