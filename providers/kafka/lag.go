package kafka

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// none is the committed offset of a group that has committed nothing.
const none int64 = -1

// partition of a topic.
type partition struct {
	topic string
	id    int32
}

// offsets are what one look at the cluster found of a partition, for one group.
type offsets struct {
	// Committed is the next offset that the group reads, or none.
	committed int64
	// Start and end of the log. End is one past the last record, or past the last one that no open transaction holds back.
	start, end int64
}

// position is what is remembered of a partition between looks.
type position struct {
	// floor stands for the committed offset of a group without one whose consumers will begin at the end: the end as it
	// was when that was first seen. What is there later is work that they have not done.
	floor int64
	has   bool
	// beyond is true while the committed offset is beyond the end.
	beyond bool
	// former is true while committed, which was seen last, is what the group had committed in a topic that was deleted since.
	former    bool
	committed int64
}

// behind is how many records of a partition the group has not read, and what is to be remembered.
//
// A committed offset that is below the start of the log counts from the start: what retention has deleted is no work. One
// beyond the end is of a topic that was deleted and made again, or cut; the group's consumers will be reset, and so is it.
// One that is left from a topic that was deleted may be dropped at any moment: then consumers begin where they are reset to,
// else there, and what is more counts.
func (o offsets) behind(reset v1alpha1.KafkaOffsetReset, p position) (int64, position) {
	committed := o.committed
	p.former = p.former && committed == p.committed
	p.committed = committed
	p.beyond = committed > o.end
	if committed >= 0 && !p.beyond {
		p.has = false
		if p.former && reset == v1alpha1.KafkaEarliest {
			committed = o.start
		}
		return max(0, o.end-max(committed, o.start)), p
	}
	if reset == v1alpha1.KafkaEarliest {
		p.has = false
		return max(0, o.end-o.start), p
	}
	if !p.has || p.floor > o.end {
		p.floor, p.has = o.end, true
	}
	return max(0, o.end-max(p.floor, o.start)), p
}

// lag is what one look at the cluster found for a group and its topics.
type lag struct {
	// records that the group has not read, over all partitions.
	records int64
	// partitions in number.
	partitions int
	// each partition, by topic and number.
	each []providers.PartitionLag
	// commitRate and endRate are records per second, over window: those that the group went on by, and those that came.
	commitRate, endRate float64
	// window is 0 while there was one look only.
	window time.Duration
	// notices of late.
	notices []providers.Notice
}

// drain is how long the group needs for what is there, at the rate at which it has committed; false while it commits
// nothing.
func (l *lag) drain() (time.Duration, bool) {
	switch {
	case l.records == 0:
		return 0, true
	case l.commitRate <= 0:
		return 0, false
	}
	seconds := float64(l.records) / l.commitRate
	return time.Duration(min(seconds, math.MaxInt64/2/float64(time.Second)) * float64(time.Second)), true
}

// progress is the sum of the offsets of some partitions at a time.
type progress struct {
	at             time.Time
	committed, end int64
	// commits is how many partitions have a committed offset.
	commits int
}

// incarnation is which one a topic is of those that have had its name.
type incarnation struct {
	topic string
	id    topicID
	// since is when it was found to be another one than before, for as long as that counts; else zero.
	since time.Time
	// beyond is since when the group has committed beyond the end of a partition; zero where it has not. told is true once
	// somebody was told of that, or of why it is.
	beyond time.Time
	told   bool
}

// memory is what is remembered for a subscription between looks.
type memory struct {
	positions map[partition]position
	// topics that positions are of.
	topics []incarnation
	// notices that there were, oldest first. Never written to.
	notices []providers.Notice
	// past is oldest first, no longer than rateWindow.
	past []progress
	// summed are the partitions that past is made of.
	summed []partition
}

// rateWindow is over how long rates are taken. Consumers commit every 5 s by default.
const rateWindow = 60 * time.Second

// settle is for how long a group may still have what it committed in a topic that was deleted. Kafka drops it with the topic;
// what is there later was committed again, or stays, and consumers begin with it.
const settle = 10 * time.Second

