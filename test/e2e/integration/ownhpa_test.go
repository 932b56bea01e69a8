//go:build integration

package integration

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func objectMetric(apiVersion, kind, name, metric string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: apiVersion, Kind: kind, Name: name},
		Metric:          autoscalingv2.MetricIdentifier{Name: metric},
		Target:          ten(),
	}}
}

func podsMetric(metric string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: metric}, Target: ten(),
	}}
}

func externalMetric(function, metric string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{
			Name: metric, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"function": function}},
		},
		Target: ten(),
	}}
}

func ten() autoscalingv2.MetricTarget {
	value := resource.MustParse("10")
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &value}
}

// own creates a HorizontalPodAutoscaler as a user would write it.
func (w *world) own(t *testing.T, name, workload string, metric autoscalingv2.MetricSpec) {
	t.Helper()
	now := int32(0) // what is wrong for a moment is not held for 5 minutes
	w.create(t, &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: types("default", name),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: workload},
			MaxReplicas:    8,
			Metrics:        []autoscalingv2.MetricSpec{metric},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
				ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &now},
			},
		},
	})
}

// hpaSays waits until the HorizontalPodAutoscaler says that it cannot scale, in these words.
func (w *world) hpaSays(name string, words ...string) func(context.Context) string {
	return func(ctx context.Context) string {
		var h autoscalingv2.HorizontalPodAutoscaler
		if err := w.client.Get(ctx, key(name), &h); err != nil {
			return err.Error()
		}
		for _, c := range h.Status.Conditions {
			if c.Type != autoscalingv2.ScalingActive || c.Status != corev1.ConditionFalse {
				continue
			}
			missing := ""
			for _, word := range words {
				if !strings.Contains(c.Message, word) {
					missing = word
				}
			}
			if missing == "" {
				return ""
			}
			return fmt.Sprintf("%q is missing in %q", missing, c.Message)
		}
		return fmt.Sprintf("%+v", h.Status.Conditions)
	}
}

// A HorizontalPodAutoscaler that a user wrote follows a function's rate, by whatever object it names; what it cannot
// have is explained in its conditions. Each scales a Deployment of its own, from 2 replicas with a rate of 28 in all.
func (w *world) ownHPAs(t *testing.T) {
	const rate = v1alpha1.RequestsPerSecond
	scales := []struct {
		name   string
		metric autoscalingv2.MetricSpec
	}{
		{"own-function", objectMetric("sluice.dev/v1alpha1", "Function", "own-function", rate)},
		{"own-deployment", objectMetric("apps/v1", "Deployment", "own-deployment", rate)},
		{"own-service", objectMetric("v1", "Service", "own-service", rate)},
		{"own-pods", podsMetric(rate)},
		{"own-external", externalMetric("own-external", rate)},
	}
	for _, s := range scales {
		w.direct(t, s.name)
	}
	for _, s := range scales {
		// Over the first seconds a rate is as rough as the moments of two scrapes are; an HPA for pods that have no values
		// stays with what it once made of it.
		eventually(t, 60*time.Second, "the rate of "+s.name, func(ctx context.Context) string {
			if got, err := w.metric(ctx, "v1beta2", s.name, rate); err != nil || math.Abs(got-2*podRate) > 0.5 {
				return fmt.Sprintf("%v (%v)", got, err)
			}
			return ""
		})
		w.own(t, s.name, s.name, s.metric)
	}
	for _, s := range scales {
		w.follows(t, s.name, 3) // ceil(28 / 10)
	}
	explained := []struct {
		name   string
		metric autoscalingv2.MetricSpec
		words  []string
	}{
		{"no-function", objectMetric("sluice.dev/v1alpha1", "Function", "nobody", rate), []string{"nobody"}},
		{"no-deployment", objectMetric("apps/v1", "Deployment", "nobody", rate), []string{"nobody"}},
		{"no-metric", objectMetric("sluice.dev/v1alpha1", "Function", "own-function", "depth"), []string{"depth", rate}},
		{"no-gauge", objectMetric("sluice.dev/v1alpha1", "Function", "own-function", v1alpha1.RequestsInFlight), []string{"podMetrics"}},
		{"no-external", externalMetric("nobody", rate), []string{"nobody"}},
	}
	for _, e := range explained {
		w.workload(t, e.name, 1)
		w.own(t, e.name, e.name, e.metric)
	}
	for _, e := range explained {
		eventually(t, 30*time.Second, e.name+" to say why", w.hpaSays(e.name, e.words...))
		if n := w.replicas(t.Context(), t, e.name); n != 1 {
			t.Errorf("%s: %d replicas on an unknown value; want 1", e.name, n)
		}
	}
}
