package world

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Gated makes a function of mode Proxied without a pod, which the activators are to serve at the gate port. It holds
// maxHeld requests at most.
func (w *World) Gated(ctx context.Context, name string, port, maxHeld int32) error {
	objects := function(name, 0, v1alpha1.Traffic{Mode: v1alpha1.Proxied})
	fn, ok := objects[0].(*v1alpha1.Function)
	if !ok {
		return fmt.Errorf("%T is no Function", objects[0])
	}
	fn.Spec.Activation = v1alpha1.Activation{MaxHeld: maxHeld, Timeout: &metav1.Duration{Duration: 5 * time.Minute}}
	if err := w.create(ctx, objects...); err != nil {
		return err
	}
	fn.Status.Gate = &v1alpha1.GateStatus{Port: port, ServicePort: "http"}
	if err := w.client.Status().Update(ctx, fn); err != nil {
		return fmt.Errorf("gate of %s: %w", name, err)
	}
	return nil
}

// Scale is a bare write of a workload's scale, as an activator does it.
func (w *World) Scale(ctx context.Context, name string, replicas int32) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name}}
	return w.client.SubResource("scale").Patch(ctx, d, client.RawPatch(types.JSONPatchType, v1alpha1.WakePatch(replicas)))
}

// PodReady gives the function a pod, which is ready.
func (w *World) PodReady(ctx context.Context, name string, pod netip.AddrPort) error {
	return w.create(ctx, endpointSlice(Namespace, name, name+"-pods", "http", []netip.AddrPort{pod}))
}

// PodProbed gives the function a pod that has an address, is not ready, and becomes so when what listens there answers its
// readiness probe.
func (w *World) PodProbed(ctx context.Context, name string, at netip.AddrPort) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name + "-pod", Labels: labels(name)},
		Spec:       podSpec(),
	}
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
		HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(int32(at.Port()))},
	}}
	if err := w.create(ctx, pod); err != nil {
		return err
	}
	ip := at.Addr().String()
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	if err := w.client.Status().Update(ctx, pod); err != nil {
		return fmt.Errorf("address of pod %s: %w", pod.Name, err)
	}
	slice := endpointSlice(Namespace, name, name+"-pods", "http", []netip.AddrPort{at})
	slice.Endpoints[0].Conditions.Ready = new(false)
	slice.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: Namespace, Name: pod.Name, UID: pod.UID}
	return w.create(ctx, slice)
}

// Written tells how many replicas the function's workload is to have, and how often its spec was written since it was
// made.
func (w *World) Written(ctx context.Context, name string) (replicas int32, writes int64, err error) {
	var d appsv1.Deployment
	if err := w.client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: name}, &d); err != nil {
		return 0, 0, err
	}
	return *d.Spec.Replicas, d.Generation - 1, nil
}

// AuditLog is the path of the API server's log of writes; see cluster.Cluster.AuditLog.
func (w *World) AuditLog() string { return w.cluster.AuditLog() }
