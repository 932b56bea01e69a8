package kafka

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestLagOfPartition(t *testing.T) {
	tests := []struct {
		name  string
		reset v1alpha1.KafkaOffsetReset
		before,
		after position
		of   offsets
		want int64
	}{
		{name: "all is read", reset: v1alpha1.KafkaLatest, of: offsets{committed: 10, end: 10}, want: 0},
		{name: "some is not", reset: v1alpha1.KafkaLatest, of: offsets{committed: 4, end: 10}, want: 6},
		{name: "retention has deleted what is not", reset: v1alpha1.KafkaLatest, of: offsets{committed: 4, start: 8, end: 10}, want: 2},
		{name: "retention has deleted all", reset: v1alpha1.KafkaLatest, of: offsets{committed: 4, start: 10, end: 10}, want: 0},
		{name: "no commit, from the start", reset: v1alpha1.KafkaEarliest, of: offsets{committed: none, start: 3, end: 10}, want: 7},
		{
			name: "no commit, from the end, seen first", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, start: 3, end: 10}, want: 0,
			after: position{floor: 10, has: true},
		},
		{
			name: "no commit, from the end, and more has come", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, end: 12}, want: 2,
			before: position{floor: 10, has: true}, after: position{floor: 10, has: true},
		},
		{
			name: "no commit, from the end, and retention has deleted what came", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, start: 11, end: 12}, want: 1,
			before: position{floor: 10, has: true}, after: position{floor: 10, has: true},
		},
		{
			name: "a commit at last", reset: v1alpha1.KafkaLatest, of: offsets{committed: 11, end: 12}, want: 1,
			before: position{floor: 10, has: true}, after: position{floor: 10},
		},
		{
			name: "the topic is another, from the start", reset: v1alpha1.KafkaEarliest, of: offsets{committed: 100, end: 12}, want: 12,
			after: position{beyond: true},
		},
		{
			name: "the topic is another, from the end", reset: v1alpha1.KafkaLatest, of: offsets{committed: 100, end: 12}, want: 0,
			after: position{floor: 12, has: true, beyond: true},
		},
		{
			name: "what is committed is of the former topic, from the start", reset: v1alpha1.KafkaEarliest, of: offsets{committed: 8, start: 2, end: 20}, want: 18,
			before: position{committed: 8, former: true}, after: position{former: true},
		},
		{
			name: "what is committed is of the former topic, from the end", reset: v1alpha1.KafkaLatest, of: offsets{committed: 8, end: 20}, want: 12,
			before: position{committed: 8, former: true}, after: position{former: true},
		},
		{
			name: "what is committed is dropped", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, end: 20}, want: 0,
			before: position{committed: 8, former: true}, after: position{floor: 20, has: true},
		},
		{
			name: "the group goes on", reset: v1alpha1.KafkaEarliest, of: offsets{committed: 9, end: 20}, want: 11,
			before: position{committed: 8, former: true},
		},
		{
			name: "the topic is another once more", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, end: 3}, want: 0,
			before: position{floor: 10, has: true}, after: position{floor: 3, has: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, after := tt.of.behind(tt.reset, tt.before)
			tt.after.committed = tt.of.committed // always
			if got != tt.want {
				t.Errorf("lag %d, want %d", got, tt.want)
			}
			if diff := cmp.Diff(tt.after, after, cmp.AllowUnexported(position{})); diff != "" {
				t.Errorf("remembered (-want +got):\n%s", diff)
			}
		})
	}
}

