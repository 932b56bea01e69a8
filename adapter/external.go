package adapter

import (
	"context"
	"math"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// GetExternalMetric answers with one item per function that the selector of the label "function" matches. A
// HorizontalPodAutoscaler takes the sum, so the answer has all of them or is an error: each function that the selector
// names, and otherwise each that has the metric.
func (p functionMetrics) GetExternalMetric(
	_ context.Context, namespace string, selector labels.Selector, info provider.ExternalMetricInfo,
) (*external_metrics.ExternalMetricValueList, error) {
	functions, err := p.selected(namespace, selector, info.Metric)
	if err != nil {
		return nil, err
	}
	if len(functions) == 0 {
		return nil, notFound("no Function in namespace %s that matches %q has a metric %s", namespace, labelsOf(selector), info.Metric)
	}
	list := &external_metrics.ExternalMetricValueList{Items: make([]external_metrics.ExternalMetricValue, len(functions))}
	for i, name := range functions {
		v, err := checked(p.reader.Value(name, info.Metric))
		if err != nil {
			return nil, p.explain(asFunction(functionKind, providers.Info{Name: name}), info.Metric, err)
		}
		list.Items[i] = external_metrics.ExternalMetricValue{
			MetricName:    info.Metric,
			MetricLabels:  map[string]string{v1alpha1.LabelFunction: name.Name},
			Timestamp:     metav1.NewTime(v.At),
			WindowSeconds: windowSeconds(v.Window),
			// The sum is taken in an int64 of thousandths, and must not wrap around either.
			Value: quantity(v.Value, math.MaxInt64/int64(len(functions))),
		}
	}
	return list, nil
}

// selected are the functions that the selector names, whether they exist or not; if it names none, those that it
// matches and that have the metric. They are in order.
func (p functionMetrics) selected(namespace string, selector labels.Selector, metric string) ([]types.NamespacedName, error) {
	var named []string
	names := false
	if selector != nil {
		requirements, selectable := selector.Requirements()
		if !selectable {
			return nil, nil
		}
		for _, r := range requirements {
			if r.Key() != v1alpha1.LabelFunction {
				return nil, apierrors.NewBadRequest("labelSelector " + r.String() + ": the only label of these metrics is " +
					v1alpha1.LabelFunction + ", the name of a Function: " + v1alpha1.LabelFunction + "=NAME")
			}
			switch r.Operator() {
			case selection.Equals, selection.DoubleEquals, selection.In:
				named, names = r.ValuesUnsorted(), true
			}
		}
	} else {
		selector = labels.Everything()
	}
	if !names {
		for _, fn := range p.reader.List(namespace) {
			if slices.Contains(fn.Metrics, metric) {
				named = append(named, fn.Name.Name)
			}
		}
	}
	slices.SortFunc(named, strings.Compare)
	var functions []types.NamespacedName
	for _, name := range named {
		if selector.Matches(labels.Set{v1alpha1.LabelFunction: name}) {
			functions = append(functions, types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	return functions, nil
}
