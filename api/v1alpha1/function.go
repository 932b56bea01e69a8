package v1alpha1

import (
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Key identifies the Function.
func (f *Function) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: f.Namespace, Name: f.Name}
}

// WorkloadName is the name of the workload that is scaled.
func (f *Function) WorkloadName() string {
	if f.Spec.WorkloadRef != nil {
		return f.Spec.WorkloadRef.Name
	}
	return f.Name
}

// Workload is the kind of the workload that is scaled and the resource of that kind.
func (f *Function) Workload() (schema.GroupVersionKind, schema.GroupResource) {
	kind := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	if ref := f.Spec.WorkloadRef; ref != nil && ref.Kind != "" {
		kind.Kind = ref.Kind
	}
	// The CRD admits Deployments and StatefulSets alone.
	return kind, schema.GroupResource{Group: kind.Group, Resource: strings.ToLower(kind.Kind) + "s"}
}

// ServiceName is the name of the function's own Service, or "" when requests do not come over HTTP.
func (f *Function) ServiceName() string {
	switch {
	case f.Spec.Traffic == nil:
		return ""
	case f.Spec.Traffic.Service.Name != "":
		return f.Spec.Traffic.Service.Name
	default:
		return f.Name
	}
}

// OwnedName is the name of what Sluice makes for the function: its HorizontalPodAutoscaler and, in mode Proxied, the
// Service through the gate. It is never the bare name of the function, which the workload's own tools may use.
func (f *Function) OwnedName() string { return "sluice-" + f.Name }

// IsProxied tells whether the gate is always in the path of the function's Service sluice-<name>.
func (f *Function) IsProxied() bool { return f.Spec.Traffic != nil && f.Spec.Traffic.Mode == Proxied }

// WantsHost tells whether the spec asks for host at the shared door, and the Function is one that can have it.
func (f *Function) WantsHost(host string) bool {
	return f.IsProxied() && f.DeletionTimestamp == nil && !f.IsSuperseded() && slices.Contains(f.Spec.Traffic.Hosts, host)
}

// MaySleep tells whether the function may have no replica: its minReplicas is 0, and there is something to wake it.
func (f *Function) MaySleep() bool {
	return f.Spec.Scale.MinReplicas == 0 && (f.Spec.Traffic != nil || len(f.ExternalMetrics()) > 0)
}

// ExternalMetric is a metric of a function that measures something else than its requests, such as what waits in a
// queue. What it measures is there whether the function has a replica or not, and so it can wake the function.
//
// +kubebuilder:object:generate=false
type ExternalMetric struct {
	// Name of the metric, as the metrics API serves it for the Function.
	Name string
	// Target is the value per replica.
	Target resource.Quantity
	// Activation is the value above which the function is awake.
	Activation resource.Quantity
	// Bound is the metric that says how many replicas have anything to do; empty where there is no such bound.
	Bound string
}

// ExternalMetrics are those of spec.metrics, of whatever source, in their order.
func (f *Function) ExternalMetrics() []ExternalMetric {
	var all []ExternalMetric
	for _, m := range f.Spec.Metrics {
		var e ExternalMetric
		var activation *resource.Quantity
		switch {
		case m.Prometheus != nil:
			e, activation = ExternalMetric{Name: m.Prometheus.Name, Target: m.Prometheus.Target}, m.Prometheus.Activation
		case m.KafkaLag != nil:
			e = ExternalMetric{Name: m.KafkaLag.Metric(KafkaLag), Target: m.KafkaLag.Target, Bound: m.KafkaLag.Metric(KafkaPartitions)}
			activation = m.KafkaLag.Activation
		default:
			continue
		}
		if activation != nil {
			e.Activation = *activation
		}
		all = append(all, e)
	}
	return all
}

// Replicas is the number of replicas that value asks for, by the formula of the HorizontalPodAutoscaler: value / target
// rounded up, both in thousandths. 0 for a value of 0.
func (m ExternalMetric) Replicas(value float64) int32 {
	per := max(m.Target.MilliValue(), 1)
	return int32(min(math.Ceil(math.Round(value*1000)/float64(per)), math.MaxInt32))
}

// IsActive tells whether value is above the activation, both in thousandths, as the metrics API serves values.
func (m ExternalMetric) IsActive(value float64) bool {
	return math.Round(value*1000) > math.Round(m.Activation.AsApproximateFloat64()*1000)
}

// IsSuperseded tells whether an older Function has the same workload, as the status says.
func (f *Function) IsSuperseded() bool {
	c := meta.FindStatusCondition(f.Status.Conditions, ConditionReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == ReasonWorkloadConflict
}

// Window is the window of requests_per_second.
func (f *Function) Window() time.Duration {
	for _, m := range f.Spec.Metrics {
		if m.RequestRate != nil {
			return durationOr(m.RequestRate.Window, DefaultWindow)
		}
	}
	return DefaultWindow
}

// IdleAfter is how long the function is without requests before it sleeps.
func (f *Function) IdleAfter() time.Duration { return durationOr(f.Spec.Scale.IdleAfter, time.Minute) }

// HoldTimeout bounds how long one request is held.
func (f *Function) HoldTimeout() time.Duration {
	return durationOr(f.Spec.Activation.Timeout, time.Minute)
}

func durationOr(d *metav1.Duration, otherwise time.Duration) time.Duration {
	if d == nil || d.Duration <= 0 {
		return otherwise
	}
	return d.Duration
}

// AwakeReplicas bounds n by the Function's minReplicas, its maxReplicas, and 1 from below: it is the number of
// replicas to ask for while the function is awake.
func (f *Function) AwakeReplicas(n int32) int32 {
	return min(max(n, f.Spec.Scale.MinReplicas, 1), max(f.Spec.Scale.MaxReplicas, 1))
}

// ConcurrencyLimit is how many requests one pod has at the same time at most, 0 for no limit. There is none in mode Direct,
// where the gate is not in the path.
func (f *Function) ConcurrencyLimit() int32 {
	if !f.IsProxied() {
		return 0
	}
	for _, m := range f.Spec.Metrics {
		if m.Concurrency != nil {
			return m.Concurrency.Limit
		}
	}
	return 0
}

// WakeReplicas is the number of replicas that held requests ask for: one for each target of the concurrency metric,
// or for each activation.perReplica where there is none, within the bounds of AwakeReplicas.
func (f *Function) WakeReplicas(held int) int32 {
	per := float64(f.Spec.Activation.PerReplica)
	for _, m := range f.Spec.Metrics {
		if m.Concurrency != nil {
			per = m.Concurrency.Target.AsApproximateFloat64()
			if limit := f.ConcurrencyLimit(); limit > 0 {
				per = min(per, float64(limit))
			}
		}
	}
	if per <= 0 {
		per = 100
	}
	return f.AwakeReplicas(int32(min(math.Ceil(float64(held)/per), math.MaxInt32)))
}
