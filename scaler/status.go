package scaler

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// materialChange is the part of a value by which it must have moved before the status shows it.
const materialChange = 0.1

// shown are the metrics in the status, in this order.
func shown(fn *v1alpha1.Function) []string {
	var names []string
	if fn.Spec.Traffic != nil {
		names = append(names, v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight)
	}
	return append(names, externalNames(fn)...)
}

// renderStatus is the status after decision d was carried out.
func renderStatus(w *world, rec *record, d decision, samples map[string]sample) *v1alpha1.FunctionStatus {
	prev := &w.fn.Status
	next := prev.DeepCopy()
	next.ObservedGeneration = w.fn.Generation
	next.Phase, next.Replicas = d.Phase, d.To
	ready, _ := w.ready()
	next.ReadyReplicas = int32(min(ready, math.MaxInt32))
	if d.Phase == v1alpha1.Idle {
		// Pods that are still on their way out must not cost another write once they are gone.
		next.ReadyReplicas = 0
	}
	switch {
	case w.fn.Spec.Traffic == nil || (w.gatePort.Gate == 0 && !w.loses):
		next.Gate = nil
	case next.Gate != nil:
		if w.loses {
			next.Gate.Hosts = nil
		}
		next.Gate.InPath = d.Gate && (len(w.activators) > 0 || len(w.gateSlices) > 0)
	}
	if d.Phase == v1alpha1.Idle {
		next.Metrics = withoutValues(w.fn, prev.Metrics)
	} else {
		next.Metrics = metricStatuses(d.Time, w.fn, samples, prev.Metrics)
	}
	if rec.transition != nil {
		next.LastDecision = rec.transition.DeepCopy()
	}
	next.Conditions = conditions(d.Time, w, d, samples, rec.trackedSince, prev.Conditions)
	return next
}

// metricStatuses are the values of the metrics shown: those that are known, and those that the function scales on.
func metricStatuses(now time.Time, fn *v1alpha1.Function, samples map[string]sample, prev []v1alpha1.MetricStatus) []v1alpha1.MetricStatus {
	var all []v1alpha1.MetricStatus
	_, targets := scaleMetrics(fn)
	for _, name := range shown(fn) {
		target, scaled := targets[name]
		if _, ok := samples[name]; !ok {
			// Not read since the scaler started or the function woke: the last known value says when it was true.
			if i := slices.IndexFunc(prev, func(m v1alpha1.MetricStatus) bool { return m.Name == name }); i >= 0 {
				all = append(all, prev[i])
				continue
			}
		}
		m := v1alpha1.MetricStatus{Name: name}
		if in := read(now, name, samples); in.Unknown != "" {
			m.Unknown = in.Unknown
		} else {
			m.Value = shownValue(in.Value)
			m.ObservedAt = new(metav1.NewTime(samples[name].Time))
		}
		if scaled {
			m.Target = new(target)
		}
		if scaled || m.Unknown == "" {
			all = append(all, m)
		}
	}
	return all
}

// withoutValues are the metrics shown of a function that sleeps: none is read, and the last value of a time when it did
// not sleep would be taken for one of now.
func withoutValues(fn *v1alpha1.Function, prev []v1alpha1.MetricStatus) []v1alpha1.MetricStatus {
	var all []v1alpha1.MetricStatus
	_, targets := scaleMetrics(fn)
	for _, name := range shown(fn) {
		m := v1alpha1.MetricStatus{Name: name}
		target, scaled := targets[name]
		if scaled {
			m.Target = new(target)
		}
		if scaled || slices.ContainsFunc(prev, func(p v1alpha1.MetricStatus) bool { return p.Name == name }) {
			all = append(all, m)
		}
	}
	return all
}

// shownValue rounds a value to what a reader can use: whole numbers from 10 on, one decimal below.
func shownValue(v float64) *resource.Quantity {
	milli := int64(math.Round(v)) * 1000
	if v < 10 {
		milli = int64(math.Round(v*10)) * 100
	}
	return resource.NewMilliQuantity(milli, resource.DecimalSI)
}

