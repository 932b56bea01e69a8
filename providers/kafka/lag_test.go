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
			after: position{recreated: true},
		},
		{
			name: "the topic is another, from the end", reset: v1alpha1.KafkaLatest, of: offsets{committed: 100, end: 12}, want: 0,
			after: position{floor: 12, has: true, recreated: true},
		},
		{
			name: "the topic is another once more", reset: v1alpha1.KafkaLatest, of: offsets{committed: none, end: 3}, want: 0,
			before: position{floor: 10, has: true}, after: position{floor: 3, has: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, after := tt.of.behind(tt.reset, tt.before)
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
	l := m.judge(time.Now(), v1alpha1.KafkaLatest, map[partition]offsets{
		{"t", 0}: {committed: 100, end: 5},
		{"t", 1}: {committed: 3, end: 10},
	})
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
		return m.judge(at, v1alpha1.KafkaEarliest, found)
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