// A partition whose topic was made anew counts nothing; it takes nothing from the others.
func TestLagIsNotCancelled(t *testing.T) {
	var m memory
	l, err := m.judge(time.Now(), &subscription{reset: v1alpha1.KafkaLatest}, map[partition]offsets{
		{"t", 0}: {committed: 100, end: 5},
		{"t", 1}: {committed: 3, end: 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.records != 7 || l.partitions != 2 {
		t.Errorf("%d records in %d partitions, want 7 in 2", l.records, l.partitions)
	}
}

func TestRates(t *testing.T) {
	var m memory
	at := time.Unix(1000, 0)
	look := func(after time.Duration, of ...offsets) *lag {
		at = at.Add(after)
		found := map[partition]offsets{}
		for i, o := range of {
			found[partition{"t", int32(i)}] = o
		}
		l, err := m.judge(at, &subscription{reset: v1alpha1.KafkaEarliest}, found)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := look(0, offsets{committed: 10, end: 100}); l.window != 0 {
		t.Errorf("a rate of one look: %+v", l)
	}
	l := look(2*time.Second, offsets{committed: 30, end: 110})
	if drain, ok := l.drain(); l.commitRate != 10 || l.endRate != 5 || !ok || drain != 8*time.Second {
		t.Errorf("commits %v/s, ends %v/s, drain %v %v; want 10, 5, 8s", l.commitRate, l.endRate, drain, ok)
	}
	// The first commit of a partition is not as many records as its offset says.
	l = look(2*time.Second, offsets{committed: 50, end: 120}, offsets{committed: none, end: 1000})
	if l.window != 0 {
		t.Errorf("a rate over another number of partitions: %+v", l)
	}
	look(2*time.Second, offsets{committed: 52, end: 120}, offsets{committed: 900, end: 1000})
	l = look(2*time.Second, offsets{committed: 54, end: 120}, offsets{committed: 900, end: 1000})
	if l.commitRate != 1 || l.window != 2*time.Second {
		t.Errorf("commits %v/s over %s, want 1 over 2s", l.commitRate, l.window)
	}
	// Nothing is read any more: how long it takes is unknown, once the window has passed.
	for range 40 {
		l = look(2*time.Second, offsets{committed: 54, end: 120}, offsets{committed: 900, end: 1000})
	}
	if _, ok := l.drain(); ok || l.window != rateWindow {
		t.Errorf("drain is known of a group that stands still; window %s", l.window)
	}
}

// What is remembered of a topic is nothing of the next one with its name, whatever their offsets.
func TestAnotherTopic(t *testing.T) {
	const former, next = 1, 2
	type look struct {
		after time.Duration
		id    int64
		of    offsets
		want  int64 // -1: unknown
	}
	for _, tt := range []struct {
		name  string
		reset v1alpha1.KafkaOffsetReset
		looks []look
	}{
		{name: "without commits, from the end", reset: v1alpha1.KafkaLatest, looks: []look{
			{0, former, offsets{committed: none, end: 10}, 0},
			{2 * time.Second, former, offsets{committed: none, end: 12}, 2},
			{2 * time.Second, next, offsets{committed: none, end: 30}, 0},
			{2 * time.Second, next, offsets{committed: none, end: 31}, 1},
		}},
		{name: "its commits are dropped with it", reset: v1alpha1.KafkaEarliest, looks: []look{
			{0, former, offsets{committed: 8, start: 6, end: 10}, 2},
			{2 * time.Second, former, offsets{committed: none, start: 6, end: 30}, -1}, // the start may be the former's
			{2 * time.Second, next, offsets{committed: none, end: 30}, 30},
		}},
		{name: "its end falls back", reset: v1alpha1.KafkaEarliest, looks: []look{
			{0, former, offsets{committed: none, start: 6, end: 10}, 4},
			{2 * time.Second, former, offsets{committed: none, start: 6, end: 9}, -1},
			{2 * time.Second, former, offsets{committed: none, start: 6, end: 9}, 3}, // it was cut
		}},
		{name: "its commits stay", reset: v1alpha1.KafkaEarliest, looks: []look{
			{0, former, offsets{committed: 8, end: 10}, 2},
			{2 * time.Second, next, offsets{committed: 8, end: 20}, 20},
			{settle, next, offsets{committed: 8, end: 20}, 20},
			{time.Second, next, offsets{committed: 8, end: 20}, 12}, // and so consumers begin with them
		}},
		{name: "its commits stay for a moment", reset: v1alpha1.KafkaEarliest, looks: []look{
			{0, former, offsets{committed: 8, end: 10}, 2},
			{2 * time.Second, next, offsets{committed: 8, end: 20}, 20},
			{2 * time.Second, next, offsets{committed: none, end: 20}, -1},
			{2 * time.Second, next, offsets{committed: 8, end: 20}, 12}, // of this one
		}},
		{name: "a broker that knows no IDs is asked in between", reset: v1alpha1.KafkaLatest, looks: []look{
			{0, former, offsets{committed: none, end: 10}, 0},
			{2 * time.Second, 0, offsets{committed: none, end: 12}, 2},
			{2 * time.Second, former, offsets{committed: none, end: 13}, 3},
			{2 * time.Second, 0, offsets{committed: none, end: 14}, 4},
			{2 * time.Second, next, offsets{committed: none, end: 30}, 0},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m memory
			at := time.Unix(1000, 0)
			for i, look := range tt.looks {
				at = at.Add(look.after)
				m.recognize(at, "t", topicID{low: look.id})
				got := int64(-1)
				l, err := m.judge(at, &subscription{reset: tt.reset}, map[partition]offsets{{"t", 0}: look.of})
				if err == nil {
					got = l.records
				}
				if got != look.want {
					t.Errorf("look %d: lag %d, want %d (%v)", i, got, look.want, err)
				}
			}
		})
	}
}
