package scaler

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// asleep makes a story's function sleep, with its pods gone, and deletes it.
func (s *story) deleteAsleep(name string) {
	s.Helper()
	s.metrics(name, 0, 0)
	s.fallAsleep(name)
	s.ready(name)
	s.pass(time.Minute)
	s.reconcile(name)
	if err := s.Delete(s.Context(), s.function(name)); err != nil {
		s.Fatal(err)
	}
	s.writes = nil
}

// wantGone asserts that nothing made for the function is left.
func (s *story) wantGone(name string) {
	s.Helper()
	if fn := s.function(name); fn != nil {
		s.Errorf("the Function is still there, finalizers %v", fn.Finalizers)
	}
	if s.gated(name) != nil || get[discoveryv1.EndpointSlice](s, "sluice-"+name) != nil ||
		get[corev1.Service](s, "sluice-"+name) != nil || get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-"+name) != nil {
		s.Error("something made for the Function is left")
	}
}

// A Function that is deleted asleep is woken first, and the gate stays until a pod is ready.
func TestDeleteAsleep(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", proxied)), func(s *story) {
		s.deleteAsleep("hello")
		if again := s.reconcile("hello").RequeueAfter; again <= 0 || again > time.Minute {
			s.Errorf("look again after %s, want within the activation timeout of 1m", again)
		}
		s.wrote("scale hello 0 -> 1")
		if s.gated("hello") == nil {
			s.Error("the gate left before a pod was ready")
		}
		s.reconcile("hello")
		s.wrote()
		s.ready("hello", "hello-2")
		s.reconcile("hello")
		s.wantGone("hello")
		if got := s.replicas("hello"); got != 1 {
			s.Errorf("%d replicas, want 1", got)
		}
	})
}

func TestDeleteAwake(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", proxied)), func(s *story) {
		s.reconcile("hello")
		if err := s.Delete(s.Context(), s.function("hello")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		s.wantGone("hello")
		s.reconcile("hello") // gone: forgotten
		if len(s.r.records.m) != 0 || len(s.r.poller.tracked) != 0 {
			s.Errorf("remembered: %v, %v", s.r.records.m, s.r.poller.tracked)
		}
	})
}

// No deletion hangs.
func TestDeletionIsBounded(t *testing.T) {
	forbidden := func(obj client.Object) *apierrors.StatusError {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "deployments"}, obj.GetName(), errors.New("not now"))
	}
	t.Run("no pod becomes ready", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.deleteAsleep("hello")
			left := s.reconcile("hello").RequeueAfter
			s.pass(left)
			s.reconcile("hello")
			s.wantGone("hello")
			if diff := cmp.Diff([]string{"DeletedAsleep"}, s.newEvents()); diff != "" {
				s.Errorf("events (-want +got):\n%s", diff)
			}
		})
	})
	t.Run("the workload is gone", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.deleteAsleep("hello")
			if err := s.Delete(s.Context(), get[appsv1.Deployment](s, "hello")); err != nil {
				s.Fatal(err)
			}
			s.reconcile("hello")
			s.wantGone("hello")
		})
	})
	t.Run("the Service is gone", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.deleteAsleep("hello")
			if err := s.Delete(s.Context(), get[corev1.Service](s, "hello")); err != nil {
				s.Fatal(err)
			}
			s.reconcile("hello")
			s.wrote("scale hello 0 -> 1")
			s.pass(time.Minute)
			s.reconcile("hello")
			s.wantGone("hello")
		})
	})
	t.Run("the wake is refused", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.deleteAsleep("hello")
			s.refuse = func(verb string, obj client.Object) error {
				if verb == "scale" {
					return forbidden(obj)
				}
				return nil
			}
			if _, err := s.tryReconcile("hello"); !apierrors.IsForbidden(err) {
				s.Errorf("got %v, want the API's error, to be tried again", err)
			}
			s.pass(time.Minute)
			s.reconcile("hello")
			s.wantGone("hello")
		})
	})
	t.Run("the namespace goes, and with it the gate's slice", func(t *testing.T) {
		inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
			s.deleteAsleep("hello")
			if err := s.Delete(s.Context(), get[discoveryv1.EndpointSlice](s, "sluice-hello.gate")); err != nil {
				s.Fatal(err)
			}
			s.refuse = func(verb string, obj client.Object) error {
				if verb != "create" {
					return nil
				}
				err := forbidden(obj)
				err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
				return err
			}
			s.reconcile("hello")
			s.pass(time.Minute)
			s.reconcile("hello")
			s.wantGone("hello")
		})
	})
}

// A Function made anew under the name of a deleted one starts with an empty memory.
func TestSameNameNewFunction(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.reconcile("hello")
		old := s.function("hello")
		first := s.r.records.of(old)
		next := old.DeepCopy()
		next.UID = types.UID("another")
		if s.r.records.of(next) == first {
			s.Error("the new Function got the record of the old one")
		}
	})
}

// A Function without traffic has neither gate nor finalizer, and its workload is left as it is.
func TestWithoutTraffic(t *testing.T) {
	fn := newFunction("hello", func(fn *v1alpha1.Function) {
		fn.Spec.Traffic = nil
		fn.Spec.Scale.MinReplicas = 1
		fn.Spec.Metrics = nil
	})
	inStory(t, awakeWorld(fn), func(s *story) {
		s.reconcile("hello")
		s.wrote()
		got := s.function("hello")
		if len(got.Finalizers) != 0 || got.Status.Gate != nil {
			s.Errorf("finalizers %v, gate %+v, want none", got.Finalizers, got.Status.Gate)
		}
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "NothingToScaleOn", "spec.metrics")
	})
}
