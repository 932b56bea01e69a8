//go:build e2e

package e2e

import (
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A bad spec is refused at once where the API server can see it, with words that name the field and the remedy.
func badSpecs(s *story) {
	refused := []struct {
		name string
		edit func(*v1alpha1.Function)
		want []string
	}{
		{
			name: "min above max",
			edit: func(fn *v1alpha1.Function) { fn.Spec.Scale.MinReplicas = 9 },
			want: []string{"spec.scale.minReplicas", "spec.scale.maxReplicas"},
		},
		{
			name: "nobody counts",
			edit: func(fn *v1alpha1.Function) { fn.Spec.Traffic.PodMetrics = nil },
			want: []string{"minReplicas 0", "podMetrics"},
		},
		{
			name: "concurrency without a gauge",
			edit: func(fn *v1alpha1.Function) {
				fn.Spec.Traffic.PodMetrics.InFlight = ""
				fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("10")}}}
			},
			want: []string{"spec.metrics[].concurrency", "podMetrics.inFlight"},
		},
		{
			name: "a metric of a later version",
			edit: func(fn *v1alpha1.Function) {
				fn.Spec.Metrics = []v1alpha1.Metric{{Resource: &v1alpha1.ResourceMetric{Name: "cpu", Utilization: 70}}}
			},
			want: []string{"spec.metrics[].resource", "not served"},
		},
		{
			name: "a lag of no topic",
			edit: func(fn *v1alpha1.Function) {
				fn.Spec.Metrics = []v1alpha1.Metric{{KafkaLag: &v1alpha1.KafkaLagMetric{
					BootstrapServers: []string{"kafka:9092"}, Group: "hello", Target: resource.MustParse("100"),
				}}}
			},
			want: []string{"spec.metrics[].kafkaLag", "either topic or topics"},
		},
		{
			name: "target zero",
			edit: func(fn *v1alpha1.Function) { onRate(fn, "0") },
			want: []string{"requestRate.target", "above 0"},
		},
		{
			name: "counted twice",
			edit: func(fn *v1alpha1.Function) { fn.Spec.Traffic.Mode = v1alpha1.Proxied },
			want: []string{"podMetrics", "mode Direct"},
		},
		{
			name: "a workload of another kind",
			edit: func(fn *v1alpha1.Function) {
				fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "hello"}
			},
			want: []string{"spec.workloadRef", "Deployment or a StatefulSet"},
		},
		{
			name: "behavior without a metric",
			edit: func(fn *v1alpha1.Function) {
				fn.Spec.Scale.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
			},
			want: []string{"spec.scale.behavior", "spec.metrics"},
		},
		{
			name: "a stabilization window that the HPA would refuse",
			edit: func(fn *v1alpha1.Function) {
				tooLong := int32(99999)
				onRate(fn, "10").Spec.Scale.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
					ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &tooLong},
				}
			},
			want: []string{"spec.scale.behavior", "3600"},
		},
		{
			name: "hosts in mode Direct",
			edit: func(fn *v1alpha1.Function) { fn.Spec.Traffic.Hosts = []string{"a.example.com"} },
			want: []string{"spec.traffic.hosts", "Proxied"},
		},
		{
			name: "a name too long for a Service",
			edit: func(fn *v1alpha1.Function) { fn.Name = strings.Repeat("a", 57) },
			want: []string{"metadata.name", "56"},
		},
		{
			name: "idleAfter too short",
			edit: func(fn *v1alpha1.Function) { idleAfter(fn, time.Millisecond) },
			want: []string{"spec.scale.idleAfter", "1s"},
		},
	}
	for _, tt := range refused {
		fn := direct("hello")
		fn.Namespace = s.namespace
		tt.edit(fn)
		err := s.client.Create(s.Context(), fn)
		if err == nil {
			s.Errorf("%s: accepted", tt.name)
			continue
		}
		for _, word := range tt.want {
			if !strings.Contains(err.Error(), word) {
				s.Errorf("%s: the refusal does not name %q: %v", tt.name, word, err)
			}
		}
	}
}

// The workload of a function that may be asleep cannot be changed for another one, which would leave it at zero.
func workloadStays(s *story) {
	s.asleep(direct("hello"))
	fn := s.function("hello")
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "Deployment", Name: "other"}
	err := s.client.Update(s.Context(), fn)
	if err == nil || !strings.Contains(err.Error(), "spec.workloadRef cannot be changed") {
		s.Errorf("another workload for a function that exists: %v", err)
	}
}

// What only the cluster's other objects can tell becomes a condition that says what to do, and mends itself when it
// is done.
func conflicts(s *story) {
	s.create(direct("missing"))
	s.awaitCondition("missing", v1alpha1.ConditionReady, "False", "WorkloadMissing", "spec.workloadRef", "missing")
	s.workload("missing", 0)
	s.awaitPhase("missing", v1alpha1.Idle, 20*time.Second)
	s.awaitCondition("missing", v1alpha1.ConditionReady, "True", "Ready")

	s.workload("ports", 0)
	fn := direct("ports")
	port := intstr.FromString("https")
	fn.Spec.Traffic.Service.Port = &port
	s.create(fn)
	s.awaitCondition("ports", v1alpha1.ConditionReady, "False", "PortUnknown", "spec.traffic.service.port", "https", "http")

	s.asleep(direct("shared"))
	// Creation times are whole seconds; within one, the first by name counts as the older.
	second := direct("usurper")
	second.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "Deployment", Name: "shared"}
	second.Spec.Traffic.Service.Name = "usurper"
	s.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "usurper"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "shared"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	})
	s.create(second)
	s.awaitCondition("usurper", v1alpha1.ConditionReady, "False", "WorkloadConflict", "spec.workloadRef", "shared")
	s.awaitCondition("shared", v1alpha1.ConditionReady, "True", "Ready")
}
