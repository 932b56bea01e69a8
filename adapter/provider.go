package adapter

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/providers"
)

// Reader answers from memory what the functions' values are. It is called from many goroutines at once, for every
// request, and does no I/O.
type Reader interface {
	// Info tells of one function, or returns providers.ErrNoFunction.
	Info(function types.NamespacedName) (providers.Info, error)
	// List tells of all functions in a namespace, or in all where it is empty, in the order of their names.
	List(namespace string) []providers.Info
	// Value returns a metric of a function. The error is providers.ErrNoFunction or a *providers.Unknown.
	Value(function types.NamespacedName, metric string) (providers.Value, error)
	// Owner tells of the function whose workload or Service the object is. The error is providers.ErrNoFunction or a
	// *providers.Ambiguous.
	Owner(namespace string, resource schema.GroupResource, name string) (providers.Info, error)
	// Pods tells of all pods in a namespace, or in all where it is empty, that count their own requests, in the order of
	// their names.
	Pods(namespace string) []providers.PodInfo
	// PodValue returns a metric of one pod. The error is providers.ErrNoPod, a *providers.Ambiguous or a
	// *providers.Unknown.
	PodValue(namespace, pod, metric string) (providers.Value, error)
	// ConsumerLag tells of the consumer group whose lag a metric of a function is. The error is providers.ErrNoFunction or a
	// *providers.Unknown.
	ConsumerLag(function types.NamespacedName, metric string) (providers.ConsumerLag, error)
}

var _ Reader = (*providers.Store)(nil)

// functionMetrics is custom.metrics.k8s.io and external.metrics.k8s.io in terms of a Reader.
//
// An answer that is not a value says why in words, which the HorizontalPodAutoscaler shows in its condition
// ScalingActive: 404 for what does not exist (object, function, metric, or a metric that nobody counts for this
// function), 503 for a value that is not known now. Never both nil.
//
// What its controller makes of an answer (pkg/controller/podautoscaler of Kubernetes 1.37):
//
//	Object    exactly one item, or an error. With an error the metric is invalid: the others may still scale up, nothing
//	          scales down.
//	Pods      a list by the pods' labels. An empty one is such an error, "no metrics returned". Of a running pod that is
//	          not in it, it supposes the target when the rest say down, and 0 when they say up: so a pod whose value is
//	          not known is left out, and only if nothing is left the answer is an error, for its words.
//	External  the sum of all items; an empty list is an error. So a function that is left out would be a smaller sum.
//
// It looks at no timestamp: what is too old is unknown here.
type functionMetrics struct {
	reader Reader
}

var (
	_ provider.CustomMetricsProvider   = functionMetrics{}
	_ provider.ExternalMetricsProvider = functionMetrics{}
)

// GetMetricByName answers for one object.
func (p functionMetrics) GetMetricByName(
	_ context.Context, name types.NamespacedName, info provider.CustomMetricInfo, metricSelector labels.Selector,
) (*custom_metrics.MetricValue, error) {
	if err := checkForm(info.GroupResource, name.Namespace, name.Name); err != nil {
		return nil, err
	}
	if excludes(metricSelector) {
		return nil, errMetricLabels(info.Metric, metricSelector)
	}
	switch info.GroupResource {
	case namespaces:
		return p.sum(name.Name, info.Metric)
	case pods:
		return p.pod(name, info.Metric)
	}
	d, err := p.find(info.GroupResource, name)
	if err != nil {
		return nil, err
	}
	v, err := checked(p.reader.Value(d.function, info.Metric))
	if err != nil {
		return nil, p.explain(d, info.Metric, err)
	}
	return metricValue(d.reference(), info.Metric, v), nil
}

// GetMetricBySelector answers for all objects of a namespace, or of all, whose labels match. Those whose value is not
// known are left out; see functionMetrics for pods. Metrics have no labels, so metricSelector leaves out all or none.
func (p functionMetrics) GetMetricBySelector(
	_ context.Context, namespace string, selector labels.Selector, info provider.CustomMetricInfo,
	metricSelector labels.Selector,
) (*custom_metrics.MetricValueList, error) {
	if err := checkForm(info.GroupResource, namespace, "*"); err != nil {
		return nil, err
	}
	if info.GroupResource == pods {
		return p.pods(namespace, selector, info.Metric, metricSelector)
	}
	functions := p.reader.List(namespace)
	objects := list(info.GroupResource, functions)
	if len(objects) == 0 && !known[info.GroupResource] {
		return nil, errNoObject(info.GroupResource, namespace, "*")
	}
	if !slices.Contains(reserved, info.Metric) && !counted(functions, info.Metric) {
		return nil, notFound("no Function %s has a metric %s: the names that every one may have are %s, beside those of its "+
			"spec.metrics", in(namespace), info.Metric, strings.Join(reserved, ", "))
	}
	answer := &custom_metrics.MetricValueList{Items: []custom_metrics.MetricValue{}}
	if excludes(metricSelector) {
		return answer, nil
	}
	for _, d := range objects {
		if selector != nil && !selector.Matches(d.labels) {
			continue
		}
		if v, err := checked(p.reader.Value(d.function, info.Metric)); err == nil {
			answer.Items = append(answer.Items, *metricValue(d.reference(), info.Metric, v))
		}
	}
	return answer, nil
}

