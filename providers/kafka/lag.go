package kafka

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
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
	// recreated is true while the committed offset is beyond the end.
	recreated bool
}

// behind is how many records of a partition the group has not read, and what is to be remembered.
//
// A committed offset that is below the start of the log counts from the start: what retention has deleted is no work. One
// beyond the end is of a topic that was deleted and made again, or cut; the group's consumers will be reset, and so is it.
func (o offsets) behind(reset v1alpha1.KafkaOffsetReset, p position) (int64, position) {
	committed := o.committed
	p.recreated = committed > o.end
	if committed >= 0 && !p.recreated {
		p.has = false
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
	each []PartitionLag
	// commitRate and endRate are records per second, over window: those that the group went on by, and those that came.
	commitRate, endRate float64
	// window is 0 while there was one look only.
	window time.Duration
}

// PartitionLag is one partition's.
type PartitionLag struct {
	Topic     string
	Partition int32
	// Committed is -1 where the group has committed nothing.
	Committed, Start, End, Lag int64
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

// memory is what is remembered for a subscription between looks.
type memory struct {
	positions map[partition]position
	// past is oldest first, no longer than rateWindow.
	past []progress
	// summed are the partitions that past is made of.
	summed []partition
}

// rateWindow is over how long rates are taken. Consumers commit every 5 s by default.
const rateWindow = 60 * time.Second

// judge makes the group's lag of what was found of each partition at the time at. All are there, without an error.
func (m *memory) judge(at time.Time, reset v1alpha1.KafkaOffsetReset, found map[partition]offsets) *lag {
	if m.positions == nil {
		m.positions = make(map[partition]position, len(found))
	}
	l := &lag{partitions: len(found), each: make([]PartitionLag, 0, len(found))}
	now := progress{at: at}
	for p, o := range found {
		behind, position := o.behind(reset, m.positions[p])
		m.positions[p] = position
		l.records += behind
		l.each = append(l.each, PartitionLag{Topic: p.topic, Partition: p.id, Committed: o.committed, Start: o.start, End: o.end, Lag: behind})
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
	slices.SortFunc(l.each, func(a, b PartitionLag) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	m.rates(now, l)
	return l
}

// rates fills in the rates. They begin anew when the partitions are others, those with a commit are, or an offset went
// back: none of that is records.
func (m *memory) rates(now progress, l *lag) {
	same := len(m.summed) == len(l.each)
	for i := 0; same && i < len(l.each); i++ {
		same = m.summed[i] == partition{l.each[i].Topic, l.each[i].Partition}
	}
	if n := len(m.past); n > 0 {
		last := m.past[n-1]
		if !same || now.commits != last.commits || now.committed < last.committed || now.end < last.end {
			m.past = m.past[:0]
		}
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
}
