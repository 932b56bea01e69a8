//go:build integration

package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// TestWakeByValue is a StatefulSet behind a queue, without traffic: it costs no write while it sleeps, is woken by what
// comes into the queue, and scaled by its HorizontalPodAutoscaler. Asleep here is a zero that the test writes, as without a
// node no pod is ever ready; that is not Sluice's to undo when the Function goes.
func TestWakeByValue(t *testing.T) {
	const name = "drains"
	w := newWorld(t)
	w.create(t, &corev1.Secret{
		ObjectMeta: types("default", "prometheus"), StringData: map[string]string{"username": "sluice", "password": "open"},
	})
	if out, err := w.kubectl("-n", "default", "create", "rolebinding", "sluice-adapter-secrets",
		"--clusterrole=sluice-adapter-secrets", "--serviceaccount=sluice-system:sluice-adapter"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.sleepingSet(t, name)
	fn := function(name)
	fn.Spec.Traffic = nil
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Kind: "StatefulSet", Name: name}
	fn.Spec.Metrics = []v1alpha1.Metric{{Prometheus: &v1alpha1.PrometheusMetric{
		Name: "depth", Server: w.prometheus, Query: "3", Target: resource.MustParse("20"), Activation: new(resource.MustParse("3")),
		AuthRef: &v1alpha1.SecretRef{Name: "prometheus"},
	}}}
	w.create(t, fn)
	w.awaitPhase(t, name, v1alpha1.Idle)
	eventually(t, 60*time.Second, "the depth to be served", func(ctx context.Context) string {
		if got, err := w.metric(ctx, "v1beta2", name, "depth"); err != nil || got != 3 {
			return fmt.Sprintf("depth is %v (%v)", got, err)
		}
		return ""
	})
	before := w.version(t, name)
	idle, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	<-idle.Done()
	if after := w.version(t, name); after != before {
		t.Error("a sleeping function was written to")
	}
	if n := w.sets(t.Context(), t, name); n != 0 {
		t.Fatalf("%d replicas at the activation; want 0", n)
	}

	w.ask(t, name, "45")
	eventually(t, 15*time.Second, "the queue to wake it", func(ctx context.Context) string {
		if n := w.sets(ctx, t, name); n != 3 { // ceil(45 / 20)
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
	w.awaitPhase(t, name, v1alpha1.Waking)
	var hpa autoscalingv2.HorizontalPodAutoscaler
	if err := w.client.Get(t.Context(), key("sluice-"+name), &hpa); err != nil || hpa.Spec.ScaleTargetRef.Kind != "StatefulSet" {
		t.Errorf("HorizontalPodAutoscaler of %+v (%v)", hpa.Spec.ScaleTargetRef, err)
	}
	w.ask(t, name, "75")
	eventually(t, 60*time.Second, "its HorizontalPodAutoscaler to scale it", func(ctx context.Context) string {
		if n := w.sets(ctx, t, name); n != 4 { // ceil(75 / 20)
			return fmt.Sprintf("%d replicas; the HPAs say %s", n, w.hpaConditions(ctx))
		}
		return ""
	})

	w.ask(t, name, "0")
	eventually(t, 60*time.Second, "an empty queue to be served", func(ctx context.Context) string {
		if depth, err := w.metric(ctx, "v1beta2", name, "depth"); err != nil || depth != 0 {
			return fmt.Sprintf("depth is %v (%v)", depth, err)
		}
		return ""
	})
	// Scaled to zero again until that stays: the scaler may have read the last depth a moment before.
	eventually(t, 30*time.Second, "a zero by hand to stay", func(ctx context.Context) string {
		if out, err := w.kubectl("-n", "default", "scale", "statefulset", name, "--replicas=0"); err != nil {
			return out
		}
		var got v1alpha1.Function
		if err := w.client.Get(ctx, key(name), &got); err != nil || got.Status.Phase != v1alpha1.Idle {
			return fmt.Sprintf("phase %s (%v)", got.Status.Phase, err)
		}
		if n := w.sets(ctx, t, name); n != 0 {
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
	if err := w.client.Delete(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "the Function to go", func(ctx context.Context) string {
		if err := w.client.Get(ctx, key(name), &v1alpha1.Function{}); err == nil {
			return "it is still there"
		}
		return ""
	})
	if n := w.sets(t.Context(), t, name); n != 0 {
		t.Errorf("%d replicas: the deletion has undone a zero by hand", n)
	}
}

// ask gives the function's metric another query.
func (w *world) ask(t *testing.T, name, query string) {
	t.Helper()
	eventually(t, 10*time.Second, "the query to be written", func(ctx context.Context) string {
		var fn v1alpha1.Function
		if err := w.client.Get(ctx, key(name), &fn); err != nil {
			return err.Error()
		}
		fn.Spec.Metrics[0].Prometheus.Query = query
		if err := w.client.Update(ctx, &fn); err != nil {
			return err.Error()
		}
		return ""
	})
}

// sleepingSet creates a StatefulSet at zero.
func (w *world) sleepingSet(t *testing.T, name string) {
	t.Helper()
	labels, none := map[string]string{"app": name}, int32(0)
	w.create(t, &appsv1.StatefulSet{
		ObjectMeta: types("default", name),
		Spec: appsv1.StatefulSetSpec{
			Replicas: &none,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "function", Image: "function"}}},
			},
		},
	})
}

// sets are the replicas of a StatefulSet.
func (w *world) sets(ctx context.Context, t *testing.T, name string) int32 {
	t.Helper()
	var s appsv1.StatefulSet
	if err := w.client.Get(ctx, key(name), &s); err != nil {
		t.Fatal(err)
	}
	return *s.Spec.Replicas
}
