package scaler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestProblemsNameFieldAndRemedy(t *testing.T) {
	twoPorts := []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 9000}}
	port := func(p intstr.IntOrString) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) { fn.Spec.Traffic.Service.Port = &p }
	}
	younger := func(fn *v1alpha1.Function) {
		fn.CreationTimestamp = metav1.NewTime(fn.CreationTimestamp.Add(time.Hour))
	}
	onHello := func(fn *v1alpha1.Function) {
		fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "hello"}
	}
	hosts := func(fn *v1alpha1.Function) {
		fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied, Hosts: []string{"a.example"}}
	}
	fallback := func(name string, port ...intstr.IntOrString) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) {
			fn.Spec.Activation.Fallback = &v1alpha1.Fallback{Name: name}
			if len(port) > 0 {
				fn.Spec.Activation.Fallback.Port = &port[0]
			}
		}
	}
	tests := []struct {
		name    string
		fn      *v1alpha1.Function
		service *corev1.Service
		more    []client.Object
		reason  string
		words   []string
	}{
		{
			"no workload", newFunction("hello", func(fn *v1alpha1.Function) { fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "x"} }),
			newService("hello"), nil, "WorkloadMissing",
			[]string{"spec.workloadRef: Deployment default/x does not exist; create it or correct the name"},
		},
		{"no Service", newFunction("hello"), nil, nil, "ServiceMissing", []string{"spec.traffic.service: Service default/hello does not exist"}},
		{
			"unknown port", newFunction("hello", port(intstr.FromString("web"))), newService("hello", twoPorts...), nil, "PortUnknown",
			[]string{"spec.traffic.service.port", "no port web; it has http 80, admin 9000"},
		},
		{
			"port unset", newFunction("hello"), newService("hello", twoPorts...), nil, "PortUnset",
			[]string{"spec.traffic.service.port is not set", "http 80, admin 9000"},
		},
		{
			"headless", newFunction("hello"), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}, Spec: corev1.ServiceSpec{ClusterIP: "None"},
			}, nil, "ServiceUnsupported", []string{"headless", "cluster IP"},
		},
		{
			"ExternalName", newFunction("hello"), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName},
			}, nil, "ServiceUnsupported", []string{"ExternalName"},
		},
		{
			"UDP", newFunction("hello"), newService("hello", corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP}), nil,
			"ServiceUnsupported",
			[]string{"port 53", "UDP"},
		},
		{
			"TLS to pods", newFunction("hello"), newService("hello", corev1.ServicePort{Port: 443, AppProtocol: new("https")}), nil,
			"AppProtocolUnsupported",
			[]string{"spec.traffic.service.port: port 443 of Service hello has the appProtocol https", "kubernetes.io/h2c"},
		},
		{
			"workload of an older Function", newFunction("hello", younger), newService("hello"),
			[]client.Object{newFunction("first", onHello)},
			"WorkloadConflict",
			[]string{"Deployment default/hello", "default/first"},
		},
		{
			"Service of an older Function", newFunction("hello", younger), newService("hello"),
			[]client.Object{newFunction("first", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Service.Name = "hello" })},
			"ServiceConflict",
			[]string{"Service default/hello", "default/first"},
		},
		{
			"host of an older Function", newFunction("hello", younger, hosts), newService("hello"),
			[]client.Object{newFunction("first", hosts)},
			"HostConflict",
			[]string{"spec.traffic.hosts: a.example", "default/first"},
		},
		{
			"no fallback", newFunction("hello", fallback("sorry")), newService("hello"), nil, "FallbackMissing",
			[]string{"spec.activation.fallback.name: Service default/sorry does not exist; create it or correct the name"},
		},
		{
			"unknown port of the fallback", newFunction("hello", fallback("sorry", intstr.FromInt32(81))), newService("hello"),
			[]client.Object{newService("sorry", twoPorts...)},
			"FallbackPortUnknown",
			[]string{"spec.activation.fallback.port", "no port 81; it has http 80, admin 9000"},
		},
		{
			"the fallback's port unset", newFunction("hello", fallback("sorry")), newService("hello"),
			[]client.Object{newService("sorry", twoPorts...)},
			"FallbackPortUnset",
			[]string{"spec.activation.fallback.port is not set", "http 80, admin 9000"},
		},
		{
			"the function is its own fallback", newFunction("hello", fallback("hello")), newService("hello"), nil, "FallbackServiceUnsupported",
			[]string{"spec.activation.fallback.name", "the function's own", "name another one"},
		},
		{
			"a fallback of TLS", newFunction("hello", fallback("sorry")), newService("hello"),
			[]client.Object{newService("sorry", corev1.ServicePort{Port: 443, AppProtocol: new("https")})},
			"FallbackServiceUnsupported",
			[]string{"spec.activation.fallback.port: port 443", "https", "name a port without"},
		},
		{
			"a fallback elsewhere", newFunction("hello", fallback("sorry")), newService("hello"),
			[]client.Object{&corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sorry"},
				Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"},
			}},
			"FallbackServiceUnsupported",
			[]string{"spec.activation.fallback: Service sorry is of type ExternalName"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects := append(tt.more, tt.fn, newDeployment("hello", 1), newSlice("default", "hello", podEndpoints("hello-1")...), activators(1))
			if tt.service != nil {
				objects = append(objects, tt.service)
			}
			inStory(t, objects, func(s *story) {
				for again := s.reconcile("hello").RequeueAfter; again > 0; again = s.reconcile("hello").RequeueAfter {
					s.pass(again)
				}
				s.wantCondition("hello", "Ready", metav1.ConditionFalse, tt.reason, tt.words...)
				if got := s.condition("hello", "Ready").ObservedGeneration; got != 1 {
					s.Errorf("observedGeneration %d, want 1", got)
				}
				if got := s.newEvents(); !slices.Contains(got, tt.reason) {
					s.Errorf("events %v, want one with reason %s", got, tt.reason)
				}
				// Said once.
				s.writes = nil
				s.reconcile("hello")
				s.wroteNothing()
			})
		})
	}
}

