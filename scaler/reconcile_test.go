package scaler

import (
	"context"
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
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// fallAsleep takes an awake function through the whole order.
func (s *story) fallAsleep(name string) {
	s.Helper()
	s.reconcile(name)
	s.pass(s.function(name).IdleAfter())
	s.metrics(name, s.function(name).IdleAfter(), 0)
	s.reconcile(name) // the gate joins
	s.reconcile(name) // the proof begins
	s.proofs <- nil
	s.reconcile(name) // grace
	s.pass(2 * time.Second)
	s.metrics(name, s.function(name).IdleAfter()+2*time.Second, 0)
	s.reconcile(name)
	if got := s.replicas(name); got != 0 {
		s.Fatalf("%s did not fall asleep: %d replicas, last decision %+v", name, got, s.function(name).Status.LastDecision)
	}
	s.writes = nil
	s.newEvents()
}

func TestNewFunctionIsSetUp(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 3)
		s.reconcile("hello")

		fn := s.function("hello")
		if !controllerutil.ContainsFinalizer(fn, v1alpha1.Finalizer) {
			s.Error("no finalizer")
		}
		want := v1alpha1.FunctionStatus{
			ObservedGeneration: 1, Phase: v1alpha1.Active, Replicas: 1, ReadyReplicas: 1,
			Gate: &v1alpha1.GateStatus{Port: 20000, ServicePort: "http", AppProtocol: "http"},
		}
		got := *fn.Status.DeepCopy()
		got.Conditions, got.Metrics = nil, nil
		if diff := cmp.Diff(want, got); diff != "" {
			s.Errorf("status (-want +got):\n%s", diff)
		}
		if m := fn.Status.Metrics; len(m) != 2 || m[0].Name != "requests_per_second" || m[0].Value.String() != "3" ||
			m[0].Target.String() != "50" || m[0].ObservedAt == nil || m[1].Name != "requests_in_flight" || m[1].Target != nil {
			s.Errorf("metrics: got %+v", m)
		}
		for kind, reason := range map[string]string{"Ready": "Ready", "MetricsAvailable": "MetricsKnown", "ScalingActive": "Scaling"} {
			s.wantCondition("hello", kind, metav1.ConditionTrue, reason)
		}
		hpa := get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-hello")
		if hpa == nil || *hpa.Spec.MinReplicas != 1 || hpa.Spec.MaxReplicas != 10 || !metav1.IsControlledBy(hpa, fn) {
			s.Errorf("HorizontalPodAutoscaler: got %+v", hpa)
		}
		if got := s.gated("hello"); got != nil {
			s.Errorf("the gate is in the path of a function that is awake: %v", got)
		}
		s.wrote("create *v2.HorizontalPodAutoscaler sluice-hello")

		// All is as it should be: looking again writes nothing.
		s.metrics("hello", 0, 3)
		s.reconcile("hello")
		s.wroteNothing()
	})
}

