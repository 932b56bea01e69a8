package scaler

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// respec changes the spec of a Function as a user does.
func (s *story) respec(name string, mutate func(*v1alpha1.FunctionSpec)) {
	s.Helper()
	change(s, name, func(fn *v1alpha1.Function) {
		mutate(&fn.Spec)
		fn.Generation++
	})
}

// neverSleep is a spec that may not sleep.
func neverSleep(spec *v1alpha1.FunctionSpec) { spec.Scale.MinReplicas = 2 }

// A function that sleeps and may not any more is woken, also by a scaler that did not put it to sleep itself.
func TestSleeperThatMaySleepNoMore(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")
		s.ready("hello")
		s.respec("hello", neverSleep)
		s.restart()
		s.pass(time.Minute)
		s.reconcile("hello")
		s.wrote("scale hello 0 -> 2", "update *v2.HorizontalPodAutoscaler sluice-hello")
		st := s.function("hello").Status
		if st.Phase != v1alpha1.Waking || st.Replicas != 2 || !st.Gate.InPath || st.LastDecision.Reason != "Waking" ||
			st.LastDecision.From != 0 || st.LastDecision.To != 2 {
			s.Errorf("status waking: %+v, last decision %+v", st, st.LastDecision)
		}
		s.wantCondition("hello", "ScalingActive", metav1.ConditionTrue, "Scaling")
		if diff := cmp.Diff([]string{"Waking"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
		s.reconcile("hello")
		s.wrote()
		if s.gated("hello") == nil {
			s.Error("the gate left before a pod was ready")
		}
		s.ready("hello", "hello-2")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate")
		if got := s.function("hello").Status.Phase; got != v1alpha1.Active {
			s.Errorf("phase %s, want Active", got)
		}
	})
}

// What the gate speaks to the pods follows the Service, also while the function sleeps; a Service that cannot be had as it
// now is leaves what was.
func TestAppProtocolFollowsTheService(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")
		for _, tt := range []struct {
			says *string
			want string
		}{{new("kubernetes.io/h2c"), "kubernetes.io/h2c"}, {new("https"), "kubernetes.io/h2c"}, {nil, ""}} {
			change(s, "hello", func(service *corev1.Service) { service.Spec.Ports[0].AppProtocol = tt.says })
			s.reconcile("hello")
			if got := s.function("hello").Status.Gate.AppProtocol; got != tt.want {
				s.Errorf("the Service says %v: appProtocol %q in the status, want %q", tt.says, got, tt.want)
			}
		}
	})
}

// A policy that refuses the wake answers 422 as well as a test in the patch that does not match. It is no news of
// somebody else's scaling, to be tried again at once, but a problem that is told.
func TestWakeThatAPolicyRefuses(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")
		s.respec("hello", neverSleep)
		s.refuse = func(verb string, obj client.Object) error {
			if verb != "scale" {
				return nil
			}
			return apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, obj.GetName(),
				field.ErrorList{field.Forbidden(field.NewPath("spec"), "the freeze is on")})
		}
		if _, err := s.tryReconcile("hello"); err == nil {
			s.Error("no error, and so no back-off")
		}
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "WriteFailed", "the freeze is on")
	})
}

func TestSleeperWithoutTraffic(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")
		s.respec("hello", func(spec *v1alpha1.FunctionSpec) {
			spec.Traffic, spec.Metrics, spec.Scale.MinReplicas = nil, nil, 1
		})
		s.reconcile("hello")
		if got := s.replicas("hello"); got != 1 {
			s.Errorf("%d replicas, want 1", got)
		}
		if got := s.function("hello").Finalizers; len(got) != 0 {
			s.Errorf("finalizers %v, want none: it is awake and has no gate", got)
		}
	})
}

// That Sluice wrote the zero gets into the status in the end, however often the write of that fails.
func TestSleepIsOnRecord(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		slept := false
		s.refuse = func(verb string, _ client.Object) error {
			slept = slept || verb == "scale"
			if slept && verb == "status" {
				return errors.New("etcd leader changed")
			}
			return nil
		}
		s.reconcile("hello")
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.pass(2 * time.Second)
		s.metrics("hello", 12*time.Second, 0)
		for range 2 {
			if _, err := s.tryReconcile("hello"); err == nil {
				s.Fatal("the status could not be written, and that is no error")
			}
		}
		s.refuse = nil
		s.reconcile("hello")
		if d := s.function("hello").Status.LastDecision; d.Reason != "Sleeping" || d.From != 1 || d.To != 0 {
			s.Errorf("last decision %+v, want Sleeping from 1 to 0", d)
		}
	})
}

func TestZeroThatIsLeftAlone(t *testing.T) {
	t.Run("by another hand", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.reconcile("hello")
			s.respec("hello", neverSleep)
			s.scale("hello", 0)
			s.reconcile("hello")
			s.pass(time.Minute)
			s.reconcile("hello")
			if got := s.replicas("hello"); got != 0 {
				s.Errorf("%d replicas, want 0", got)
			}
			s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "ZeroReplicas", "minReplicas 2")
		})
	})
	t.Run("of a workload that an older Function has", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.metrics("hello", 0, 0)
			s.fallAsleep("hello")
			older := newFunction("aaa", func(fn *v1alpha1.Function) { fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "hello"} })
			if err := s.Create(s.Context(), older); err != nil {
				s.Fatal(err)
			}
			s.respec("hello", neverSleep)
			s.reconcile("hello")
			if got := s.replicas("hello"); got != 0 {
				s.Errorf("%d replicas, want 0", got)
			}
		})
	})
}
