//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// ownHPA creates a HorizontalPodAutoscaler as a user would write it, who names a metric of a function.
func (s *story) ownHPA(workload string, minReplicas int32, metric autoscalingv2.MetricSpec) {
	s.Helper()
	at := int32(0) // scales down at once, so that a wrong number would be seen
	s.create(&autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "mine-" + workload},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: workload},
			MinReplicas:    &minReplicas,
			MaxReplicas:    5,
			Metrics:        []autoscalingv2.MetricSpec{metric},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
				ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &at},
			},
		},
	})
}

func averageOf(target string) autoscalingv2.MetricTarget {
	value := resource.MustParse(target)
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &value}
}

func objectMetric(apiVersion, kind, name, target string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: apiVersion, Kind: kind, Name: name},
		Metric:          autoscalingv2.MetricIdentifier{Name: v1alpha1.RequestsPerSecond},
		Target:          averageOf(target),
	}}
}

// A HorizontalPodAutoscaler that a user wrote scales on a function's rate, whatever it calls the function: the Function,
// its Deployment, its Service, its Pods, or an external metric.
func ownHPAs(s *story) {
	const rate, want = 25.0, 3 // ceil(25 / 10)
	metrics := map[string]autoscalingv2.MetricSpec{
		"function":   objectMetric(v1alpha1.GroupVersion.String(), "Function", "function", "10"),
		"deployment": objectMetric("apps/v1", "Deployment", "deployment", "10"),
		"service":    objectMetric("v1", "Service", "service", "10"),
		"pods": {Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: v1alpha1.RequestsPerSecond}, Target: averageOf("10"),
		}},
		"external": {Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
			Metric: autoscalingv2.MetricIdentifier{
				Name: v1alpha1.RequestsPerSecond, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"function": "external"}},
			},
			Target: averageOf("10"),
		}},
	}
	for name, metric := range metrics {
		s.workload(name, 1)
		fn := direct(name)
		fn.Spec.Scale.MinReplicas = 1
		s.create(fn)
		s.ownHPA(name, 1, metric)
	}
	for name := range metrics {
		s.awaitPhase(name, v1alpha1.Active, 30*time.Second)
		// The first request makes the pods show their counters.
		stop := s.steadyLoad(s.clusterIP(name), rate, false)
		defer stop()
	}
	for name := range metrics {
		eventually(s.T, 120*time.Second, "the user's HPA on the "+name+" to follow the rate", func(ctx context.Context) string {
			if n := *s.deployment(name).Spec.Replicas; n != want {
				return fmt.Sprintf("%d replicas; %s", n, s.hpaSays(ctx, "mine-"+name, autoscalingv2.ScalingActive, corev1.ConditionTrue))
			}
			return ""
		})
		// Sluice makes no second one.
		var hpas autoscalingv2.HorizontalPodAutoscalerList
		if err := s.client.List(s.Context(), &hpas, client.InNamespace(s.namespace)); err != nil {
			s.Fatal(err)
		}
		if len(hpas.Items) != len(metrics) {
			s.Errorf("%d HorizontalPodAutoscalers beside %d functions", len(hpas.Items), len(metrics))
		}
	}
}

// A user's HPA that may scale to zero does so when the rate is 0. The function's gate is in the path then: a request is
// held and answered, and the HPA goes on from the replica that it woke.
func ownHPAToZero(s *story) {
	s.workload("hello", 1)
	s.create(proxied("hello"))
	s.ownHPA("hello", 0, objectMetric(v1alpha1.GroupVersion.String(), "Function", "hello", "10"))
	s.awaitCondition("hello", v1alpha1.ConditionScalingActive, "False", "ForeignHPA", "mine-hello")
	atZero := func() {
		s.Helper()
		eventually(s.T, 120*time.Second, "the user's HPA to scale to 0", func(ctx context.Context) string {
			if n := *s.deployment("hello").Spec.Replicas; n != 0 {
				return fmt.Sprintf("%d replicas; %s", n, s.hpaSays(ctx, "mine-hello", autoscalingv2.ScalingActive, corev1.ConditionTrue))
			}
			return ""
		})
		s.awaitPhase("hello", v1alpha1.Idle, 20*time.Second)
		s.awaitGate("hello", true)
	}
	atZero()
	s.awaitNoPod("hello")
	url := s.clusterIP("sluice-hello")
	s.Logf("from the zero of the user's HPA: %s", s.mustAnswer(url, ""))
	if n := *s.deployment("hello").Spec.Replicas; n < 1 {
		s.Errorf("%d replicas after a request", n)
	}
	stop := s.steadyLoad(url, 25, false)
	eventually(s.T, 120*time.Second, "the user's HPA to follow the rate from there", func(context.Context) string {
		if n := *s.deployment("hello").Spec.Replicas; n != 3 { // ceil(25 / 10)
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
	stop()
	atZero()
}

// What an HPA cannot be told, it is told why, in words that its author can act on.
func ownHPATold(s *story) {
	s.workload("hello", 1)
	fn := direct("hello")
	fn.Spec.Scale.MinReplicas = 1
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	unknown := objectMetric(v1alpha1.GroupVersion.String(), "Function", "hello", "10")
	unknown.Object.Metric.Name = "requests_per_minute"
	for name, tt := range map[string]struct {
		metric autoscalingv2.MetricSpec
		words  []string
	}{
		"misspelled": {objectMetric(v1alpha1.GroupVersion.String(), "Function", "helo", "10"), []string{"no Function", s.namespace + "/helo"}},
		"unknown":    {unknown, []string{"requests_per_minute", v1alpha1.RequestsPerSecond}},
	} {
		s.workload(name, 1)
		s.ownHPA(name, 1, tt.metric)
		eventually(s.T, 60*time.Second, "the HPA to be told: "+name, func(ctx context.Context) string {
			return s.hpaSays(ctx, "mine-"+name, autoscalingv2.ScalingActive, corev1.ConditionFalse, tt.words...)
		})
	}
}
