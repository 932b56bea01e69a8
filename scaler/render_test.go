package scaler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestRenderHPA(t *testing.T) {
	objectMetric := func(name, target string) autoscalingv2.MetricSpec {
		return autoscalingv2.MetricSpec{
			Type: autoscalingv2.ObjectMetricSourceType,
			Object: &autoscalingv2.ObjectMetricSource{
				DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "sluice.dev/v1alpha1", Kind: "Function", Name: "hello"},
				Metric:          autoscalingv2.MetricIdentifier{Name: name},
				Target:          autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: new(resource.MustParse(target))},
			},
		}
	}
	tests := []struct {
		name   string
		change func(*v1alpha1.Function)
		want   *autoscalingv2.HorizontalPodAutoscalerSpec
	}{
		{
			"minReplicas is never 0", func(*v1alpha1.Function) {},
			&autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "hello"},
				MinReplicas:    ptr.To[int32](1), MaxReplicas: 10,
				Metrics: []autoscalingv2.MetricSpec{objectMetric("requests_per_second", "50")},
				// Never nil: without it, one request brings back the replicas of the last peak.
				Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{},
			},
		},
		{
			"all of the spec", func(fn *v1alpha1.Function) {
				fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "web"}
				fn.Spec.Scale.MinReplicas = 3
				fn.Spec.Scale.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
					ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](30)},
				}
				fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{
					Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("500m")},
				})
			},
			&autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
				MinReplicas:    ptr.To[int32](3), MaxReplicas: 10,
				Metrics: []autoscalingv2.MetricSpec{objectMetric("requests_per_second", "50"), objectMetric("requests_in_flight", "500m")},
				Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
					ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](30)},
				},
			},
		},
		{"nothing to scale on", func(fn *v1alpha1.Function) { fn.Spec.Metrics = nil }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := renderHPA(newFunction("hello", tt.change), bound{})
			if err != nil {
				t.Fatal(err)
			}
			if (got == nil) != (tt.want == nil) {
				t.Fatalf("got %v, want %v", got, tt.want)
			}
			if got == nil {
				return
			}
			if diff := cmp.Diff(*tt.want, got.Spec); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			if got.Name != "sluice-hello" || got.Labels[v1alpha1.FunctionLabel] != "hello" {
				t.Errorf("name %s, labels %v", got.Name, got.Labels)
			}
		})
	}
}

// What the API server fills in is no difference; what a user changed, or the Function no longer says, is one.
func TestSameHPA(t *testing.T) {
	withBehavior := func(fn *v1alpha1.Function) {
		fn.Spec.Scale.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
			ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](30)},
		}
	}
	render := func(change ...func(*v1alpha1.Function)) *autoscalingv2.HorizontalPodAutoscaler {
		hpa, err := renderHPA(newFunction("hello", change...), bound{})
		if err != nil {
			t.Fatal(err)
		}
		return hpa
	}
	defaulted := func() *autoscalingv2.HorizontalPodAutoscaler {
		hpa := render(withBehavior)
		policy := autoscalingv2.MaxChangePolicySelect
		hpa.Spec.Behavior.ScaleDown.SelectPolicy = &policy
		hpa.Spec.Behavior.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{{Type: "Percent", Value: 100, PeriodSeconds: 15}}
		hpa.Spec.Behavior.ScaleUp = &autoscalingv2.HPAScalingRules{SelectPolicy: &policy}
		hpa.Spec.Metrics[0].Object.Target.AverageValue = new(resource.MustParse("50000m"))
		return hpa
	}
	tests := []struct {
		name string
		have func(*autoscalingv2.HorizontalPodAutoscaler)
		want *autoscalingv2.HorizontalPodAutoscaler
		same bool
	}{
		{"defaults", func(*autoscalingv2.HorizontalPodAutoscaler) {}, render(withBehavior), true},
		{"behavior removed from the Function", func(*autoscalingv2.HorizontalPodAutoscaler) {}, render(), false},
		{"minReplicas 0", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MinReplicas = ptr.To[int32](0) }, render(withBehavior), false},
		{"a metric more", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.Metrics = append(h.Spec.Metrics, h.Spec.Metrics[0])
		}, render(withBehavior), false},
		{"another window", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.Behavior.ScaleDown.StabilizationWindowSeconds = ptr.To[int32](300)
		}, render(withBehavior), false},
		{"a label of the user", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Labels["team"] = "a" }, render(withBehavior), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have := defaulted()
			tt.have(have)
			if got := sameHPA(have, tt.want); got != tt.same {
				t.Errorf("sameHPA: got %v, want %v", got, tt.same)
			}
		})
	}
}

