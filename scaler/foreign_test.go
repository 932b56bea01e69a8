package scaler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestForeignObjectsAreNotTouched(t *testing.T) {
	service := newService("sluice-hello")
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sluice-hello"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "another"},
		},
	}
	inStory(t, awakeWorld(newFunction("hello", proxied), service, hpa), func(s *story) {
		s.reconcile("hello")
		s.wrote()
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "NameTaken", "Service default/sluice-hello", "rename or delete")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "NameTaken", "HorizontalPodAutoscaler default/sluice-hello")
	})
}

func TestForeignHPA(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		s.writes = nil
		foreign := &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mine"},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "hello"}, MinReplicas: ptr.To[int32](0),
			},
		}
		if err := s.Create(s.Context(), foreign.DeepCopy()); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		s.wrote("delete *v2.HorizontalPodAutoscaler sluice-hello")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "ForeignHPA", "HorizontalPodAutoscaler mine", "delete it")

		// Not put to sleep, however idle.
		s.pass(time.Hour)
		s.metrics("hello", time.Hour, 0)
		s.reconcile("hello")
		s.wrote()

		// But at zero, which that HPA may write itself, the gate holds.
		s.scale("hello", 0)
		s.reconcile("hello")
		s.wrote("create *v1.EndpointSlice sluice-hello.gate")
		s.ready("hello")
		s.writes = nil
		s.reconcile("hello")
		s.wroteNothing()

		// The activator wakes it for a request, and the gate stays until a pod is ready. With nobody else's help the path
		// is as it was.
		s.scale("hello", 1)
		s.reconcile("hello")
		if st := s.function("hello").Status; st.Phase != v1alpha1.Waking || !st.Gate.InPath || s.gated("hello") == nil {
			s.Errorf("status waking: %+v, gate %v", st, s.gated("hello"))
		}
		s.wrote()
		s.ready("hello", "hello-2")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate")
		if got := get[autoscalingv2.HorizontalPodAutoscaler](s, "mine"); !cmp.Equal(got.Spec, foreign.Spec) {
			s.Errorf("the user's HorizontalPodAutoscaler was changed: %+v", got.Spec)
		}
	})
}

// A HorizontalPodAutoscaler leaves alone a zero that it did not write. So whoever makes one for a function that Sluice has
// put to sleep gets it awake; without that a function without a gate would never run again.
func TestForeignHPATakesOver(t *testing.T) {
	for _, tt := range []struct {
		name    string
		objects []client.Object
		asleep  func(s *story)
	}{
		{"with a gate", awakeWorld(newFunction("hello")), func(s *story) {
			s.metrics("hello", 0, 0)
			s.fallAsleep("hello")
		}},
		{"without", queueWorld(1), func(s *story) {
			s.reconcile("hello")
			s.quiet("hello", 11*time.Second)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inStory(t, tt.objects, func(s *story) {
				tt.asleep(s)
				s.writes = nil
				foreign := &autoscalingv2.HorizontalPodAutoscaler{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mine"},
					Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
						ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "hello"},
					},
				}
				if err := s.Create(s.Context(), foreign); err != nil {
					s.Fatal(err)
				}
				s.reconcile("hello")
				s.wrote("scale hello 0 -> 1", "delete *v2.HorizontalPodAutoscaler sluice-hello")

				// From then on a zero is that HorizontalPodAutoscaler's, or whoever's wrote it.
				s.reconcile("hello")
				s.scale("hello", 0)
				s.reconcile("hello")
				s.reconcile("hello")
				if got := s.replicas("hello"); got != 0 {
					s.Errorf("%d replicas, want 0", got)
				}
			})
		})
	}
}
