package scaler

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// The status names the fallback's port, and follows the Service and the spec. A fallback that is wrong does not touch the rest.
func TestFallbackIsResolved(t *testing.T) {
	fn := newFunction("hello", func(fn *v1alpha1.Function) {
		fn.Spec.Activation.Fallback = &v1alpha1.Fallback{Name: "sorry", Port: new(intstr.FromInt32(80))}
	})
	inStory(t, awakeWorld(fn), func(s *story) {
		want := func(want *v1alpha1.FallbackStatus) {
			s.Helper()
			if diff := cmp.Diff(want, s.function("hello").Status.Gate.Fallback); diff != "" {
				s.Errorf("status.gate.fallback (-want +got):\n%s", diff)
			}
		}
		s.pass(s.reconcile("hello").RequeueAfter)
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "FallbackMissing")
		want(nil)
		if got := s.function("hello").Status.Gate; got.Port == 0 || got.ServicePort != "http" {
			s.Errorf("gate %+v, want it set up all the same", got)
		}

		sorry := newService("sorry", corev1.ServicePort{Name: "web", Port: 80, AppProtocol: new("kubernetes.io/h2c")})
		if err := s.Create(s.Context(), sorry); err != nil {
			s.Fatal(err)
		}
		hello := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "default", Name: "hello"}}
		if got := s.r.ofService(s.Context(), sorry); len(got) != 1 || got[0] != hello {
			s.Errorf("the fallback's Service concerns %v, want hello", got)
		}
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionTrue, "Ready")
		want(&v1alpha1.FallbackStatus{Service: "sorry", ServicePort: "web", AppProtocol: "kubernetes.io/h2c"})

		change(s, "sorry", func(service *corev1.Service) {
			service.Spec.Ports[0].Name, service.Spec.Ports[0].AppProtocol = "page", nil
		})
		s.reconcile("hello")
		want(&v1alpha1.FallbackStatus{Service: "sorry", ServicePort: "page"})

		change(s, "hello", func(fn *v1alpha1.Function) { fn.Spec.Activation.Fallback = nil })
		s.reconcile("hello")
		want(nil)
	})
}
