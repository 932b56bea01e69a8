package scaler

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// workload is what a function runs as. Object is of one of workloadKinds, and stripped: it must never be written. Only
// its scale is, by a patch of its own.
type workload struct {
	client.Object
	// Replicas that it asks for, and how many of its pods are ready.
	Replicas, Ready int32
}

// workloadKinds are an empty object of each kind that the CRD admits as a workload. The scaler watches them all.
func workloadKinds() []client.Object {
	return []client.Object{&appsv1.Deployment{}, &appsv1.StatefulSet{}}
}

// emptyWorkload is an object to read a workload of kind into.
func emptyWorkload(kind string) client.Object {
	for _, obj := range workloadKinds() {
		if workloadKind(obj) == kind {
			return obj
		}
	}
	return &appsv1.Deployment{}
}

// workloadKind names the kind of one of workloadKinds. Objects from a cache do not say it themselves.
func workloadKind(obj client.Object) string {
	if _, ok := obj.(*appsv1.StatefulSet); ok {
		return "StatefulSet"
	}
	return "Deployment"
}

// newWorkload reads obj. Without spec.replicas a workload asks for one.
func newWorkload(obj client.Object) *workload {
	w := &workload{Object: obj}
	switch o := obj.(type) {
	case *appsv1.Deployment:
		w.Replicas, w.Ready = ptr.Deref(o.Spec.Replicas, 1), o.Status.ReadyReplicas
	case *appsv1.StatefulSet:
		w.Replicas, w.Ready = ptr.Deref(o.Spec.Replicas, 1), o.Status.ReadyReplicas
	}
	return w
}

// stripWorkload keeps of a workload what newWorkload reads, as the cache holds those of the whole cluster.
func stripWorkload(obj any) (any, error) {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		o.ManagedFields, o.Annotations = nil, nil
		o.Spec = appsv1.DeploymentSpec{Replicas: o.Spec.Replicas}
		o.Status = appsv1.DeploymentStatus{ReadyReplicas: o.Status.ReadyReplicas}
	case *appsv1.StatefulSet:
		o.ManagedFields, o.Annotations = nil, nil
		o.Spec = appsv1.StatefulSetSpec{Replicas: o.Spec.Replicas}
		o.Status = appsv1.StatefulSetStatus{ReadyReplicas: o.Status.ReadyReplicas}
	}
	return obj, nil
}

// workloadIndex is the value under which indexWorkload finds the Functions of a workload. No kind has a slash in it.
func workloadIndex(kind, name string) string { return kind + "/" + name }

// workloadIndexOf is that value of the workload of fn.
func workloadIndexOf(fn *v1alpha1.Function) string {
	kind, _ := fn.Workload()
	return workloadIndex(kind.Kind, fn.WorkloadName())
}

// workloadWords names the workload for people: "Deployment default/hello".
func (w *world) workloadWords() string {
	kind, _ := w.fn.Workload()
	return fmt.Sprintf("%s %s", kind.Kind, w.fullName(w.fn.WorkloadName()))
}
