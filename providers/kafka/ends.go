package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

var (
	// errNoLeader is for a partition that nobody leads, errNotSaid for one that an answer leaves out.
	errNoLeader = errors.New("it has no leader")
	errNotSaid  = errors.New("its leader said nothing of it")
	// errNoAddress is for a broker that cannot be asked.
	errNoAddress = errors.New("advertises no usable address")
)

// listEnds reads the ends of the logs of all that is wanted: one request per leader, and another where both isolations
// are wanted. Every b.ttl it reads their starts too.
func (b *brokers) listEnds(ctx context.Context, wants []want, f *found) {
	var topics [2]map[string]struct{} // many groups may consume one
	for _, w := range wants {
		if topics[w.isolation] == nil {
			topics[w.isolation] = map[string]struct{}{}
		}
		for _, topic := range w.topics {
			topics[w.isolation][topic] = struct{}{}
		}
	}
	all := time.Since(b.started) >= b.ttl
	var asked []listing
	starts := listing{timestamp: earliest, of: map[partition]struct{}{}, found: map[partition]reading{}}
	for i := range topics {
		wanted := b.partitions(topics[i])
		if len(wanted) == 0 {
			continue
		}
		asked = append(asked, listing{timestamp: latest, isolation: isolation(i), of: wanted, found: f.ends[i]})
		for p := range wanted {
			if _, ok := b.starts[p]; all || !ok {
				starts.of[p] = struct{}{}
			}
		}
	}
	if len(starts.of) > 0 {
		asked = append(asked, starts)
	}
	b.list(ctx, asked)
	f.starts = starts.found
	for p, r := range starts.found {
		if r.err == nil {
			b.starts[p] = r.offset
		}
	}
	if all { // those that failed are as they were, or are asked for again as they are not there
		b.started = time.Now()
	}
}

// partitions of topics, as far as there are any.
func (b *brokers) partitions(topics map[string]struct{}) map[partition]struct{} {
	n := 0
	for topic := range topics {
		n += len(b.topics[topic].leaders)
	}
	all := make(map[partition]struct{}, n)
	for topic := range topics {
		for id := range b.topics[topic].leaders {
			all[partition{topic, int32(id)}] = struct{}{} //nolint:gosec // a partition's number
		}
	}
	return all
}

// leader is the address of the broker that leads p, which is in the layout; empty for none.
func (b *brokers) leader(p partition) string { return b.addresses[b.topics[p.topic].leaders[p.id]] }

// listing is a question about partitions, and its answers.
type listing struct {
	timestamp int64
	isolation isolation
	of        map[partition]struct{}
	found     map[partition]reading // written to for each of them
}

// list asks the leaders side by side. What is not answered is not known.
func (b *brokers) list(ctx context.Context, asked []listing) {
	type part struct {
		of      *listing
		request *listOffsetsRequest
	}
	by := map[string][]part{}
	for i := range asked {
		l := &asked[i]
		requests := map[string]map[string][]listOffsetsAsking{}
		for p := range l.of {
			address := b.leader(p)
			if address == "" {
				b.stale = true
				err := errNoLeader
				if id := b.topics[p.topic].leaders[p.id]; id >= 0 {
					err = fmt.Errorf("its leader, broker %d, %w", id, errNoAddress)
				}
				l.found[p] = reading{err: partitionError(p, "offsets", err)}
				continue
			}
			if requests[address] == nil {
				requests[address] = map[string][]listOffsetsAsking{}
			}
			requests[address][p.topic] = append(requests[address][p.topic], listOffsetsAsking{
				Partition: p.id, CurrentLeaderEpoch: -1, Timestamp: l.timestamp,
			})
		}
		for address, topics := range requests {
			r := &listOffsetsRequest{ReplicaID: -1, IsolationLevel: int8(l.isolation)}
			for topic, partitions := range topics {
				r.Topics = append(r.Topics, listOffsetsAskings{Topic: topic, Partitions: partitions})
			}
			by[address] = append(by[address], part{l, r})
		}
	}
	var mu sync.Mutex // protects the answers and b.stale
	each(by, func(address string, parts []part) {
		for _, part := range parts {
			answer, err := ask[*listOffsetsResponse](ctx, b, address, part.request)
			mu.Lock()
			if err != nil {
				b.stale = true // it may lead nothing any more
				err = b.failed(address, err)
			} else {
				b.stale = b.takeListing(part.of, address, answer) || b.stale
				err = errNotSaid
			}
			part.of.fail(part.request, err)
			mu.Unlock()
		}
	})
}

// fail says of all that was asked and not answered why it is not known.
func (l *listing) fail(r *listOffsetsRequest, err error) {
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			of := partition{t.Topic, p.Partition}
			if _, said := l.found[of]; !said {
				l.found[of] = reading{err: partitionError(of, "offsets", err)}
			}
		}
	}
}

// takeListing puts an answer into l, and tells whether a partition has moved.
func (b *brokers) takeListing(l *listing, address string, answer *listOffsetsResponse) (stale bool) {
	for _, t := range answer.Topics {
		for _, p := range t.Partitions {
			of := partition{t.Topic, p.Partition}
			_, wanted := l.of[of]
			switch code := kafka.Error(p.ErrorCode); {
			case !wanted || b.leader(of) != address: // nobody asked
			case code != 0:
				stale = stale || moved(code)
				l.found[of] = reading{err: partitionError(of, "offsets", code)}
			case p.Offset < 0: // never in an answer without an error
				l.found[of] = reading{err: partitionError(of, "offsets", errFrame)}
			default:
				l.found[of] = reading{offset: p.Offset}
			}
		}
	}
	return stale
}
