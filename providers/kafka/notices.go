package kafka

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// Reasons of notices.
const (
	topicRecreated     = "TopicRecreated"
	committedBeyondEnd = "CommittedBeyondEnd"
)

const (
	// mostNotices bounds those that are kept for a subscription: the latest.
	mostNotices = 8
	// named bounds the partitions that one names.
	named = 10
	// persists is for how long a committed offset has to be beyond the end until somebody is told: a leader that has just
	// become one may not know the end for a moment.
	persists = 10 * time.Second
)

// notice keeps n, for whoever asks about the subscription. The list may be read while this is called.
func (m *memory) notice(n providers.Notice) {
	from := max(0, len(m.notices)+1-mostNotices)
	m.notices = append(slices.Clone(m.notices[from:]), n)
}

// recreated is the notice of a topic that was found to be another one, of which the partitions ids count for s.
func (s *subscription) recreated(at time.Time, topic string, was, is topicID, ids []int32) providers.Notice {
	does := fmt.Sprintf("with offsetReset Latest, %s from the end as it was found: what had come by then is not counted. "+
		"To have it read, let both offsetReset and the consumers' auto.offset.reset be Earliest", counts(ids))
	if s.reset == v1alpha1.KafkaEarliest {
		does = fmt.Sprintf("with offsetReset Earliest, %s from the start. Consumers that have been running since before may "+
			"go on where they were and leave out what is before: restart them, and see what they have committed with kafka-consumer-groups.sh", counts(ids))
	}
	return providers.Notice{
		At: at, Reason: topicRecreated, Key: strings.Join([]string{s.group, topic, is.String()}, "\n"),
		Text: fmt.Sprintf("topic %q was deleted and made anew (its ID is %s, and was %s). What group %q had committed in the former one counts no more: %s",
			topic, is, was, s.group, does),
	}
}

// beyond is the notice of a group that has committed offsets beyond the ends of partitions of one topic.
func (s *subscription) beyond(at time.Time, id topicID, of []providers.PartitionLag) providers.Notice {
	topic, ids, key := of[0].Topic, make([]int32, len(of)), []string{s.group, of[0].Topic, id.String()}
	for i := range of {
		ids[i] = of[i].Partition
		key = append(key, fmt.Sprint(of[i].Partition, of[i].Committed))
	}
	does := "from the end as it was first seen like that, by offsetReset Latest"
	if s.reset == v1alpha1.KafkaEarliest {
		does = "from the start, by offsetReset Earliest"
	}
	return providers.Notice{
		At: at, Reason: committedBeyondEnd, Key: strings.Join(key, "\n"),
		Text: fmt.Sprintf("group %q has committed offsets beyond the end of topic %q (partition %d: %d, and the end is %d): the topic was made anew or cut, "+
			"or consumers read what isolation ReadCommitted leaves out. As if nothing were committed, %s %s; consumers go by their auto.offset.reset. "+
			"Where they do not, reset the group with kafka-consumer-groups.sh --reset-offsets",
			s.group, topic, of[0].Partition, of[0].Committed, of[0].End, counts(ids), does),
	}
}

// counts says which partitions do: "partitions 0, 1, 2 count".
func counts(ids []int32) string {
	if len(ids) == 1 {
		return fmt.Sprintf("partition %d counts", ids[0])
	}
	var b strings.Builder
	for i, id := range ids[:min(len(ids), named)] {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, id)
	}
	if more := len(ids) - named; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return "partitions " + b.String() + " count"
}
