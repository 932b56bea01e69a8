package adapter

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// podsCount says which pods have values of their own.
const podsCount = "only pods do that a Function in mode Direct finds by its Service, with spec.traffic.podMetrics"

// maxMessage bounds the words of a source that are passed on, in bytes: they end in conditions and Events.
const maxMessage = 512

// checkForm refuses paths that name no object that could be reserved. A name of "*" asks for all of the namespace.
func checkForm(resource schema.GroupResource, namespace, name string) error {
	const form = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/NAMESPACE/"
	switch {
	case resource == namespaces && (namespace != "" || name == "*"):
		return notFound("metrics of a namespace are at %smetrics/METRIC", form)
	case resource == namespaces:
		return nil
	case namespace == "" && name != "*":
		return notFound("%s are namespaced: read %s%s/%s/METRIC", resource, form, resource, name)
	case namespace == "*":
		return notFound("* is no namespace: leave out namespaces/*, or name one")
	}
	return nil
}

// explain turns a Reader's error into the answer of the API.
func (p functionMetrics) explain(d described, metric string, err error) error {
	if errors.Is(err, providers.ErrNoFunction) {
		return notFound("there is no Function %s", d.function)
	}
	unknown := (*providers.Unknown)(nil)
	if !errors.As(err, &unknown) || exists(unknown) {
		return unavailable("%s of %s is unknown: %s", metric, d, oneLine(err.Error()))
	}
	has := "none"
	if info, err := p.reader.Info(d.function); err == nil && len(info.Metrics) > 0 {
		has = strings.Join(info.Metrics, ", ")
	}
	if !slices.Contains(reserved, metric) {
		return notFound("%s has no metric %s, it has %s", d, metric, has)
	}
	return notFound("%s has no metric %s, it has %s: %s", d, metric, has, oneLine(err.Error()))
}

// exists tells a metric that is not known now from one that there is not, whenever it is asked for.
func exists(u *providers.Unknown) bool {
	return u.Reason != providers.NotCounted && u.Reason != providers.NoMetric
}

// explainPod is explain for a pod.
func explainPod(name types.NamespacedName, metric string, err error) error {
	ambiguous, unknown := (*providers.Ambiguous)(nil), (*providers.Unknown)(nil)
	switch {
	case errors.Is(err, providers.ErrNoPod):
		return notFound("Pod %s does not count its own requests: %s", name, podsCount)
	case errors.As(err, &ambiguous):
		return notFound("Pod %s has no metric of its own: %v", name, ambiguous)
	case errors.As(err, &unknown) && !exists(unknown):
		return notFound("Pod %s has no metric %s: %s", name, metric, oneLine(err.Error()))
	}
	return unavailable("%s of Pod %s is unknown: %s", metric, name, oneLine(err.Error()))
}

// explainOwner is explain for an object without a function of its own.
func explainOwner(resource schema.GroupResource, name types.NamespacedName, err error) error {
	if ambiguous := (*providers.Ambiguous)(nil); errors.As(err, &ambiguous) {
		return notFound("%s %s has no metric of its own: %v, as %s", resource, name, ambiguous, v1alpha1.FunctionResource)
	}
	return errNoObject(resource, name.Namespace, name.Name)
}

func errNoObject(resource schema.GroupResource, namespace, name string) error {
	if name == "*" {
		return notFound("no Function %s has any of %s as its workload or Service", in(namespace), resource)
	}
	return notFound("no Function has %s %s/%s as its workload or Service", resource, namespace, name)
}

func errMetricLabels(metric string, selector labels.Selector) error {
	return notFound("metric %s has no labels, so metricLabelSelector %q matches none", metric, selector)
}

// in says where a list was looked for.
func in(namespace string) string {
	if namespace == "" {
		return "in any namespace"
	}
	return "in namespace " + namespace
}

// labelsOf is the selector in the form in which it was asked for.
func labelsOf(s labels.Selector) string {
	if s == nil {
		return ""
	}
	return oneLine(s.String())
}

// oneLine is message in one line that is not too long: an HPA's condition shows it behind words of its own.
func oneLine(message string) string {
	s := strings.Join(strings.Fields(message), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

func notFound(format string, args ...any) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusNotFound,
		Reason:  metav1.StatusReasonNotFound,
		Message: fmt.Sprintf(format, args...),
	}}
}

func unavailable(format string, args ...any) *apierrors.StatusError {
	return apierrors.NewServiceUnavailable(fmt.Sprintf(format, args...))
}
