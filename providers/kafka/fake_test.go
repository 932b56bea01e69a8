package kafka

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// fakeCluster does what a real one does not do when it is asked to: it hangs, lies and leaves out. Stories are told of a real
// Kafka, in test/kafka.
type fakeCluster struct {
	t       *testing.T
	brokers []*fakeBroker
	// delay is before each answer.
	delay time.Duration
	// edit changes an answer, if it is set. Called with mu held.
	edit func(broker int, answer protocol.Message)
	// oldest makes OffsetFetch and FindCoordinator take one group each, and Metadata have no IDs.
	oldest bool

	mu       sync.Mutex                     // protects following
	topics   map[string]int                 // number of partitions; each is led by the broker of its number, and so on round
	ids      map[string]int64               // of topics; 0 where they have none
	ends     map[partition]int64            // 0 where there is none
	commits  map[string]map[partition]int64 // by group
	keepers  map[string]int                 // broker that keeps a group; the first where there is none
	requests map[protocol.ApiKey]int
	conns    int
}

// fakeBroker accepts and does not answer while it hangs.
type fakeBroker struct {
	id      int
	ln      net.Listener
	hangs   bool // under fakeCluster.mu
	resumed *sync.Cond
}

func newFake(t *testing.T, brokers int) *fakeCluster {
	t.Helper()
	f := &fakeCluster{
		t: t, topics: map[string]int{}, ids: map[string]int64{}, ends: map[partition]int64{}, commits: map[string]map[partition]int64{},
		keepers: map[string]int{}, requests: map[protocol.ApiKey]int{},
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	for id := range brokers {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		b := &fakeBroker{id: id, ln: ln, resumed: sync.NewCond(&f.mu)}
		f.brokers = append(f.brokers, b)
		serving.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { f.serve(b, c) })
			}
		})
	}
	t.Cleanup(func() { // first of all: who hangs would not see that it is over
		for id := range f.brokers {
			f.hang(id, false)
		}
	})
	return f
}

func (f *fakeCluster) addresses() []string {
	var all []string
	for _, b := range f.brokers {
		all = append(all, b.ln.Addr().String())
	}
	return all
}

// with changes the cluster.
func (f *fakeCluster) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fakeCluster) hang(id int, hangs bool) {
	f.with(func() { f.brokers[id].hangs = hangs })
	f.brokers[id].resumed.Broadcast()
}

// counted returns how many requests there were since it was last called, without those of connecting.
func (f *fakeCluster) counted() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]int{}
	for key, n := range f.requests {
		if key != protocol.ApiVersions {
			all[key.String()] = n
		}
	}
	clear(f.requests)
	return all
}

func (f *fakeCluster) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conns
}

func (f *fakeCluster) serve(b *fakeBroker, c net.Conn) {
	defer func() { _ = c.Close() }()
	f.with(func() { f.conns++ })
	defer f.with(func() { f.conns-- })
	for {
		version, id, _, request, err := protocol.ReadRequest(c)
		if err != nil {
			return // the client is done
		}
		<-time.After(f.delay) // a network's
		f.mu.Lock()
		f.requests[request.ApiKey()]++
		for b.hangs {
			b.resumed.Wait()
		}
		answer := f.answer(version, request)
		if f.edit != nil {
			f.edit(b.id, answer)
		}
		f.mu.Unlock()
		if err := protocol.WriteResponse(c, version, id, answer); err != nil {
			return
		}
	}
}

func (f *fakeCluster) answer(version int16, request protocol.Message) protocol.Message {
	switch r := request.(type) {
	case *apiversions.Request:
		a := &apiversions.Response{}
		for _, key := range []protocol.ApiKey{protocol.Metadata, protocol.FindCoordinator, protocol.OffsetFetch, protocol.ListOffsets, protocol.SaslHandshake, protocol.SaslAuthenticate} {
			highest := key.MaxVersion()
			switch {
			case !f.oldest:
			case key == protocol.Metadata:
				highest = 8
			case key == protocol.OffsetFetch, key == protocol.FindCoordinator:
				highest = 2
			}
			a.ApiKeys = append(a.ApiKeys, apiversions.ApiKeyResponse{ApiKey: int16(key), MinVersion: key.MinVersion(), MaxVersion: highest})
		}
		return a
	case *metadataRequest:
		return f.metadata(r)
	case *findCoordinatorRequest:
		a := &findCoordinatorResponse{}
		if version < 4 {
			c := f.keeper(r.Key)
			a.Host, a.Port = c.Host, c.Port
		}
		for _, group := range r.Keys {
			a.Coordinators = append(a.Coordinators, f.keeper(group))
		}
		return a
	case *offsetFetchRequest:
		a := &offsetFetchResponse{Topics: f.committed(r.GroupID, r.Topics)}
		for _, g := range r.Groups {
			a.Groups = append(a.Groups, committedOfAGroup{GroupID: g.GroupID, Topics: f.committed(g.GroupID, g.Topics)})
		}
		return a
	case *listOffsetsRequest:
		return f.list(r)
	default:
		f.t.Errorf("unexpected %T", request)
		return nil
	}
}

