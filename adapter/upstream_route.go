package adapter

import (
	"errors"
	"net/url"
	"path"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"k8s.io/metrics/pkg/apis/external_metrics"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

var (
	// kubelessFunctions are asked for by the name of the Function.
	kubelessFunctions = schema.GroupResource{Group: "kubeless.io", Resource: "functions"}
	pods              = schema.GroupResource{Resource: "pods"}
	// namespaceMetrics is the pseudo-resource of metrics that describe a namespace itself.
	namespaceMetrics = schema.GroupResource{Resource: "metrics"}
	// reserved are the names that mean Sluice's value wherever the object is a function's.
	reserved = []string{
		v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds,
	}
)

// facts are what has to be known of functions to tell whose a question is. They are a Reader's.
type facts interface {
	Info(function types.NamespacedName) (providers.Info, error)
	List(namespace string) []providers.Info
	Owner(namespace string, resource schema.GroupResource, name string) (providers.Info, error)
	Pods(namespace string) []providers.PodInfo
}

// question is what a read of the metrics APIs asks for.
type question struct {
	group     string // custom.metrics.k8s.io or external.metrics.k8s.io
	namespace string // empty for the root form
	resource  schema.GroupResource
	name      string // of the object; "*" for all that selector matches
	metric    string
	selector  labels.Selector
}

// ask reads the question of a request. It is false for what is no read of a value, or has a selector that cannot be
// read: the library's own answer explains that. And for a path that leads by itself to another one, of which one part
// was authorized and another would be asked for.
func ask(info *request.RequestInfo, query url.Values) (question, bool) {
	q := question{group: info.APIGroup, namespace: info.Namespace, selector: labels.Everything()}
	if watch := query.Get("watch"); !info.IsResourceRequest || watch == "true" || watch == "1" || info.Path != path.Clean(info.Path) {
		return q, false
	}
	if s := query.Get("labelSelector"); s != "" {
		selector, err := labels.Parse(s)
		if err != nil {
			return q, false
		}
		q.selector = selector
	}
	switch {
	case q.group == external_metrics.GroupName && info.Verb == "list" && len(info.Parts) == 1:
		q.metric = info.Resource
	case q.group != custom_metrics.GroupName || info.Verb != "get" || len(info.Parts) > 3:
		return q, false
	case info.Resource == namespaceMetrics.Resource && info.Subresource == "":
		q.resource, q.metric = namespaceMetrics, info.Name
	default:
		q.resource, q.name, q.metric = schema.ParseGroupResource(info.Resource), info.Name, info.Subresource
	}
	return q, q.metric != ""
}

// ours tells whether Sluice answers q, with a value or with the reason why there is none. Everything else is another
// adapter's, where there is one. A value of ours that is unknown is never asked for elsewhere: unknown is unknown.
//
//	object                                     metric                                      whose
//	functions.sluice.dev                       any                                         ours
//	workload, Service or pod of a Function     reserved, or one that the Function has      ours
//	* with a match among them                  the same, for one of the matches            ours
//	the namespace itself                       reserved                                    ours
//	external, function=NAME of a Function      reserved, or one that the Function has      ours
//	anything else                              any                                         the other adapter's
func (q question) ours(f facts) bool {
	switch {
	case q.group == external_metrics.GroupName:
		return slices.ContainsFunc(namedFunctions(q.selector), func(name string) bool {
			info, err := f.Info(types.NamespacedName{Namespace: q.namespace, Name: name})
			return err == nil && q.has(info)
		})
	case q.resource == v1alpha1.FunctionResource:
		return true
	case q.resource == namespaceMetrics:
		return slices.Contains(reserved, q.metric)
	case q.name == "*":
		return q.anyOurs(f)
	case q.resource == pods:
		return slices.ContainsFunc(f.Pods(q.namespace), func(p providers.PodInfo) bool {
			return p.Pod.Name == q.name && q.hasOf(f, p.Function)
		})
	case q.resource == kubelessFunctions:
		return q.hasOf(f, types.NamespacedName{Namespace: q.namespace, Name: q.name})
	}
	info, err := f.Owner(q.namespace, q.resource, q.name)
	if ambiguous := (*providers.Ambiguous)(nil); errors.As(err, &ambiguous) {
		return slices.ContainsFunc(ambiguous.Functions, func(fn types.NamespacedName) bool { return q.hasOf(f, fn) })
	}
	return err == nil && q.has(info)
}

// anyOurs tells whether the selector matches an object of a Function that has the metric.
func (q question) anyOurs(f facts) bool {
	if q.resource == pods {
		return slices.ContainsFunc(f.Pods(q.namespace), func(p providers.PodInfo) bool {
			return q.matches(p.Pod.Labels) && q.hasOf(f, p.Function)
		})
	}
	return slices.ContainsFunc(f.List(q.namespace), func(info providers.Info) bool {
		if !q.has(info) {
			return false
		}
		if q.resource == kubelessFunctions {
			return q.matches(info.Labels)
		}
		return slices.ContainsFunc([]providers.Object{info.Workload, info.Service}, func(o providers.Object) bool {
			return o.Resource == q.resource && o.Exists && q.matches(o.Labels)
		})
	})
}

func (q question) matches(l map[string]string) bool { return q.selector.Matches(labels.Set(l)) }

func (q question) has(info providers.Info) bool {
	return slices.Contains(reserved, q.metric) || slices.Contains(info.Metrics, q.metric)
}

func (q question) hasOf(f facts, fn types.NamespacedName) bool {
	info, err := f.Info(fn)
	return err == nil && q.has(info)
}

// namedFunctions are the values that selector allows the label function.
func namedFunctions(selector labels.Selector) []string {
	requirements, _ := selector.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if r.Key() == v1alpha1.LabelFunction {
				return r.ValuesUnsorted()
			}
		}
	}
	return nil
}
