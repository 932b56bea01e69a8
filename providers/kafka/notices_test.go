package kafka

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// What is noticed of groups and topics is said once for each occurrence.
func TestNotices(t *testing.T) {
	const second = time.Second
	type look struct {
		after time.Duration
		id    int64
		of    []offsets
	}
	at := func(committed, end int64) []offsets { return []offsets{{committed: committed, end: end}} }
	for _, tt := range []struct {
		name  string
		reset v1alpha1.KafkaOffsetReset
		looks []look
		want  []string // reasons, by look
		says  []string // of the last one
	}{
		{
			name: "made anew", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 1, at(8, 10)}, {2 * second, 2, at(none, 20)}, {2 * second, 2, at(none, 30)}, {2 * second, 2, at(none, 30)}},
			want:  []string{"", "TopicRecreated", "TopicRecreated", "TopicRecreated"},
			says:  []string{`topic "t" was deleted and made anew`, `group "g"`, "partition 0 counts from the start", "restart them", "AAAAAAAAAAAAAAAAAAAAAg"},
		},
		{
			name: "made anew, from the end", reset: v1alpha1.KafkaLatest,
			looks: []look{{0, 1, at(8, 10)}, {2 * second, 2, at(none, 20)}},
			want:  []string{"", "TopicRecreated"}, says: []string{"from the end as it was found", "Earliest"},
		},
		{
			name: "made anew twice", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 1, at(none, 10)}, {2 * second, 2, at(none, 10)}, {2 * second, 3, at(none, 10)}},
			want:  []string{"", "TopicRecreated", "TopicRecreated TopicRecreated"},
		},
		{
			name: "it was committed beyond the end when that was made anew, which was said", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 1, at(8, 10)}, {2 * second, 2, at(8, 1)}, {2 * second, 2, at(8, 1)}, {time.Minute, 2, at(8, 1)}},
			want:  []string{"", "TopicRecreated", "TopicRecreated", "TopicRecreated"},
		},
		{
			name: "committed beyond the end, by a broker that knows no IDs", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 0, at(100, 10)}, {persists - second, 0, at(100, 11)}, {second, 0, at(100, 12)}, {second, 0, at(100, 13)}},
			want:  []string{"", "", "CommittedBeyondEnd", "CommittedBeyondEnd"},
			says:  []string{`group "g" has committed offsets beyond the end of topic "t" (partition 0: 100, and the end is 12)`, "from the start", "--reset-offsets"},
		},
		{
			name: "for a moment", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 1, at(100, 10)}, {persists - second, 1, at(100, 100)}, {second, 1, at(101, 100)}, {persists - second, 1, at(101, 100)}},
			want:  []string{"", "", "", ""},
		},
		{
			name: "twice", reset: v1alpha1.KafkaLatest,
			looks: []look{
				{0, 1, at(100, 10)}, {persists, 1, at(100, 10)}, {second, 1, at(100, 100)}, {second, 1, at(200, 100)}, {persists, 1, at(200, 100)},
			},
			want: []string{"", "CommittedBeyondEnd", "CommittedBeyondEnd", "CommittedBeyondEnd", "CommittedBeyondEnd CommittedBeyondEnd"},
			says: []string{"from the end as it was first seen like that"},
		},
		{
			name: "many partitions", reset: v1alpha1.KafkaEarliest,
			looks: []look{{0, 1, make([]offsets, 12)}, {2 * second, 2, make([]offsets, 12)}},
			want:  []string{"", "TopicRecreated"}, says: []string{"partitions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more count from the start"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &poller{brokers: brokers{topics: map[string]topicLayout{}, starts: map[partition]int64{}}}
			s := subscription{group: "g", topics: "t", reset: tt.reset}
			var m memory
			var last []providers.Notice
			now := time.Unix(1000, 0)
			for i, look := range tt.looks {
				now = now.Add(look.after)
				f := &found{at: now, groups: map[string]committed{"g": {offsets: map[partition]reading{}}}, ends: [2]map[partition]reading{{}, {}}}
				for id, o := range look.of {
					of := partition{"t", int32(id)}
					f.groups["g"].offsets[of], f.ends[0][of], p.brokers.starts[of] = reading{offset: o.committed}, reading{offset: o.end}, o.start
				}
				p.brokers.topics["t"] = topicLayout{id: topicID{low: look.id}, leaders: make([]int32, len(look.of))}
				if l, err := p.judge(f, s, &m); err == nil { // an end that has fallen is unknown for a look
					last = l.notices
				} else {
					last = m.notices
				}
				var reasons []string
				for _, n := range last {
					reasons = append(reasons, n.Reason)
				}
				if got := strings.Join(reasons, " "); got != tt.want[i] {
					t.Errorf("look %d: %q, want %q", i, got, tt.want[i])
				}
			}
			for _, text := range tt.says {
				if got := last[len(last)-1].Text; !strings.Contains(got, text) {
					t.Errorf("%q does not say %q", got, text)
				}
			}
			for i := range last {
				if len(last[i].Text) > 900 {
					t.Errorf("a text of %d bytes", len(last[i].Text))
				}
				for j := range last[:i] {
					if last[i].Key == last[j].Key {
						t.Errorf("two occurrences have the key %q", last[i].Key)
					}
				}
			}
		})
	}
}

// A topic that is made anew all the time leaves so many notices and no more, and whoever has an earlier list keeps it.
func TestNoticesAreBounded(t *testing.T) {
	var m memory
	var kept []providers.Notice
	for i := range 100 {
		m.notice(providers.Notice{Key: fmt.Sprint(i)})
		if i == 20 {
			kept = m.notices
		}
	}
	want := func(from int) (all []providers.Notice) {
		for i := range mostNotices {
			all = append(all, providers.Notice{Key: fmt.Sprint(from + i)})
		}
		return all
	}
	if diff := cmp.Diff(want(92), m.notices, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff(want(13), kept); diff != "" {
		t.Errorf("an earlier list, -want +got\n%s", diff)
	}
}