func TestReadyActivators(t *testing.T) {
	ep := func(address string, ready, terminating *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Terminating: terminating}, NodeName: new("n1"),
		}
	}
	slices := []*discoveryv1.EndpointSlice{
		{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{
			ep("10.0.0.9", new(true), nil), ep("10.0.0.2", nil, nil), ep("10.0.0.3", new(false), nil),
			ep("10.0.0.4", new(true), new(true)),
			{},
		}},
		{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{ep("10.0.0.9", new(true), nil)}},
		{AddressType: discoveryv1.AddressTypeIPv6, Endpoints: []discoveryv1.Endpoint{ep("fd00::2", new(true), nil)}},
		{AddressType: discoveryv1.AddressTypeFQDN, Endpoints: []discoveryv1.Endpoint{ep("example.com", new(true), nil)}},
	}
	node := new("n1")
	want := []activator{{"10.0.0.2", node, nil}, {"10.0.0.9", node, nil}, {"fd00::2", node, nil}}
	if diff := cmp.Diff(want, readyActivators(slices)); diff != "" {
		t.Errorf("ready, sorted, each once (-want +got):\n%s", diff)
	}
}

func TestRenderSlices(t *testing.T) {
	both := []activator{{Address: "10.0.0.2", Node: new("n1"), Zone: new("z1")}, {Address: "fd00::2"}}
	port := gatePort{Service: corev1.ServicePort{Name: "grpc", Port: 80, AppProtocol: new("kubernetes.io/h2c")}, Gate: 20007}
	tests := []struct {
		name     string
		families []corev1.IPFamily
		ready    []activator
		want     []string
	}{
		{"one for each family that both have", []corev1.IPFamily{"IPv4", "IPv6"}, both, []string{"sluice-hello.gate", "sluice-hello.gate.ipv6"}},
		{"none for a family that the Service has not", []corev1.IPFamily{"IPv4"}, both, []string{"sluice-hello.gate"}},
		{"none for a family without activators", []corev1.IPFamily{"IPv4", "IPv6"}, both[1:], []string{"sluice-hello.gate.ipv6"}},
		{"all when the Service does not say", nil, both, []string{"sluice-hello.gate", "sluice-hello.gate.ipv6"}},
		{"none without activators", nil, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var names []string
			for _, s := range renderSlices(newFunction("hello"), "sluice-hello.gate", "hello", tt.families, port, tt.ready) {
				names = append(names, s.Name)
			}
			if diff := cmp.Diff(tt.want, names); diff != "" {
				t.Errorf("slices (-want +got):\n%s", diff)
			}
		})
	}

	fn := newFunction("hello")
	got := renderSlices(fn, "sluice-hello.gate", "hello", []corev1.IPFamily{"IPv4"}, port, both)[0]
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "sluice-hello.gate",
			Labels: map[string]string{
				"kubernetes.io/service-name": "hello", "endpointslice.kubernetes.io/managed-by": "gate.sluice.dev", "sluice.dev/function": "hello",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "sluice.dev/v1alpha1", Kind: "Function", Name: "hello", UID: "uid-hello",
				Controller: new(true), BlockOwnerDeletion: new(false),
			}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{"10.0.0.2"},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			NodeName:   new("n1"), Zone: new("z1"),
		}},
		Ports: []discoveryv1.EndpointPort{{
			Name: new("grpc"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](20007), AppProtocol: new("kubernetes.io/h2c"),
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("slice (-want +got):\n%s", diff)
	}
	if !v1alpha1.IsGateSlice(got) || len(v1alpha1.PodEndpoints([]*discoveryv1.EndpointSlice{got}, "grpc")) != 0 {
		t.Error("the gate's own slice counts as pods")
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want string // of the error; empty for none
	}{
		{"defaults", Options{RestConfig: &rest.Config{}}, ""},
		{"no RestConfig", Options{}, "RestConfig is required"},
		{"ports that are no range", Options{RestConfig: &rest.Config{}, FirstPort: 30000, LastPort: 20000}, "gate ports"},
		{"polls all the time", Options{RestConfig: &rest.Config{}, PollInterval: time.Millisecond}, "PollInterval 1ms"},
		// A value that was not read for maxAge is unknown, so that no function would ever sleep.
		{"polls too rarely", Options{RestConfig: &rest.Config{}, PollInterval: maxAge}, "PollInterval 10s"},
		{"grace below zero", Options{RestConfig: &rest.Config{}, Grace: -1}, "Grace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.o.complete()
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
