package scaler

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// appliedAnnotation is a hash of the HorizontalPodAutoscaler's spec as it was written. The API server fills defaults
// into behavior, so that what stands there can not be compared in full with what is wanted; a member that the
// Function no longer sets is noticed by the hash.
const appliedAnnotation = v1alpha1.Group + "/applied"

// scaleMetrics maps the metrics that fn scales on to their targets: those of requests in the order of the spec, then
// the external ones in theirs.
func scaleMetrics(fn *v1alpha1.Function) (names []string, targets map[string]resource.Quantity) {
	targets = map[string]resource.Quantity{}
	for _, m := range fn.Spec.Metrics {
		switch {
		case m.RequestRate != nil:
			names = append(names, v1alpha1.RequestsPerSecond)
			targets[v1alpha1.RequestsPerSecond] = m.RequestRate.Target
		case m.Concurrency != nil:
			names = append(names, v1alpha1.RequestsInFlight)
			targets[v1alpha1.RequestsInFlight] = m.Concurrency.Target
		}
	}
	for _, m := range fn.ExternalMetrics() {
		names = append(names, m.Name)
		targets[m.Name] = m.Target
	}
	return names, targets
}

// renderHPA is the HorizontalPodAutoscaler of fn, or nil when it scales on nothing. Targets are AverageValue, which
// gives ceil(value / target) whatever the number of ready pods; minReplicas is never 0, as only the scaler writes 0;
// maxReplicas is as b leaves it. The metric itself is never cut, as the controller's tolerance would leave it one short.
func renderHPA(fn *v1alpha1.Function, b bound) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	names, targets := scaleMetrics(fn)
	if len(names) == 0 {
		return nil, nil
	}
	kind, _ := fn.Workload()
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: ownedMeta(fn, fn.OwnedName()),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{
				APIVersion: kind.GroupVersion().String(), Kind: kind.Kind, Name: fn.WorkloadName(),
			},
			MinReplicas: new(max(fn.Spec.Scale.MinReplicas, 1)),
			MaxReplicas: b.most(fn),
			Behavior:    fn.Spec.Scale.Behavior.DeepCopy(),
		},
	}
	if hpa.Spec.Behavior == nil {
		// The controller treats a HorizontalPodAutoscaler without behavior in an older way: it keeps the largest
		// recommendation of the last five minutes, and scales up to it. A single request to a function that has just
		// gone to sleep would bring back all the replicas of its last peak. With a behavior, be it empty and filled
		// with the same defaults, the past only slows scaling down.
		hpa.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
	}
	for _, name := range names {
		hpa.Spec.Metrics = append(hpa.Spec.Metrics, autoscalingv2.MetricSpec{
			Type: autoscalingv2.ObjectMetricSourceType,
			Object: &autoscalingv2.ObjectMetricSource{
				DescribedObject: autoscalingv2.CrossVersionObjectReference{
					APIVersion: v1alpha1.GroupVersion.String(), Kind: "Function", Name: fn.Name,
				},
				Metric: autoscalingv2.MetricIdentifier{Name: name},
				Target: autoscalingv2.MetricTarget{
					Type: autoscalingv2.AverageValueMetricType, AverageValue: new(targets[name]),
				},
			},
		})
	}
	spec, err := json.Marshal(hpa.Spec)
	if err != nil {
		return nil, fmt.Errorf("HorizontalPodAutoscaler %s: %w", hpa.Name, err)
	}
	sum := sha256.Sum256(spec)
	hpa.Annotations = map[string]string{appliedAnnotation: hex.EncodeToString(sum[:8])}
	if b.By != "" {
		hpa.Annotations[boundAnnotation] = b.By
	}
	return hpa, nil
}

// sameHPA tells whether have is what want says, defaults of the API server aside.
func sameHPA(have, want *autoscalingv2.HorizontalPodAutoscaler) bool {
	h, w := &have.Spec, &want.Spec
	return have.Annotations[appliedAnnotation] == want.Annotations[appliedAnnotation] &&
		have.Annotations[boundAnnotation] == want.Annotations[boundAnnotation] &&
		have.Labels[v1alpha1.FunctionLabel] == want.Labels[v1alpha1.FunctionLabel] &&
		h.ScaleTargetRef == w.ScaleTargetRef &&
		ptr.Equal(h.MinReplicas, w.MinReplicas) &&
		h.MaxReplicas == w.MaxReplicas &&
		equality.Semantic.DeepEqual(h.Metrics, w.Metrics) &&
		equality.Semantic.DeepDerivative(w.Behavior, h.Behavior)
}

// ensureHPA makes the function's HorizontalPodAutoscaler what it should be; without a metric to scale on, or beside
// a foreign one, that is gone.
func (r *Reconciler) ensureHPA(ctx context.Context, w *world) error {
	want, err := renderHPA(w.fn, w.bounded)
	if err != nil {
		return err
	}
	if w.foreignHPA != "" || w.loses || w.fn.DeletionTimestamp != nil {
		want = nil
	}
	have := w.hpa
	switch {
	case have != nil && !metav1.IsControlledBy(have, w.fn):
		return nil // somebody else's under our name: foreignHPA or a problem says so
	case want == nil && have == nil:
		return nil
	case want == nil:
		return r.remove(ctx, have)
	case have == nil && w.workload == nil:
		return nil
	case have == nil:
		return r.create(ctx, want)
	case sameHPA(have, want):
		return nil
	}
	update := have.DeepCopy()
	update.Spec = want.Spec
	delete(update.Annotations, boundAnnotation)
	adoptMeta(update, want)
	return r.update(ctx, update)
}