// Objects that are made together reach the caches of their kinds one after the other. What is missing for a moment only
// is no news.
func TestMissingForAMoment(t *testing.T) {
	const name = "hello"
	tests := []struct {
		late   client.Object
		reason string
	}{
		{newService(name), "ServiceMissing"},
		{newDeployment(name, 1), "WorkloadMissing"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			objects := []client.Object{newFunction(name), newSlice("default", name, podEndpoints("hello-1")...), activators(1)}
			for _, other := range tests {
				if other.reason != tt.reason {
					objects = append(objects, other.late.DeepCopyObject().(client.Object))
				}
			}
			inStory(t, objects, func(s *story) {
				if again := s.reconcile(name).RequeueAfter; again <= 0 || again > patience {
					s.Errorf("look again after %s, want within %s", again, patience)
				}
				s.pass(patience / 2)
				s.reconcile(name)
				s.wroteNothing()
				late := tt.late.DeepCopyObject().(client.Object)
				if err := s.Create(s.Context(), late); err != nil {
					s.Fatal(err)
				}
				s.reconcile(name)
				s.wantCondition(name, "Ready", metav1.ConditionTrue, "Ready")
				if got := s.newEvents(); len(got) != 0 {
					s.Errorf("events %v, want none", got)
				}

				// It goes for good: that is told, after the same time.
				if err := s.Delete(s.Context(), late); err != nil {
					s.Fatal(err)
				}
				s.pass(s.reconcile(name).RequeueAfter)
				s.reconcile(name)
				s.wantCondition(name, "Ready", metav1.ConditionFalse, tt.reason)
				if got := s.newEvents(); !slices.Contains(got, tt.reason) {
					s.Errorf("events %v, want %s", got, tt.reason)
				}
			})
		})
	}
}

func TestNoActivator(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		change := func(n int) {
			slice := &discoveryv1.EndpointSlice{}
			key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ActivatorService + "-abc"}
			if err := s.Get(s.Context(), key, slice); err != nil {
				s.Fatal(err)
			}
			slice.Endpoints = activators(n).Endpoints
			if err := s.Update(s.Context(), slice); err != nil {
				s.Fatal(err)
			}
		}
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")

		// Another activator: the gate's endpoints follow, also of a function that sleeps.
		change(3)
		s.reconcile("hello")
		s.wrote("update *v1.EndpointSlice sluice-hello.gate")
		if got := len(s.gated("hello")); got != 3 {
			s.Errorf("%d endpoints, want 3", got)
		}
		// None is ready: the last known ones stay, rather than none.
		change(0)
		s.reconcile("hello")
		s.wrote()
		if got := len(s.gated("hello")); got != 3 {
			s.Errorf("%d endpoints, want the last known 3", got)
		}
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "NoActivator", "sluice-system/sluice-activator")
	})
}

// A slice can not move to another Service: kube-proxy would keep it at the old one as well.
func TestServiceNameChanges(t *testing.T) {
	inStory(t, sleepingWorld(newFunction("hello"), newService("web")), func(s *story) {
		s.reconcile("hello")
		s.writes = nil
		change(s, "hello", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Service.Name = "web" })
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate", "create *v1.EndpointSlice sluice-hello.gate")
		if got := get[discoveryv1.EndpointSlice](s, "sluice-hello.gate").Labels[discoveryv1.LabelServiceName]; got != "web" {
			s.Errorf("the slice is of Service %q, want web", got)
		}
	})
}

// An older Function comes to have the same workload, as when its spec changes: the younger takes away all it made.
func TestLoserStepsAside(t *testing.T) {
	other := newFunction("aaa", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Service.Name = "aaa" })
	inStory(t, awakeWorld(newFunction("hello", proxied), other, newService("aaa"), newSlice("default", "aaa")), func(s *story) {
		s.reconcile("hello")
		s.writes = nil
		change(s, "aaa", func(fn *v1alpha1.Function) { fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "hello"} })
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello", "delete *v1.Service sluice-hello", "delete *v2.HorizontalPodAutoscaler sluice-hello")
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "WorkloadConflict", "default/aaa")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "WorkloadConflict")
		s.reconcile("aaa")
		s.wantCondition("aaa", "Ready", metav1.ConditionTrue, "Ready")
		// The loser is deleted while the workload is at zero: not its business to wake it.
		s.scale("hello", 0)
		if err := s.Delete(s.Context(), s.function("hello")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		if s.function("hello") != nil || s.replicas("hello") != 0 {
			s.Errorf("function %v, %d replicas, want it gone and 0", s.function("hello"), s.replicas("hello"))
		}
	})
}

