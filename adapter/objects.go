package adapter

import (
	"fmt"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// Resources that are served by themselves. All others are whatever the Functions name as workload or Service.
var (
	functionKind  = v1alpha1.GroupVersion.WithKind("Function")
	kubelessKind  = schema.GroupVersionKind{Group: "kubeless.io", Version: "v1beta1", Kind: "Function"}
	podKind       = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	namespaceKind = schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	namespaces    = schema.GroupResource{Resource: "namespaces"}
)

// known are the resources that may have no Function behind them and still are served: a list of them may be empty. Any
// other workload is served where a Function names it.
var known = map[schema.GroupResource]bool{
	v1alpha1.FunctionResource:                 true,
	kubelessFunctions:                         true,
	{Resource: "services"}:                    true,
	{Group: "apps", Resource: "deployments"}:  true,
	{Group: "apps", Resource: "statefulsets"}: true,
}

// described is an object and the function whose values are served for it.
type described struct {
	kind     schema.GroupVersionKind
	name     types.NamespacedName
	labels   labels.Set
	function types.NamespacedName
}

// String names the object for people, and the function if it is not the object itself.
func (d described) String() string {
	if d.kind == functionKind {
		return "Function " + d.name.String()
	}
	return fmt.Sprintf("Function %s (for %s %s)", d.function, d.kind.Kind, d.name)
}

// reference is the object as the API names it.
func (d described) reference() custom_metrics.ObjectReference {
	return custom_metrics.ObjectReference{
		Kind: d.kind.Kind, APIVersion: d.kind.GroupVersion().String(), Namespace: d.name.Namespace, Name: d.name.Name,
	}
}

// asFunction describes the function itself, or the Kubeless function of its name.
func asFunction(kind schema.GroupVersionKind, fn providers.Info) described {
	return described{kind: kind, name: fn.Name, labels: fn.Labels, function: fn.Name}
}

// asPart describes the function's workload or Service; ok is false if it has none of that resource.
func asPart(resource schema.GroupResource, fn providers.Info) (d described, exists, ok bool) {
	for _, o := range [...]providers.Object{fn.Workload, fn.Service} {
		if o.Resource == resource && o.Name != "" {
			name := types.NamespacedName{Namespace: fn.Name.Namespace, Name: o.Name}
			return described{kind: o.Kind, name: name, labels: o.Labels, function: fn.Name}, o.Exists, true
		}
	}
	return described{}, false, false
}

// find finds the object of that name; the error is the answer of the API.
func (p functionMetrics) find(resource schema.GroupResource, name types.NamespacedName) (described, error) {
	switch resource {
	case v1alpha1.FunctionResource:
		return described{kind: functionKind, name: name, function: name}, nil
	case kubelessFunctions:
		return described{kind: kubelessKind, name: name, function: name}, nil
	}
	fn, err := p.reader.Owner(name.Namespace, resource, name.Name)
	if err != nil {
		return described{}, explainOwner(resource, name, err)
	}
	d, exists, ok := asPart(resource, fn)
	switch {
	case !ok || d.name != name: // it changed between two looks
		return described{}, explainOwner(resource, name, providers.ErrNoFunction)
	case !exists:
		return described{}, notFound("there is no %s %s, which Function %s names", d.kind.Kind, name, fn.Name)
	}
	return d, nil
}

// list lists the objects of a resource that functions stand behind, in the order of the functions. An object that is
// not there is left out, and so is one that several functions name: no value is its own.
func list(resource schema.GroupResource, functions []providers.Info) []described {
	objects := make([]described, 0, len(functions))
	switch resource {
	case v1alpha1.FunctionResource:
		for _, fn := range functions {
			objects = append(objects, asFunction(functionKind, fn))
		}
		return objects
	case kubelessFunctions:
		for _, fn := range functions {
			objects = append(objects, asFunction(kubelessKind, fn))
		}
		return objects
	}
	named := map[types.NamespacedName]int{}
	for _, fn := range functions {
		if d, exists, ok := asPart(resource, fn); ok && exists {
			objects = append(objects, d)
			named[d.name]++
		}
	}
	own := objects[:0]
	for _, d := range objects {
		if named[d.name] == 1 {
			own = append(own, d)
		}
	}
	return own
}
