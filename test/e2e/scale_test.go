//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func scalesOnRateDirect(s *story)  { s.scalesOnRate(direct("hello"), "hello") }
func scalesOnRateProxied(s *story) { s.scalesOnRate(proxied("hello"), "sluice-hello") }

// Under a steady load the HorizontalPodAutoscaler controller reads the rate and scales to ceil(rate / target); what
// `kubectl get --raw` shows is the offered rate, and the number that the controller worked with.
func (s *story) scalesOnRate(fn *v1alpha1.Function, service string) {
	const rate, target, want = 60.0, 25.0, 3 // ceil(60 / 25)
	s.workload(fn.Name, 1)
	s.create(onRate(fn, "25"))
	s.awaitPhase(fn.Name, v1alpha1.Active, 30*time.Second)
	url := s.clusterIP(service)

	stop := s.steadyLoad(url, rate, false)
	defer stop()

	eventually(s.T, 120*time.Second, "replicas to follow the rate", func(ctx context.Context) string {
		if n := *s.deployment(fn.Name).Spec.Replicas; n != want {
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
	// One window after the load began, the rate is that of the load alone; and the controller looks every 15 s.
	eventually(s.T, 90*time.Second, "the metrics API, the HPA and the load to agree", func(ctx context.Context) string {
		got, err := s.metric(ctx, fn.Name, v1alpha1.RequestsPerSecond)
		if err != nil {
			return err.Error()
		}
		if math.Abs(got-rate) > 0.03*rate {
			return fmt.Sprintf("requests_per_second is %v under a load of %v", got, rate)
		}
		var h autoscalingv2.HorizontalPodAutoscaler
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: fn.OwnedName()}, &h); err != nil {
			return err.Error()
		}
		if len(h.Status.CurrentMetrics) == 0 || h.Status.CurrentMetrics[0].Object == nil {
			return fmt.Sprintf("the HPA has read no metric: %+v", h.Status.Conditions)
		}
		average := h.Status.CurrentMetrics[0].Object.Current.AverageValue.AsApproximateFloat64()
		if seen := average * float64(h.Status.CurrentReplicas); math.Abs(seen-got) > 0.05*rate {
			return fmt.Sprintf("the HPA saw %v, the metrics API says %v", seen, got)
		}
		if h.Status.DesiredReplicas != want {
			return fmt.Sprintf("the HPA wants %d replicas", h.Status.DesiredReplicas)
		}
		s.Logf("load %v/s, metrics API %.2f/s, HPA %.2f x %d replicas, target %v", rate, got, average, h.Status.CurrentReplicas, target)
		return ""
	})

	// The peak does not come back: one request to the function that sleeps again wakes one replica, and the HPA, which
	// looks every 15 s, leaves it at that.
	stop()
	s.change(fn.Name, func(fn *v1alpha1.Function) { idleAfter(fn, time.Second) })
	s.awaitPhase(fn.Name, v1alpha1.Idle, 30*time.Second)
	s.change(fn.Name, func(fn *v1alpha1.Function) { idleAfter(fn, time.Minute) })
	eventually(s.T, 40*time.Second, "the load to leave the window of the rate", func(ctx context.Context) string {
		if got, err := s.metric(ctx, fn.Name, v1alpha1.RequestsPerSecond); err != nil || got > 0 {
			return fmt.Sprintf("requests_per_second %v (%v)", got, err)
		}
		return ""
	})
	eventually(s.T, 20*time.Second, "a request to wake it", func(context.Context) string {
		s.mustAnswer(url, "")
		if *s.deployment(fn.Name).Spec.Replicas == 0 {
			return "it was still answered by a pod that is going" // for a moment after replicas became 0
		}
		return ""
	})
	always(s.T, 20*time.Second, "one replica for one request", func(context.Context) string {
		if n := *s.deployment(fn.Name).Spec.Replicas; n != 1 {
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
}
