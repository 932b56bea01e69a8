package v1alpha1

import (
	"regexp"

	"k8s.io/apimachinery/pkg/types"
)

// placeholder is what stands for the Function's own names in a query. It is all there is of a template language: a
// user's text must not be able to make the adapter work.
var placeholder = regexp.MustCompile(`\{\{ *\.(Namespace|Function) *\}\}`)

// Expand returns the query with {{.Namespace}} and {{.Function}} replaced by the namespace and name of fn, which are DNS
// labels and so cannot end a PromQL string. Anything else between double braces stays as it is; PromQL has no meaning for
// it, and the server says so.
func (m *PrometheusMetric) Expand(fn types.NamespacedName) string {
	return placeholder.ReplaceAllStringFunc(m.Query, func(found string) string {
		if placeholder.FindStringSubmatch(found)[1] == "Namespace" {
			return fn.Namespace
		}
		return fn.Name
	})
}
