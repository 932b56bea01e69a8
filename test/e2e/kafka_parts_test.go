//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// lagPart is what is told of a partition.
type lagPart struct {
	Partition int32
	Committed *int64 // nil for none
	Lag       int64
}

// partitionsAre reads what the lag of a function is made of, as anybody who may read the lag.
func (s *story) partitionsAre(name string, want ...lagPart) {
	s.Helper()
	path := fmt.Sprintf("/apis/custom.metrics.k8s.io/v1beta2/namespaces/%s/functions.sluice.dev/%s/kafka_lag/partitions", s.namespace, name)
	eventually(s.T, 30*time.Second, "the partitions", func(ctx context.Context) string {
		var got struct{ Partitions []lagPart }
		if err := s.read(ctx, path, &got); err != nil {
			return err.Error()
		}
		return cmp.Diff(want, got.Partitions)
	})
}

// mustTellOnce wants one Event of a function, which several replicas of the adapter have cause to write.
func (s *story) mustTellOnce(name, reason, words string) {
	s.Helper()
	told := func(ctx context.Context) string {
		var events eventsv1.EventList
		if err := s.client.List(ctx, &events, client.InNamespace(s.namespace)); err != nil {
			return err.Error()
		}
		var notes []string
		for _, e := range events.Items {
			if e.Reason == reason && e.Regarding.Name == name && e.Regarding.UID == s.function(name).UID {
				notes = append(notes, e.Note)
			}
		}
		if len(notes) != 1 || !strings.Contains(notes[0], words) {
			return fmt.Sprintf("%s: %q, want one of %q", reason, notes, words)
		}
		return ""
	}
	eventually(s.T, 30*time.Second, "an Event", told)
	always(s.T, 3*lagInterval, "one Event", told) // the other replica looks by then
}

// remake deletes the topic and makes one with its name.
func (t *topic) remake() {
	t.s.Helper()
	ctx, cancel := context.WithTimeout(t.s.Context(), time.Minute)
	defer cancel()
	if err := t.client.DeleteTopic(ctx, t.name); err != nil {
		t.s.Fatal(err)
	}
	if err := t.client.CreateTopic(ctx, t.name, int32(t.partitions)); err != nil {
		t.s.Fatal(err)
	}
}