// recognize takes note of the ID that a topic has at the time at. What is remembered of another one of its name is nothing
// that the following can be compared with: of that it returns the ID, or zero.
func (m *memory) recognize(at time.Time, topic string, id topicID) (former topicID) {
	i := m.find(topic)
	if i < 0 {
		m.topics = append(m.topics, incarnation{topic: topic, id: id})
		return former
	}
	switch t := &m.topics[i]; {
	case id == (topicID{}):
	case t.id == (topicID{}):
		t.id = id
	case t.id != id:
		former = t.id
		*t = incarnation{topic: topic, id: id, since: at, told: true}
		m.past = m.past[:0]
		m.each(topic, func(p position) position { return position{former: p.committed >= 0, committed: p.committed} })
	case !t.since.IsZero() && at.Sub(t.since) > settle:
		t.since = time.Time{}
		m.each(topic, func(p position) position { p.former = false; return p })
	}
	return former
}

func (m *memory) find(topic string) int {
	return slices.IndexFunc(m.topics, func(t incarnation) bool { return t.topic == topic })
}

// each changes what is remembered of the partitions of a topic.
func (m *memory) each(topic string, change func(position) position) {
	for of, p := range m.positions {
		if of.topic == topic {
			m.positions[of] = change(p)
		}
	}
}

// errBack is for offsets that are not what they were: until it is looked whose they are, they are nobody's.
var errBack = errors.New("the end of a topic, or what was committed in it, is gone: it may be another topic, and its ID is read again")

// judge makes the group's lag of what was found of each partition at the time at. All are there, without an error. The error
// is errBack, for this time.
func (m *memory) judge(at time.Time, s *subscription, found map[partition]offsets) (*lag, error) {
	if m.positions == nil {
		m.positions = make(map[partition]position, len(found))
	}
	l := &lag{partitions: len(found), each: make([]providers.PartitionLag, 0, len(found))}
	now, beyond := progress{at: at}, false
	for p, o := range found {
		behind, position := o.behind(s.reset, m.positions[p])
		m.positions[p] = position
		l.records += behind
		beyond = beyond || position.beyond
		l.each = append(l.each, providers.PartitionLag{Topic: p.topic, Partition: p.id, Committed: o.committed, Start: o.start, End: o.end, Lag: behind})
		if now.end += o.end; o.committed >= 0 {
			now.committed += o.committed
			now.commits++
		}
	}
	for p := range m.positions {
		if _, ok := found[p]; !ok {
			delete(m.positions, p)
		}
	}
	slices.SortFunc(l.each, func(a, b providers.PartitionLag) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	if m.rates(now, l) {
		return nil, errBack
	}
	m.beyond(at, s, l, beyond)
	l.notices = m.notices
	return l, nil
}

// beyond gives notice of topics of which the group has for some time committed more than there is, once each time. Some tells whether there is any.
func (m *memory) beyond(at time.Time, s *subscription, l *lag, some bool) {
	for i := range m.topics {
		t := &m.topics[i]
		var of []providers.PartitionLag
		for j := 0; some && j < len(l.each); j++ {
			if e := l.each[j]; e.Topic == t.topic && e.Committed > e.End {
				of = append(of, e)
			}
		}
		switch {
		case len(of) == 0:
			t.beyond, t.told = time.Time{}, false
		case t.beyond.IsZero():
			t.beyond = at
		case !t.told && at.Sub(t.beyond) >= persists:
			t.told = true
			m.notice(s.beyond(at, t.id, of))
		}
	}
}

// rates fills in the rates. They begin anew when the partitions are others, those with a commit are, or an offset went
// back: none of that is records. It tells whether what came or was committed before is there no more.
func (m *memory) rates(now progress, l *lag) (gone bool) {
	same := len(m.summed) == len(l.each)
	for i := 0; same && i < len(l.each); i++ {
		same = m.summed[i] == partition{l.each[i].Topic, l.each[i].Partition}
	}
	if n := len(m.past); n > 0 {
		last := m.past[n-1]
		if !same || now.commits != last.commits || now.committed < last.committed || now.end < last.end {
			m.past = m.past[:0]
		}
		gone = same && (now.commits < last.commits || now.end < last.end)
	}
	if !same {
		m.summed = m.summed[:0]
		for _, e := range l.each {
			m.summed = append(m.summed, partition{e.Topic, e.Partition})
		}
	}
	for len(m.past) > 1 && now.at.Sub(m.past[1].at) >= rateWindow {
		m.past = m.past[1:]
	}
	if len(m.past) > 0 && now.at.After(m.past[0].at) {
		first := m.past[0]
		l.window = now.at.Sub(first.at)
		l.commitRate = float64(now.committed-first.committed) / l.window.Seconds()
		l.endRate = float64(now.end-first.end) / l.window.Seconds()
	}
	m.past = append(m.past, now)
	return gone
}
