//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Without the adapter no number is known: the HPA says so and holds, and an idle function is not put to sleep. When the
// adapter is back, both go on by themselves.
func withoutAdapter(s *story) {
	// Scale-downs of this HPA need no stabilization, so that it would scale down at once if it were told a zero.
	fn := onRate(idleAfter(proxied("busy"), 5*time.Second), "10")
	zero := int32(0)
	fn.Spec.Scale.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
		ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &zero},
	}
	s.workload("busy", 3)
	s.create(fn)
	s.awaitPhase("busy", v1alpha1.Active, 30*time.Second)

	stop := s.steadyLoad(s.clusterIP("sluice-busy"), 28, false) // ceil(28 / 10) = 3
	eventually(s.T, 60*time.Second, "the HPA to read the rate", func(ctx context.Context) string {
		return s.hpaSays(ctx, "sluice-busy", autoscalingv2.ScalingActive, corev1.ConditionTrue)
	})

	s.scaleSystem(s.T, "sluice-adapter", 0)
	defer s.scaleSystem(s.T, "sluice-adapter", 2)
	before := *s.deployment("busy").Spec.Replicas
	stop()

	eventually(s.T, 60*time.Second, "the HPA to say that it knows nothing", func(ctx context.Context) string {
		return s.hpaSays(ctx, "sluice-busy", autoscalingv2.ScalingActive, corev1.ConditionFalse)
	})
	always(s.T, 30*time.Second, "replicas while nothing is known", func(ctx context.Context) string {
		var d appsv1.Deployment
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "busy"}, &d); err != nil {
			return err.Error()
		}
		if *d.Spec.Replicas < before {
			return fmt.Sprintf("scaled from %d to %d", before, *d.Spec.Replicas)
		}
		return ""
	})
	s.awaitCondition("busy", v1alpha1.ConditionMetricsAvailable, "False", "MetricUnknown")

	s.scaleSystem(s.T, "sluice-adapter", 2)
	s.awaitPhase("busy", v1alpha1.Idle, 90*time.Second)
}

// Without the scaler a sleeping function still wakes.
func withoutScaler(s *story) {
	s.asleep(direct("own"))
	s.asleep(proxied("through"))
	s.scaleSystem(s.T, "sluice-scaler", 0)
	defer s.scaleSystem(s.T, "sluice-scaler", 2)
	a := s.mustAnswer(s.clusterIP("own"), "")
	b := s.mustAnswer(s.clusterIP("sluice-through"), "")
	s.Logf("without the scaler: Direct %s, Proxied %s", a, b)
}

// hpaSays says why the condition is not as wanted, or lacks a word in its message, or "".
func (s *story) hpaSays(ctx context.Context, name string, condition autoscalingv2.HorizontalPodAutoscalerConditionType, want corev1.ConditionStatus,
	words ...string,
) string {
	var h autoscalingv2.HorizontalPodAutoscaler
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &h); err != nil {
		return err.Error()
	}
	for _, c := range h.Status.Conditions {
		if c.Type != condition {
			continue
		}
		said := fmt.Sprintf("%s=%s/%s: %s", c.Type, c.Status, c.Reason, c.Message)
		if c.Status != want {
			return said
		}
		for _, word := range words {
			if !strings.Contains(c.Message, word) {
				return fmt.Sprintf("%s lacks %q", said, word)
			}
		}
		return ""
	}
	return "no such condition yet"
}
