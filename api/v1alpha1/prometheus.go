package v1alpha1

import (
	"regexp"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// PrometheusMetric scales on the answer of an instant query.
type PrometheusMetric struct {
	// Name under which the value is served as a custom metric.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z_][a-zA-Z0-9_:.-]*$`
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="!(self in ['requests_per_second', 'requests_in_flight', 'request_duration_seconds', 'idle_seconds']) && !self.startsWith('kafka_')",message="spec.metrics[].prometheus.name is a name that Sluice gives to a metric of its own; choose another"
	Name string `json:"name"`
	// Server is the base URL of the Prometheus server, http or https, without credentials, query or fragment.
	// +kubebuilder:validation:XValidation:rule="self.matches('^https?://[^/?#@]+(/[^?#]*)?$') && isURL(self)",message="spec.metrics[].prometheus.server must be a URL such as http://HOST:PORT or https://HOST/PATH, without user, query or fragment; credentials go into the Secret of authRef"
	// +kubebuilder:validation:MaxLength=512
	Server string `json:"server"`
	// Query in PromQL, with one number as its answer: a scalar, or a vector of one element. {{.Namespace}} and
	// {{.Function}} in it stand for the Function's own.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.replace('{{.Namespace}}', 'x').replace('{{.Function}}', 'x').contains('{{')",message="spec.metrics[].prometheus.query may hold {{.Namespace}} and {{.Function}}, written like that, and no other {{"
	Query string `json:"query"`
	// Target per replica.
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) > 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n > 0.0 && n <= 1e15)",message="spec.metrics[].prometheus.target must be above 0 and at most 1P, and have no exponent"
	Target resource.Quantity `json:"target"`
	// Activation is the value above which the function is awake: a sleeping one wakes, and one that is awake does not go
	// to sleep. Default 0.
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 0 && int(self) <= 1000000000000000 : !self.matches('[eE]') && [quantity(self).asApproximateFloat()].all(n, n >= 0.0 && n <= 1e15)",message="spec.metrics[].prometheus.activation must not be below 0 nor above 1P, and have no exponent"
	Activation *resource.Quantity `json:"activation,omitempty"`
	// EmptyIs says what an answer without any element means. Unknown holds the scale; Zero is for queries whose series
	// exist only while there is something to count. Default Unknown.
	// +optional
	// +kubebuilder:validation:Enum=Unknown;Zero
	EmptyIs string `json:"emptyIs,omitempty"`
	// AuthRef names a Secret in the Function's namespace with the credentials for Server: username and password, or
	// bearerToken, and for TLS ca.crt, tls.crt and tls.key.
	// +optional
	AuthRef *SecretRef `json:"authRef,omitempty"`
}

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
