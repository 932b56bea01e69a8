package scaler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// reasonWaiting says that the metrics of a function are read, but not for long enough to miss any.
const reasonWaiting = "Waiting"

// problem is something that is wrong and makes a condition False. Its message names the field and the remedy.
type problem struct {
	Condition, Reason, Message string
}

func (w *world) problem(condition, reason, format string, args ...any) {
	w.problems = append(w.problems, problem{Condition: condition, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// gateProblem is a problem that keeps the gate away from the function's own Service.
func (w *world) gateProblem(reason, format string, args ...any) {
	w.problem(v1alpha1.ConditionReady, reason, format, args...)
	if w.noGate == "" {
		w.noGate = fmt.Sprintf(format, args...)
	}
}

// first problem of a condition, or nil.
func (w *world) first(condition string) *problem {
	i := slices.IndexFunc(w.problems, func(p problem) bool { return p.Condition == condition })
	if i < 0 {
		return nil
	}
	return &w.problems[i]
}

// conditions are those of the status, made from prev so that the time of the last transition stays true. trackedSince
// is since when the metrics of the function are read.
func conditions(now time.Time, w *world, d decision, samples map[string]sample, trackedSince time.Time,
	prev []metav1.Condition,
) []metav1.Condition {
	next := slices.Clone(prev)
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&next, metav1.Condition{
			Type: kind, Status: status, Reason: reason, Message: message,
			ObservedGeneration: w.fn.Generation, LastTransitionTime: metav1.NewTime(now),
		})
	}
	if p := w.first(v1alpha1.ConditionReady); p != nil {
		set(p.Condition, metav1.ConditionFalse, p.Reason, p.Message)
	} else {
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready", "workload and gate are set up")
	}
	status, reason, message := scalingActive(w, d)
	set(v1alpha1.ConditionScalingActive, status, reason, message)

	status, reason, message = metricsAvailable(now, w.fn, samples, trackedSince)
	switch old := meta.FindStatusCondition(next, v1alpha1.ConditionMetricsAvailable); {
	case w.loses || w.workload == nil:
		status, reason, message = metav1.ConditionUnknown, "NotScaled", "the metrics are not read while Sluice does not scale the workload"
	case d.Phase != v1alpha1.Idle && reason != reasonWaiting:
	case old != nil:
		// What was last known stays while the function sleeps, as metrics are not read then, and until the first values
		// after it woke: neither is a reason to write.
		status, reason, message = old.Status, old.Reason, old.Message
	case d.Phase == v1alpha1.Idle:
		status, reason, message = metav1.ConditionUnknown, "Idle", "the metrics are not read while the function sleeps"
	}
	set(v1alpha1.ConditionMetricsAvailable, status, reason, message)
	return next
}

func scalingActive(w *world, d decision) (status metav1.ConditionStatus, reason, message string) {
	names, _ := scaleMetrics(w.fn)
	p := w.first(v1alpha1.ConditionScalingActive)
	switch {
	case p == nil && (w.loses || w.workload == nil):
		p = w.first(v1alpha1.ConditionReady)
	case p == nil && d.To == 0 && w.fn.Spec.Scale.MinReplicas > 0:
		// The HorizontalPodAutoscaler takes a zero for "hands off".
		remedy := "scale it to 1"
		if w.fn.Spec.Traffic != nil {
			remedy = "send the function a request or " + remedy
		}
		p = &problem{Reason: "ZeroReplicas", Message: fmt.Sprintf("%s is at 0 replicas below spec.scale.minReplicas %d, "+
			"which suspends scaling; %s", w.workloadWords(), w.fn.Spec.Scale.MinReplicas, remedy)}
	case p == nil && len(names) == 0 && !w.fn.MaySleep():
		p = &problem{Reason: "NothingToScaleOn", Message: "spec.metrics is empty and spec.scale.minReplicas above 0; " +
			"set a metric, or minReplicas 0 to let the function sleep"}
	}
	switch {
	case p != nil:
		return metav1.ConditionFalse, p.Reason, p.Message
	case len(names) == 0:
		return metav1.ConditionTrue, "SleepOnly", "spec.metrics is empty: the function only sleeps and wakes"
	}
	message = fmt.Sprintf("HorizontalPodAutoscaler %s scales on %s", w.fn.OwnedName(), strings.Join(names, ", "))
	if w.bounded.Replicas > 0 {
		message += ", bound by " + w.bounded.By
	}
	return metav1.ConditionTrue, "Scaling", message
}

// metricsAvailable says whether every metric of fn has a known value. It is slower to complain than decide is: a value
// may be missing for maxAge, at first or between two polls, before the condition turns.
func metricsAvailable(now time.Time, fn *v1alpha1.Function, samples map[string]sample, trackedSince time.Time) (
	status metav1.ConditionStatus, reason, message string,
) {
	var missing []string
	waiting := false
	for _, name := range required(fn) {
		in := read(now, name, samples)
		if in.Unknown == "" {
			continue
		}
		if age := now.Sub(samples[name].Time); age <= ageLimit(name) && age >= -maxAge && now.Sub(samples[name].Polled) <= maxAge {
			continue
		}
		// Not read yet is not unknown yet: to say so as an Event of every new function would be noise.
		waiting = waiting || now.Sub(trackedSince) < maxAge || in.Unknown == notRead
		missing = append(missing, in.String())
	}
	switch {
	case len(missing) == 0:
		return metav1.ConditionTrue, "MetricsKnown", "every metric has a known value"
	case waiting:
		return metav1.ConditionUnknown, reasonWaiting, "the first values are awaited"
	}
	return metav1.ConditionFalse, "MetricUnknown", strings.Join(missing, "; ") +
		"; nothing is scaled down or put to sleep meanwhile"
}