func (f *fakeCluster) metadata(r *metadataRequest) *metadataResponse {
	a := &metadataResponse{}
	for i, address := range f.addresses() {
		host, port := hostPort(address)
		a.Brokers = append(a.Brokers, metadataBroker{NodeID: int32(i), Host: host, Port: port})
	}
	for _, asked := range r.Topics {
		name := asked.Name
		t := metadataTopic{Name: name, IDHigh: f.ids[name]}
		if f.topics[name] == 0 {
			t.ErrorCode = int16(kafka.UnknownTopicOrPartition)
		}
		for p := range f.topics[name] {
			t.Partitions = append(t.Partitions, metadataPartition{PartitionIndex: int32(p), LeaderID: int32(p % len(f.brokers))})
		}
		a.Topics = append(a.Topics, t)
	}
	return a
}

func (f *fakeCluster) keeper(group string) coordinator {
	host, port := hostPort(f.brokers[f.keepers[group]].ln.Addr().String())
	return coordinator{Key: group, Host: host, Port: port}
}

func (f *fakeCluster) committed(group string, topics []offsetFetchTopic) []committedTopic {
	var all []committedTopic
	for _, t := range topics {
		c := committedTopic{Name: t.Name}
		for _, p := range t.Partitions {
			at, ok := f.commits[group][partition{t.Name, p}]
			if !ok {
				at = none
			}
			c.Partitions = append(c.Partitions, committedPartition{Partition: p, Offset: at})
		}
		all = append(all, c)
	}
	return all
}

func (f *fakeCluster) list(r *listOffsetsRequest) *listOffsetsResponse {
	a := &listOffsetsResponse{}
	for _, t := range r.Topics {
		answers := listOffsetsAnswers{Topic: t.Topic}
		for _, p := range t.Partitions {
			answer := listOffsetsAnswer{Partition: p.Partition, Timestamp: -1}
			if p.Timestamp == latest {
				answer.Offset = f.ends[partition{t.Topic, p.Partition}]
			}
			answers.Partitions = append(answers.Partitions, answer)
		}
		slices.SortFunc(answers.Partitions, func(a, b listOffsetsAnswer) int { return cmp.Compare(a.Partition, b.Partition) })
		a.Topics = append(a.Topics, answers)
	}
	return a
}

func hostPort(address string) (string, int32) {
	host, text, _ := net.SplitHostPort(address)
	port, _ := strconv.Atoi(text)
	return host, int32(port)
}

// allowing is the operator's list of hosts. Brokers of tests are at loopback, which is refused unless it names them.
func allowing(t *testing.T, hosts ...string) providers.AllowList {
	t.Helper()
	list, err := providers.ParseHostList(allowFlag, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// poller of the fake, by the servers given, or all.
func (f *fakeCluster) poller(interval time.Duration, servers ...string) *poller {
	if len(servers) == 0 {
		servers = f.addresses()
	}
	p := newPoller(&Options{Interval: interval, MetadataInterval: 30 * time.Second}, servers, security{allow: allowing(f.t, "127.0.0.1")}, func(protocol.ApiKey) {})
	f.t.Cleanup(p.close)
	return p
}

// result of a measurement.
type result struct {
	Lag int64
	Err string // the last part of the error
}

// measureAll measures all at the same time with the Collector's deadline, as it does.
func measureAll(t *testing.T, p *poller, subs ...subscription) map[string]result {
	t.Helper()
	all := map[string]result{}
	var mu sync.Mutex
	var measuring sync.WaitGroup
	for _, s := range subs {
		measuring.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), p.interval*8/10)
			defer cancel()
			r := result{}
			l, _, err := p.measure(ctx, s)
			if err != nil {
				r.Err = err.Error()
			} else {
				r.Lag = l.records
			}
			mu.Lock()
			defer mu.Unlock()
			all[s.group+" "+s.topics] = r
		})
	}
	measuring.Wait()
	return all
}

// next makes a round that is not answered by the one before, and that is for all of subs however late some of them come.
func next(t *testing.T, p *poller, subs ...subscription) map[string]result {
	t.Helper()
	p.mu.Lock()
	for _, sub := range p.subs {
		sub.at = time.Time{}
	}
	for _, s := range subs {
		p.subLocked(s).asked = time.Now()
	}
	p.mu.Unlock()
	return measureAll(t, p, subs...)
}

// eventually waits until check is true.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !check(); <-tick.C {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s: %s", what)
		}
	}
}

func sub(group, topics string) subscription {
	return subscription{group: group, topics: topics, reset: v1alpha1.KafkaEarliest}
}