// isTransition tells whether next says something that has to be written at once.
func isTransition(prev, next *v1alpha1.FunctionStatus) bool {
	if prev.ObservedGeneration != next.ObservedGeneration || prev.Phase != next.Phase || prev.Replicas != next.Replicas ||
		!equality.Semantic.DeepEqual(prev.Gate, next.Gate) || !equality.Semantic.DeepEqual(prev.LastDecision, next.LastDecision) {
		return true
	}
	for _, c := range next.Conditions {
		old := meta.FindStatusCondition(prev.Conditions, c.Type)
		if old == nil || old.Status != c.Status || old.Reason != c.Reason {
			return true
		}
	}
	return false
}

// isMaterial tells whether a value that is shown has moved enough to be written, if it is due.
func isMaterial(prev, next *v1alpha1.FunctionStatus) bool {
	// A function that sleeps has no values, and is not written to for the sake of those that an older status has.
	if prev.ReadyReplicas != next.ReadyReplicas || (next.Phase != v1alpha1.Idle && valuesMoved(prev.Metrics, next.Metrics)) {
		return true
	}
	for _, c := range next.Conditions {
		if old := meta.FindStatusCondition(prev.Conditions, c.Type); old == nil || old.Message != c.Message {
			return true
		}
	}
	return false
}

// valuesMoved tells whether next shows a metric more or less than prev, or a value that moved materially.
func valuesMoved(prev, next []v1alpha1.MetricStatus) bool {
	if len(prev) != len(next) {
		return true
	}
	for i, m := range next {
		old := prev[i]
		if old.Name != m.Name || (old.Value == nil) != (m.Value == nil) || !equality.Semantic.DeepEqual(old.Target, m.Target) {
			return true
		}
		if m.Value != nil && moved(old.Value.AsApproximateFloat64(), m.Value.AsApproximateFloat64()) {
			return true
		}
	}
	return false
}

// moved tells whether a value went from a to b by more than a tenth of the larger, or from or to zero.
func moved(a, b float64) bool {
	return (a == 0) != (b == 0) || math.Abs(a-b) > materialChange*max(math.Abs(a), math.Abs(b))
}

// writeStatus writes the status if it is due, and records Events for conditions that became False.
func (r *Reconciler) writeStatus(ctx context.Context, w *world, rec *record, d decision, samples map[string]sample) error {
	prev := &w.fn.Status
	if d.Transition {
		rec.transition = &v1alpha1.DecisionStatus{
			Time: metav1.NewTime(d.Time), Reason: d.Reason, Message: d.Message(), From: d.From, To: d.To,
		}
	}
	next := renderStatus(w, rec, d, samples)
	due := d.Time.Sub(rec.statusAt) >= statusInterval && isMaterial(prev, next)
	if !due && !isTransition(prev, next) {
		return nil
	}
	var failed []metav1.Condition
	for _, c := range next.Conditions {
		old := meta.FindStatusCondition(prev.Conditions, c.Type)
		if c.Status == metav1.ConditionFalse && (old == nil || old.Status != c.Status || old.Reason != c.Reason) {
			failed = append(failed, c)
		}
	}
	if err := r.patchStatus(ctx, w.fn, rec, next); err != nil {
		return err
	}
	rec.transition = nil
	for _, c := range failed {
		r.event(w.fn, corev1.EventTypeWarning, c.Reason, "Reconcile", c.Message)
	}
	return nil
}

// patchStatus writes next as the status of fn, which has it then.
func (r *Reconciler) patchStatus(ctx context.Context, fn *v1alpha1.Function, rec *record, next *v1alpha1.FunctionStatus) error {
	written := fn.DeepCopy()
	written.Status = *next
	err := r.Status().Patch(ctx, written, client.MergeFrom(fn))
	if apierrors.IsNotFound(err) {
		return nil // the Function is gone, and nobody reads its status
	}
	if err != nil {
		return fmt.Errorf("status of function %s: %w", fn.Key(), err)
	}
	fn.Status = *next.DeepCopy()
	fn.ResourceVersion = written.ResourceVersion
	rec.status, rec.statusVersion, rec.statusAt = next, written.ResourceVersion, time.Now()
	return nil
}