func TestFunctionSleepsAndWakes(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 3)
		s.reconcile("hello")
		s.writes = nil

		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.wrote("create *v1.EndpointSlice sluice-hello.gate")
		if diff := cmp.Diff([]string{"10.244.0.5", "10.244.0.6"}, s.gated("hello")); diff != "" {
			s.Errorf("gate (-want +got):\n%s", diff)
		}
		if st := s.function("hello").Status; st.Phase != v1alpha1.Active || !st.Gate.InPath || st.LastDecision.Reason != "GoingToSleep" {
			s.Errorf("status while going to sleep: %+v", st)
		}

		s.reconcile("hello")
		s.reconcile("hello")
		if got := s.replicas("hello"); got != 1 {
			s.Fatalf("%d replicas before the proof", got)
		}
		s.proofs <- nil
		if again := s.reconcile("hello").RequeueAfter; again > time.Second || again <= 0 {
			s.Errorf("in the grace: look again after %s, want about 1s", again)
		}
		s.pass(time.Second)
		s.reconcile("hello")
		if got := s.replicas("hello"); got != 1 {
			s.Fatalf("%d replicas before a sample from after the gate joined", got)
		}
		s.wrote()
		s.metrics("hello", 11*time.Second, 0)
		s.reconcile("hello")
		s.wrote("scale hello 1 -> 0")
		st := s.function("hello").Status
		if st.Phase != v1alpha1.Idle || st.Replicas != 0 || st.ReadyReplicas != 0 || st.LastDecision.Reason != "Sleeping" ||
			st.LastDecision.From != 1 || st.LastDecision.To != 0 {
			s.Errorf("status asleep: %+v", st)
		}
		if diff := cmp.Diff([]string{"Sleeping"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}

		// Idle is free.
		s.ready("hello")
		for range 20 {
			s.pass(time.Hour)
			if again := s.reconcile("hello").RequeueAfter; again != 0 {
				s.Errorf("asleep, but to be looked at again after %s", again)
			}
		}
		s.wroteNothing()

		// The activator wakes it; the gate leaves when a pod is ready.
		s.scale("hello", 2)
		s.reconcile("hello")
		if st := s.function("hello").Status; st.Phase != v1alpha1.Waking || st.Replicas != 2 || !st.Gate.InPath {
			s.Errorf("status waking: %+v", st)
		}
		s.wrote()
		s.ready("hello", "hello-2")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate")
		if st := s.function("hello").Status; st.Phase != v1alpha1.Active || st.ReadyReplicas != 1 || st.Gate.InPath {
			s.Errorf("status awake: %+v", st)
		}
		if diff := cmp.Diff([]string{"Woken"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

// The cache shows the own scale to zero only after a while. Until then the function must not seem to wake, or the gate
// would leave while the last pods go.
func TestStaleCacheIsNoWake(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		before := get[appsv1.Deployment](s, "hello")
		s.fallAsleep("hello")

		s.stale = before
		if again := s.reconcile("hello").RequeueAfter; again <= 0 {
			s.Error("not to be looked at again")
		}
		s.wroteNothing()
		if s.gated("hello") == nil {
			s.Error("the gate left")
		}
		s.stale = nil
		s.reconcile("hello")
		s.wroteNothing()
	})
}

// Somebody scales up in the moment of the write: they win, and the function stays awake.
func TestConcurrentScaleUpWins(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.pass(2 * time.Second)
		s.metrics("hello", 12*time.Second, 0)
		s.stale = get[appsv1.Deployment](s, "hello")
		s.scale("hello", 3)
		if again := s.reconcile("hello").RequeueAfter; again != soon {
			s.Errorf("look again after %s, want %s", again, soon)
		}
		if got := s.replicas("hello"); got != 3 {
			s.Errorf("%d replicas, want the 3 of whoever scaled up", got)
		}
		if r := s.function("hello").Status.LastDecision.Reason; r != "GoingToSleep" {
			s.Errorf("last decision %s, although nothing was done", r)
		}
		s.stale = nil
		s.reconcile("hello")
		if got := s.gated("hello"); got != nil || s.replicas("hello") != 3 {
			s.Errorf("gate %v, %d replicas, want the gate out and 3", got, s.replicas("hello"))
		}
		if diff := cmp.Diff([]string{"SleepAborted"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestScaleThatIsForbidden(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.refuse = func(verb string, obj client.Object) error {
			if verb == "scale" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "deployments/scale"}, obj.GetName(), errors.New("no"))
			}
			return nil
		}
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.pass(2 * time.Second)
		s.metrics("hello", 12*time.Second, 0)
		if _, err := s.tryReconcile("hello"); !apierrors.IsForbidden(err) {
			s.Errorf("got %v, want the API's error, to be tried again", err)
		}
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "WriteFailed", "Sleeping failed", "forbidden")
		if st := s.function("hello").Status; st.Phase != v1alpha1.Active || st.Replicas != 1 || s.gated("hello") == nil {
			s.Errorf("status %+v, gate %v: want it awake with the gate in the path", st, s.gated("hello"))
		}
	})
}

