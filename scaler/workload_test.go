package scaler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// onSet makes a StatefulSet of the Function's own name its workload.
func onSet(fn *v1alpha1.Function) {
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: fn.Name}
}

func newStatefulSet(name string, replicas int32) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("statefulset-" + name)},
		Spec:       appsv1.StatefulSetSpec{Replicas: &replicas},
	}
}

// setWorld is a function on a StatefulSet with one ready pod, and a Deployment of the same name that is not its.
func setWorld(more ...client.Object) []client.Object {
	return awakeWorld(newFunction("hello", onSet), append(more, newStatefulSet("hello", 1))...)
}

// A StatefulSet sleeps and wakes like a Deployment, and a Deployment of its name is left alone.
func TestStatefulSetSleepsAndWakes(t *testing.T) {
	inStory(t, setWorld(), func(s *story) {
		s.metrics("hello", 0, 0)
		s.reconcile("hello")
		want := autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "hello"}
		if diff := cmp.Diff(want, get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-hello").Spec.ScaleTargetRef); diff != "" {
			s.Errorf("scaleTargetRef (-want +got):\n%s", diff)
		}
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.pass(2 * time.Second)
		s.metrics("hello", 12*time.Second, 0)
		s.writes = nil
		s.reconcile("hello")
		s.wrote("scale hello 1 -> 0")
		if got := *get[appsv1.StatefulSet](s, "hello").Spec.Replicas; got != 0 {
			s.Errorf("StatefulSet: %d replicas, want 0", got)
		}
		if got := s.replicas("hello"); got != 1 {
			s.Errorf("Deployment: %d replicas, want the 1 it had", got)
		}
		change(s, "hello", func(set *appsv1.StatefulSet) { set.Spec.Replicas = ptr.To[int32](2) })
		s.reconcile("hello")
		s.ready("hello", "hello-0")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate")
		if st := s.function("hello").Status; st.Phase != v1alpha1.Active || st.Replicas != 2 {
			s.Errorf("status awake: %+v", st)
		}
	})
}

func TestStatefulSetThatIsMissing(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", onSet)), func(s *story) {
		s.pass(s.reconcile("hello").RequeueAfter)
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "WorkloadMissing",
			"spec.workloadRef: StatefulSet default/hello does not exist; create it or correct the name")
	})
}

// Kinds have names of their own: a Deployment and a StatefulSet of one name are two workloads, to Functions as well as
// to HorizontalPodAutoscalers.
func TestWorkloadsOfOneName(t *testing.T) {
	other := newFunction("aaa", func(fn *v1alpha1.Function) {
		fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Kind: "Deployment", Name: "hello"}
		fn.Spec.Traffic.Service.Name = "aaa"
	})
	hpaOn := func(kind string) *autoscalingv2.HorizontalPodAutoscaler {
		return &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "on-" + kind},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: kind, Name: "hello"},
			},
		}
	}
	inStory(t, setWorld(other, newService("aaa"), hpaOn("Deployment")), func(s *story) {
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionTrue, "Ready")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionTrue, "Scaling")
		if err := s.Create(s.Context(), hpaOn("StatefulSet")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "ForeignHPA", "on-StatefulSet", "StatefulSet default/hello")

		for _, tt := range []struct {
			obj  client.Object
			of   func(*story, client.Object) []reconcile.Request
			want string
		}{
			{newDeployment("hello", 1), ofWorkload, "aaa"},
			{newStatefulSet("hello", 1), ofWorkload, "hello"},
			{hpaOn("Deployment"), ofHPA, "aaa"},
			{hpaOn("StatefulSet"), ofHPA, "hello"},
		} {
			if got := tt.of(s, tt.obj); len(got) != 1 || got[0].Name != tt.want {
				s.Errorf("%T %s concerns %v, want %s", tt.obj, tt.obj.GetName(), got, tt.want)
			}
		}
	})
}

func ofWorkload(s *story, obj client.Object) []reconcile.Request {
	return s.r.ofWorkload(s.Context(), obj)
}
func ofHPA(s *story, obj client.Object) []reconcile.Request { return s.r.ofHPA(s.Context(), obj) }

// The cache holds the workloads of the whole cluster, and of each what is read.
func TestStripWorkload(t *testing.T) {
	meta := metav1.ObjectMeta{
		Namespace: "default", Name: "hello", UID: "u", ResourceVersion: "7",
		Annotations: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
	template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	bare := metav1.ObjectMeta{Namespace: "default", Name: "hello", UID: "u", ResourceVersion: "7"}
	for _, tt := range []struct{ whole, want client.Object }{
		{
			&appsv1.Deployment{
				ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](3), Template: template},
				Status: appsv1.DeploymentStatus{ReadyReplicas: 2, Conditions: []appsv1.DeploymentCondition{{Type: "Available"}}},
			},
			&appsv1.Deployment{
				ObjectMeta: bare, Spec: appsv1.DeploymentSpec{Replicas: ptr.To[int32](3)},
				Status: appsv1.DeploymentStatus{ReadyReplicas: 2},
			},
		},
		{
			&appsv1.StatefulSet{
				ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](3), Template: template, ServiceName: "hello"},
				Status: appsv1.StatefulSetStatus{ReadyReplicas: 2, CurrentRevision: "hello-1"},
			},
			&appsv1.StatefulSet{
				ObjectMeta: bare, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](3)},
				Status: appsv1.StatefulSetStatus{ReadyReplicas: 2},
			},
		},
	} {
		got, err := stripWorkload(tt.whole)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if w := newWorkload(tt.want); w.Replicas != 3 || w.Ready != 2 {
			t.Errorf("read %+v, want 3 replicas and 2 ready", w)
		}
	}
	if w := newWorkload(&appsv1.StatefulSet{}); w.Replicas != 1 {
		t.Errorf("without spec.replicas: %d, want 1", w.Replicas)
	}
}
