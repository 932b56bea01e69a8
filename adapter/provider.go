package adapter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// Reader answers from memory what the functions' values are. It is called from many goroutines at once, for every
// request, and does no I/O.
type Reader interface {
	// Info tells of one function, or returns providers.ErrNoFunction.
	Info(function types.NamespacedName) (providers.Info, error)
	// List tells of all functions in a namespace, in the order of their names.
	List(namespace string) []providers.Info
	// Value returns a metric of a function. The error is providers.ErrNoFunction or a *providers.Unknown.
	Value(function types.NamespacedName, metric string) (providers.Value, error)
}

var _ Reader = (*providers.Store)(nil)

// served are the metrics of functions.sluice.dev. Discovery lists them whether there is a function or not: a group
// without resources breaks kubectl.
var served = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}

// functionMetrics is custom.metrics.k8s.io in terms of a Reader.
//
// An answer that is not a value says why in words, which the HorizontalPodAutoscaler shows in its conditions:
// 404 for what does not exist (resource, function, metric, or a metric that nobody counts for this function), 503 for
// a value that is not known now. Never both nil.
type functionMetrics struct {
	reader Reader
}

var _ provider.CustomMetricsProvider = functionMetrics{}

// GetMetricByName answers for one function.
func (p functionMetrics) GetMetricByName(
	_ context.Context, name types.NamespacedName, info provider.CustomMetricInfo, metricSelector labels.Selector,
) (*custom_metrics.MetricValue, error) {
	if err := checkInfo(name.Namespace, info); err != nil {
		return nil, err
	}
	if selects(metricSelector) {
		return nil, notFound("metric %s has no labels, so metricLabelSelector %q matches none", info.Metric, metricSelector)
	}
	v, err := p.reader.Value(name, info.Metric)
	if err != nil {
		return nil, p.explain(name, info.Metric, err)
	}
	return metricValue(name, info.Metric, v), nil
}

// GetMetricBySelector answers for all functions of a namespace that match. Functions whose value is not known are left
// out, as are all when metricSelector asks for labels, for these metrics have none.
func (p functionMetrics) GetMetricBySelector(
	_ context.Context, namespace string, selector labels.Selector, info provider.CustomMetricInfo,
	metricSelector labels.Selector,
) (*custom_metrics.MetricValueList, error) {
	if err := checkInfo(namespace, info); err != nil {
		return nil, err
	}
	list := &custom_metrics.MetricValueList{Items: []custom_metrics.MetricValue{}}
	if selects(metricSelector) {
		return list, nil
	}
	for _, fn := range p.reader.List(namespace) {
		if selector != nil && !selector.Matches(labels.Set(fn.Labels)) {
			continue
		}
		if v, err := p.reader.Value(fn.Name, info.Metric); err == nil {
			list.Items = append(list.Items, *metricValue(fn.Name, info.Metric, v))
		}
	}
	return list, nil
}

// ListAllMetrics is what discovery shows.
func (functionMetrics) ListAllMetrics() []provider.CustomMetricInfo {
	infos := make([]provider.CustomMetricInfo, len(served))
	for i, metric := range served {
		infos[i] = provider.CustomMetricInfo{GroupResource: v1alpha1.FunctionResource, Namespaced: true, Metric: metric}
	}
	return infos
}

// checkInfo refuses what is served for no function.
func checkInfo(namespace string, info provider.CustomMetricInfo) error {
	switch {
	case info.GroupResource != v1alpha1.FunctionResource:
		return notFound("no metrics of %s are served here, only of %s", info.GroupResource, v1alpha1.FunctionResource)
	case namespace == "" || namespace == metav1.NamespaceAll || namespace == "*":
		return notFound("%s are namespaced: name one namespace", v1alpha1.FunctionResource)
	case !slices.Contains(served, info.Metric):
		return notFound("%s have no metric %q, they have %s", v1alpha1.FunctionResource, info.Metric,
			strings.Join(served, ", "))
	}
	return nil
}

// explain turns a Reader's error into the answer of the API.
func (p functionMetrics) explain(name types.NamespacedName, metric string, err error) error {
	if errors.Is(err, providers.ErrNoFunction) {
		return notFound("there is no function %s", name)
	}
	if unknown := (*providers.Unknown)(nil); errors.As(err, &unknown) && unknown.Reason == providers.NotCounted {
		has := "none"
		if info, err := p.reader.Info(name); err == nil && len(info.Metrics) > 0 {
			has = strings.Join(info.Metrics, ", ")
		}
		return notFound("function %s has no metric %s (it has %s): %v", name, metric, has, err)
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("%s of function %s is unknown: %v", metric, name, err))
}

func notFound(format string, args ...any) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusNotFound,
		Reason:  metav1.StatusReasonNotFound,
		Message: fmt.Sprintf(format, args...),
	}}
}

func selects(s labels.Selector) bool { return s != nil && !s.Empty() }

func metricValue(name types.NamespacedName, metric string, v providers.Value) *custom_metrics.MetricValue {
	m := &custom_metrics.MetricValue{
		DescribedObject: custom_metrics.ObjectReference{
			Kind:       "Function",
			APIVersion: v1alpha1.GroupVersion.String(),
			Namespace:  name.Namespace,
			Name:       name.Name,
		},
		Metric:    custom_metrics.MetricIdentifier{Name: metric},
		Timestamp: metav1.NewTime(v.At),
		Value:     quantity(v.Value),
	}
	if v.Window > 0 {
		m.WindowSeconds = new(max(1, int64(v.Window.Round(time.Second)/time.Second)))
	}
	return m
}

// quantity is v in thousandths, the nearest there is.
func quantity(v float64) resource.Quantity {
	milli := int64(math.MaxInt64)
	if scaled := math.Round(v * 1000); scaled < math.MaxInt64 {
		milli = int64(scaled)
	}
	return *resource.NewMilliQuantity(milli, resource.DecimalSI)
}