// The data path is not proven: the function stays awake, and a condition says why and what to look at.
func TestUnprovenPath(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- errors.New("64 connections to 10.96.0.10:80 did not reach the gate")
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "GateUnproven", "64 connections", "NetworkPolicies")
		if s.replicas("hello") != 1 || s.gated("hello") != nil {
			s.Errorf("%d replicas, gate %v, want 1 and no gate", s.replicas("hello"), s.gated("hello"))
		}
		// The next attempt succeeds, and the condition is gone.
		s.pass(firstBackOff)
		s.metrics("hello", 20*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionTrue, "Ready")
	})
}

// After a restart an idle function is left alone, whatever the new scaler does not know.
func TestRestartWritesNothing(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", proxied)), func(s *story) {
		s.metrics("hello", 0, 0)
		s.fallAsleep("hello")
		s.ready("hello")
		s.reconcile("hello")
		s.writes = nil
		s.restart()
		s.pass(time.Hour)
		s.reconcile("hello")
		s.wroteNothing()
	})
}

// A status is written at most every 15 s for its values alone, and only if one moved by more than a tenth.
func TestStatusIsWrittenSparingly(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		rate := func() string { return s.function("hello").Status.Metrics[0].Value.String() }
		s.metrics("hello", 0, 100)
		s.reconcile("hello")
		s.writes = nil
		for range 7 { // 14 s
			s.pass(2 * time.Second)
			s.metrics("hello", 0, 200)
			s.reconcile("hello")
		}
		s.wroteNothing()
		s.pass(time.Second)
		s.metrics("hello", 0, 200)
		s.reconcile("hello")
		if len(s.writes) != 1 || rate() != "200" {
			s.Errorf("after 15 s: writes %q, shown %s, want one write and 200", s.writes, rate())
		}
		s.writes = nil
		s.pass(time.Minute)
		s.metrics("hello", 0, 215)
		s.reconcile("hello")
		s.wroteNothing()
		s.metrics("hello", 0, 0.001)
		s.reconcile("hello")
		if len(s.writes) != 1 || rate() != "0" {
			s.Errorf("almost to zero: writes %q, shown %s", s.writes, rate())
		}
	})
}