// counted reports whether any function has the metric.
func counted(functions []providers.Info, metric string) bool {
	return slices.ContainsFunc(functions, func(fn providers.Info) bool { return slices.Contains(fn.Metrics, metric) })
}

// pod answers for one pod.
func (p functionMetrics) pod(name types.NamespacedName, metric string) (*custom_metrics.MetricValue, error) {
	v, err := checked(p.reader.PodValue(name.Namespace, name.Name, metric))
	if err != nil {
		return nil, explainPod(name, metric, err)
	}
	return metricValue(described{kind: podKind, name: name}.reference(), metric, v), nil
}

// pods answers for the pods that match. The list is never empty.
func (p functionMetrics) pods(
	namespace string, selector labels.Selector, metric string, metricSelector labels.Selector,
) (*custom_metrics.MetricValueList, error) {
	if excludes(metricSelector) {
		return nil, errMetricLabels(metric, metricSelector)
	}
	var unknown error
	answer := &custom_metrics.MetricValueList{}
	var previous types.NamespacedName
	for _, pod := range p.reader.Pods(namespace) {
		name := types.NamespacedName{Namespace: pod.Function.Namespace, Name: pod.Pod.Name}
		if name == previous || selector != nil && !selector.Matches(labels.Set(pod.Pod.Labels)) {
			continue // a pod of two functions is listed twice
		}
		previous = name
		switch v, err := p.pod(name, metric); {
		case err == nil:
			answer.Items = append(answer.Items, *v)
		case unknown == nil:
			unknown = err
		}
	}
	switch {
	case len(answer.Items) > 0:
		return answer, nil
	case unknown != nil:
		return nil, unknown
	}
	return nil, notFound("no pod %s that matches %q counts its own requests: %s", in(namespace), labelsOf(selector), podsCount)
}

// sum answers for a namespace: the sum over its functions. A function of which nobody counts the metric has no part in
// it; one whose value is not known makes the sum unknown.
func (p functionMetrics) sum(namespace, metric string) (*custom_metrics.MetricValue, error) {
	if !slices.Contains(sums, metric) {
		return nil, notFound("a namespace has no metric %s, it has %s: a sum of anything else says nothing", metric,
			strings.Join(sums, ", "))
	}
	var sum providers.Value
	found := false
	for _, fn := range p.reader.List(namespace) {
		if !slices.Contains(fn.Metrics, metric) {
			continue
		}
		v, err := checked(p.reader.Value(fn.Name, metric))
		if err != nil {
			return nil, p.explain(asFunction(functionKind, fn), metric, err)
		}
		if !found || v.At.Before(sum.At) {
			sum.At = v.At // all that the sum is made of had been observed by then
		}
		found = true
		sum.Value += v.Value
		sum.Window = max(sum.Window, v.Window) // functions may have windows of their own: none of them is longer
	}
	if !found {
		return nil, notFound("namespace %s has no metric %s: it has no Function of which somebody counts it", namespace, metric)
	}
	d := described{kind: namespaceKind, name: types.NamespacedName{Name: namespace}}
	return metricValue(d.reference(), metric, sum), nil
}

// checked lets only values pass that mean something: a client of the API takes any number for true.
func checked(v providers.Value, err error) (providers.Value, error) {
	if err == nil && (v.At.IsZero() || !(v.Value >= 0) || math.IsInf(v.Value, 1)) {
		return providers.Value{}, &providers.Unknown{Reason: providers.NoData}
	}
	return v, err
}

// excludes reports whether a selector of metrics leaves out those that have no labels, which is all of ours.
func excludes(s labels.Selector) bool { return s != nil && !s.Matches(labels.Set{}) }

// metricValue is v as the API says it.
func metricValue(object custom_metrics.ObjectReference, metric string, v providers.Value) *custom_metrics.MetricValue {
	return &custom_metrics.MetricValue{
		DescribedObject: object,
		Metric:          custom_metrics.MetricIdentifier{Name: metric},
		Timestamp:       metav1.NewTime(v.At),
		WindowSeconds:   windowSeconds(v.Window),
		Value:           quantity(v.Value, math.MaxInt64),
	}
}

// windowSeconds is window to the nearest second, but at least one; nil where there is none.
func windowSeconds(window time.Duration) *int64 {
	if window <= 0 {
		return nil
	}
	return new(max(1, int64(window.Round(time.Second)/time.Second)))
}

// quantity is v, which is not negative, in thousandths, the nearest there is. Past most thousandths (of an int64:
// 9.2e15) it says most, and not a Quantity of more digits: the HorizontalPodAutoscaler takes values as int64 of
// thousandths, in which those would wrap around.
func quantity(v float64, most int64) resource.Quantity {
	milli := most
	if scaled := math.Round(v * 1000); scaled < float64(most) {
		milli = int64(scaled)
	}
	return *resource.NewMilliQuantity(milli, resource.DecimalSI)
}
