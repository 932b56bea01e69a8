//go:build e2e

package e2e

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A pod that takes one request at a time gets them one by one: those that wake it, those that come through either
// activator, and those that come while the activators are replaced. None fails.
func limitHolds(s *story) {
	fn := proxied("narrow")
	fn.Spec.Scale.MaxReplicas = 1
	fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("1"), Limit: 1}}}
	s.asleep(fn)
	url := s.clusterIP("sluice-narrow")
	handedOn := s.activatorCounter(s.Context(), "sluice_handed_on_requests_total")
	const each = 250 * time.Millisecond
	together := func(n int) {
		s.Helper()
		var running sync.WaitGroup
		began := time.Now()
		for range n {
			running.Go(func() {
				if said := call(s.Context(), url+"/?delay="+each.String(), "").ok(); said != "" {
					s.Errorf("one of %d at the same time: %s", n, said)
				}
			})
		}
		running.Wait()
		if took, least := time.Since(began), time.Duration(n)*each; took < least {
			s.Errorf("%d requests of %s each took %s together, so that some were at the pod at the same time", n, each, took)
		} else {
			s.Logf("%d requests of %s each, one by one, took %s", n, each, took.Round(time.Millisecond))
		}
	}
	together(12)
	together(12)
	if got := s.activatorCounter(s.Context(), "sluice_handed_on_requests_total"); got <= handedOn {
		s.Errorf("%v requests were handed on, want some: one of the two activators has no pod", got-handedOn)
	}
	s.restart("sluice-activator")
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.awaitRollout(s.T, "sluice-activator", 2)
	}()
	for rolling := true; rolling; {
		together(6)
		select {
		case <-done:
			rolling = false
		case <-s.Context().Done():
			return
		default:
		}
	}
	together(6)
	if got := s.activatorCounter(s.Context(), "sluice_claims_unconfirmed_total"); got > 0 {
		s.Errorf("%v pods were taken over without the word of all activators", got)
	}
}

// activatorCounter is the sum of a counter of all activators.
func (s *story) activatorCounter(ctx context.Context, name string) float64 {
	s.Helper()
	total := 0.0
	for _, families := range s.activatorMetrics(ctx) {
		for _, m := range families[name].GetMetric() {
			total += m.GetCounter().GetValue()
		}
	}
	return total
}