func TestUnknownMetricsAreACondition(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.reconcile("hello")
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionUnknown, "Waiting")
		// Not read is not known to be missing, however long it takes.
		s.pass(maxAge + time.Second)
		s.reconcile("hello")
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionUnknown, "Waiting")
		if got := s.newEvents(); len(got) != 0 {
			s.Errorf("events %v, want none", got)
		}
		s.unknown("hello", "no activator was scraped")
		s.reconcile("hello")
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionFalse, "MetricUnknown", "idle_seconds unknown: no activator was scraped")
		s.metrics("hello", 0, 1)
		s.reconcile("hello")
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionTrue, "MetricsKnown")
		if diff := cmp.Diff([]string{"MetricUnknown"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func proxied(fn *v1alpha1.Function) {
	fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied}
}

func TestProxied(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", proxied)), func(s *story) {
		s.reconcile("hello")
		s.wrote("create *v2.HorizontalPodAutoscaler sluice-hello", "create *v1.Service sluice-hello", "create *v1.EndpointSlice sluice-hello")
		service := get[corev1.Service](s, "sluice-hello")
		want := []corev1.ServicePort{{
			Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, AppProtocol: new("http"), TargetPort: intstr.FromInt32(20000),
		}}
		if diff := cmp.Diff(want, service.Spec.Ports); diff != "" || service.Spec.Selector != nil {
			s.Errorf("ports (-want +got):\n%s\nselector %v, want none", diff, service.Spec.Selector)
		}
		slice := get[discoveryv1.EndpointSlice](s, "sluice-hello")
		if slice.Labels[discoveryv1.LabelServiceName] != "sluice-hello" || !v1alpha1.IsGateSlice(slice) ||
			*slice.Ports[0].Port != 20000 || len(addresses(slice)) != 2 {
			s.Errorf("slice: got %+v", slice)
		}
		s.reconcile("hello")
		s.wrote()

		// A user meddles with the Service: it is mended.
		change(s, "sluice-hello", func(service *corev1.Service) { service.Spec.Ports[0].Port = 81 })
		s.reconcile("hello")
		s.wrote("update *v1.Service sluice-hello")

		// The port of the own Service gets another name and number: the name stays, by which kube-proxy finds the endpoints.
		change(s, "hello", func(service *corev1.Service) { service.Spec.Ports[0].Name, service.Spec.Ports[0].Port = "web", 82 })
		s.reconcile("hello")
		s.wrote("update *v1.Service sluice-hello")
		if p := get[corev1.Service](s, "sluice-hello").Spec.Ports[0]; p.Name != "http" || p.Port != 82 {
			s.Errorf("port %q %d, want http 82", p.Name, p.Port)
		}

		// To Direct: the Service stays, and is looked after, for clients that have its address.
		s.newEvents()
		change(s, "hello", func(fn *v1alpha1.Function) { fn.Spec = newFunction("hello").Spec })
		s.reconcile("hello")
		s.reconcile("hello")
		s.wrote()
		if diff := cmp.Diff([]string{"ServiceKept"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
		change(s, "sluice-hello", func(service *corev1.Service) { service.Spec.Ports[0].Port = 81 })
		s.reconcile("hello")
		s.wrote("update *v1.Service sluice-hello")

		// Once somebody deletes it, it is gone.
		if err := s.Delete(s.Context(), get[corev1.Service](s, "sluice-hello")); err != nil {
			s.Fatal(err)
		}
		s.writes = nil
		s.reconcile("hello")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello")
	})
	inStory(t, awakeWorld(newFunction("hello", proxied)), func(s *story) {
		s.reconcile("hello")
		s.writes = nil
		// Without traffic there is no gate.
		change(s, "hello", func(fn *v1alpha1.Function) { fn.Spec.Traffic, fn.Spec.Metrics, fn.Spec.Scale.MinReplicas = nil, nil, 1 })
		s.reconcile("hello")
		s.wrote("delete *v2.HorizontalPodAutoscaler sluice-hello", "delete *v1.EndpointSlice sluice-hello", "delete *v1.Service sluice-hello")
	})
}

// A Function without metrics only sleeps and wakes; the HorizontalPodAutoscaler of earlier ones goes.
func TestMetricsRemoved(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.reconcile("hello")
		s.writes = nil
		change(s, "hello", func(fn *v1alpha1.Function) { fn.Spec.Metrics = nil })
		s.reconcile("hello")
		s.wrote("delete *v2.HorizontalPodAutoscaler sluice-hello")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionTrue, "SleepOnly")
	})
}

// One function's slow proof delays no other.
func TestSlowProofDelaysNobody(t *testing.T) {
	objects := awakeWorld(newFunction("hello"))
	objects = append(objects, awakeWorld(newFunction("other"))[:4]...)
	inStory(t, objects, func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello") // its proof is under way, and does not end
		start := time.Now()
		s.fallAsleepAround("other")
		if s.replicas("hello") != 1 || s.replicas("other") != 0 {
			s.Errorf("hello %d, other %d replicas, want 1 and 0", s.replicas("hello"), s.replicas("other"))
		}
		if took := time.Since(start); took > 15*time.Second {
			s.Errorf("other took %s", took)
		}
	})
}

// fallAsleepAround is fallAsleep while a proof of another function is under way: both wait for a result, and as it is
// not told whose comes first, the other function's gets a result too, which is no proof.
func (s *story) fallAsleepAround(name string) {
	s.Helper()
	s.r.proofs.prover = proveOnly(name)
	s.reconcile(name)
	s.pass(10 * time.Second)
	s.metrics(name, 10*time.Second, 0)
	s.reconcile(name)
	s.reconcile(name)
	s.reconcile(name)
	s.pass(2 * time.Second)
	s.metrics(name, 12*time.Second, 0)
	s.reconcile(name)
}

// proveOnly proves the path of one function at once, and no other.
type proveOnly string

func (p proveOnly) Prove(ctx context.Context, path Path) error {
	if path.Function.Name == string(p) {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}
