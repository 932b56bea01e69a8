//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A live Function is moved between the modes, to another Service and port and back, and between hosts, while requests come
// by every way that leads to it, on new connections and on kept ones. None is lost.
func liveChanges(s *story) {
	s.workload("hello", 2)
	s.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "hello"},
			Ports: []corev1.ServicePort{
				{Name: "admin", Port: 81, TargetPort: intstr.FromInt32(8081)},
				{Name: "web", Port: 80, TargetPort: intstr.FromString("http")},
			},
		},
	})
	host := "live." + s.namespace + ".example.com"
	fn := proxied("hello", host)
	fn.Spec.Scale.MinReplicas = 1
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	s.awaitGate("hello", false)

	for _, kept := range []bool{false, true} {
		defer s.steadyLoad(s.clusterIP("hello"), 10, kept)()
		defer s.steadyLoad(s.clusterIP("sluice-hello"), 10, kept)()
	}
	atHost := s.hostLoad(s.door(), host, 10, true)

	mode := func(mode v1alpha1.TrafficMode, hosts ...string) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.Mode, fn.Spec.Traffic.Hosts, fn.Spec.Traffic.PodMetrics = mode, hosts, nil
			if mode == v1alpha1.Direct {
				fn.Spec.Traffic.PodMetrics = direct("hello").Spec.Traffic.PodMetrics
			}
		}
	}
	service := func(name, port string) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) {
			to := intstr.FromString(port)
			fn.Spec.Traffic.Service = v1alpha1.ServiceRef{Name: name, Port: &to}
		}
	}
	change := func(what string, edit func(*v1alpha1.Function)) {
		s.Helper()
		s.change("hello", edit)
		eventually(s.T, 20*time.Second, what+" to be observed", func(ctx context.Context) string {
			var fn v1alpha1.Function
			if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "hello"}, &fn); err != nil {
				return err.Error()
			}
			if fn.Status.ObservedGeneration != fn.Generation {
				return fmt.Sprintf("generation %d of %d", fn.Status.ObservedGeneration, fn.Generation)
			}
			return ""
		})
		always(s.T, 2*time.Second, "the function after "+what, func(context.Context) string {
			if phase := s.function("hello").Status.Phase; phase != v1alpha1.Active {
				return fmt.Sprintf("phase %s", phase)
			}
			return ""
		})
	}
	change("another Service", service("other", "web"))
	change("the first Service", service("hello", "http"))
	change("a second host", mode(v1alpha1.Proxied, host, "second."+host))
	atSecond := s.hostLoad(s.door(), "second."+host, 10, true)
	atHost() // its clients have moved
	change("the second host alone", mode(v1alpha1.Proxied, "second."+host))
	atSecond()
	for range 2 {
		change("mode Direct", mode(v1alpha1.Direct))
		change("mode Proxied", mode(v1alpha1.Proxied))
	}
}