func TestGatePortsAreUnique(t *testing.T) {
	withPort := func(port int32) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) { fn.Status.Gate = &v1alpha1.GateStatus{Port: port, ServicePort: "http"} }
	}
	younger := func(fn *v1alpha1.Function) {
		fn.CreationTimestamp = metav1.NewTime(fn.CreationTimestamp.Add(time.Hour))
	}
	objects := awakeWorld(newFunction("hello", withPort(20003)))
	objects = append(objects, awakeWorld(newFunction("other", withPort(20003), younger))[:4]...)
	inStory(t, objects, func(s *story) {
		s.reconcile("hello")
		s.reconcile("other")
		if got := s.function("hello").Status.Gate.Port; got != 20003 {
			s.Errorf("the older got port %d, want to keep 20003", got)
		}
		if got := s.function("other").Status.Gate.Port; got != 20000 {
			s.Errorf("the younger got port %d, want the free 20000", got)
		}
	})
}

func TestGatePortsExhausted(t *testing.T) {
	objects := []client.Object{activators(1)}
	for i := range 11 {
		name := fmt.Sprintf("fn-%02d", i)
		objects = append(objects, newFunction(name), newDeployment(name, 1), newService(name), newSlice("default", name, podEndpoints(name)...))
	}
	inStory(t, objects, func(s *story) {
		for i := range 11 {
			s.reconcile(fmt.Sprintf("fn-%02d", i))
		}
		s.wantCondition("fn-10", "Ready", metav1.ConditionFalse, "GatePortsExhausted", "20000-20009", "port range")
		// One goes, and its port is for the next.
		fn := s.function("fn-04")
		fn.Finalizers = nil
		if err := s.Update(s.Context(), fn); err != nil {
			s.Fatal(err)
		}
		if err := s.Delete(s.Context(), fn); err != nil {
			s.Fatal(err)
		}
		s.reconcile("fn-04")
		s.reconcile("fn-10")
		if got := s.function("fn-10").Status.Gate; got == nil || got.Port != 20004 {
			s.Errorf("gate %+v, want port 20004", got)
		}
	})
}

// Names of slices end in what no name of a Function can have, so that no two Functions need the same.
func TestNamesOfSlicesDiffer(t *testing.T) {
	names := []string{"hello", "hello-gate", "hello-ipv6", "hello-gate-ipv6"}
	objects := []client.Object{activators(2)}
	for _, name := range names {
		objects = append(objects, sleepingWorld(newFunction(name, proxied))[:4]...)
	}
	inStory(t, objects, func(s *story) {
		for range 2 {
			for _, name := range names {
				s.reconcile(name)
			}
		}
		for _, name := range names {
			s.wantCondition(name, "Ready", metav1.ConditionTrue, "Ready")
			for slice, service := range map[string]string{"sluice-" + name: "sluice-" + name, "sluice-" + name + ".gate": name} {
				got := get[discoveryv1.EndpointSlice](s, slice)
				if got == nil || got.Labels[v1alpha1.FunctionLabel] != name || got.Labels[discoveryv1.LabelServiceName] != service {
					s.Errorf("slice %s: got %+v, want one of function %s for Service %s", slice, got, name, service)
				}
			}
		}
	})
}

// Somebody takes the labels away by which the gate's slice is known. It is still ours, and gets them back.
func TestLabelsOfASliceAreMended(t *testing.T) {
	inStory(t, sleepingWorld(newFunction("hello")), func(s *story) {
		s.reconcile("hello")
		slice := get[discoveryv1.EndpointSlice](s, "sluice-hello.gate")
		if slice == nil {
			s.Fatal("no slice to begin with")
		}
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: "hello"}
		if err := s.Update(s.Context(), slice); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		got := get[discoveryv1.EndpointSlice](s, "sluice-hello.gate").Labels
		if got[discoveryv1.LabelManagedBy] != v1alpha1.GateManager || got[v1alpha1.FunctionLabel] != "hello" {
			s.Errorf("labels %v", got)
		}
	})
}

// The name of the gate's slice is taken by somebody else's. That is not touched, and it is no hot loop.
func TestNameOfASliceIsTaken(t *testing.T) {
	taken := newSlice("default", "another")
	taken.Name = "sluice-hello.gate"
	inStory(t, sleepingWorld(newFunction("hello"), taken), func(s *story) {
		if _, err := s.tryReconcile("hello"); err == nil {
			s.Error("no error, and so no back-off")
		}
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "WriteFailed", "sluice-hello.gate", "name is taken")
		if got := get[discoveryv1.EndpointSlice](s, "sluice-hello.gate").Labels[discoveryv1.LabelServiceName]; got != "another" {
			s.Errorf("the slice is now of Service %q", got)
		}
	})
}
