package v1alpha1

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Fallback names the port of a Service in the Function's own namespace whose pods answer the requests that the gate would
// have to refuse, because no pod of the function was ready in time, too many were held, or none accepts connections.
type Fallback struct {
	// Name of the Service. Its ready pods are asked, not its cluster IP; nothing is woken for it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Port is the name or the number of the Service's port. Default: its only port.
	// +optional
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? int(self) >= 1 && int(self) <= 65535 : string(self).matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="spec.activation.fallback.port must be the name of a port of the Service, or a number from 1 to 65535"
	Port *intstr.IntOrString `json:"port,omitempty"`
}

// Placeholder is what GET and HEAD requests are given instead of being held any longer. They wake the function all the
// same. Other methods, requests to switch protocols, and gRPC are held as ever.
//
// +kubebuilder:validation:XValidation:rule="!(self.status in [204, 205, 304]) || !has(self.body) || size(self.body) == 0",message="spec.activation.placeholder.body: an answer of status 204, 205 or 304 has no body; remove it or choose another status"
type Placeholder struct {
	// Status of the answer. Default 503, by which caches and crawlers know that this is not the page.
	// +kubebuilder:default=503
	// +kubebuilder:validation:Minimum=200
	// +kubebuilder:validation:Maximum=599
	Status int32 `json:"status,omitempty"`
	// Body of the answer.
	// +optional
	// +kubebuilder:validation:MaxLength=32768
	Body string `json:"body,omitempty"`
	// ContentType of the body. Default text/html; charset=utf-8.
	// +kubebuilder:default="text/html; charset=utf-8"
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?[A-Za-z0-9-]+=[A-Za-z0-9!#$&^_.+-]+)*$')",message="spec.activation.placeholder.contentType must be a media type, such as text/html or application/json; charset=utf-8"
	ContentType string `json:"contentType,omitempty"`
	// After is for how long a request is held first; many functions are awake before anybody would have to see a
	// placeholder. Default 0s.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('10m')",message="spec.activation.placeholder.after must be between 0s and 10m"
	After *metav1.Duration `json:"after,omitempty"`
}

// StaticAnswer is what the gate answers by itself to GET and HEAD requests for a path while the function has no ready pod.
// Such requests never wake it, and are not counted as traffic, whoever answers them: pods do while there are any.
//
// +kubebuilder:validation:XValidation:rule="!(self.status in [204, 205, 304]) || !has(self.body) || size(self.body) == 0",message="spec.activation.static[].body: an answer of status 204, 205 or 304 has no body; remove it or choose another status"
type StaticAnswer struct {
	// Path of the requests, exactly; what follows a question mark is not looked at.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.matches('^/[^?#]*$')",message="spec.activation.static[].path must begin with a slash and have no query, such as /healthz"
	Path string `json:"path"`
	// Hosts are the Host names of the requests, lower case, without port. Default: all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Hosts []string `json:"hosts,omitempty"`
	// Status of the answer. Default 200.
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=200
	// +kubebuilder:validation:Maximum=599
	Status int32 `json:"status,omitempty"`
	// Body of the answer.
	// +optional
	// +kubebuilder:validation:MaxLength=8192
	Body string `json:"body,omitempty"`
	// ContentType of the body. Default text/plain; charset=utf-8.
	// +kubebuilder:default="text/plain; charset=utf-8"
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?[A-Za-z0-9-]+=[A-Za-z0-9!#$&^_.+-]+)*$')",message="spec.activation.static[].contentType must be a media type, such as text/plain or application/json; charset=utf-8"
	ContentType string `json:"contentType,omitempty"`
}

// FallbackStatus is what spec.activation.fallback was resolved to.
type FallbackStatus struct {
	// Service is its name.
	Service string `json:"service"`
	// ServicePort is the name of its port, empty where that port has no name.
	// +optional
	ServicePort string `json:"servicePort"`
	// AppProtocol is that of the port. It says what the gate speaks to the pods.
	// +optional
	AppProtocol string `json:"appProtocol,omitempty"`
}

// Fallback is where the function's requests go that would have to be refused, as the scaler has resolved what the spec
// says now; nil for nowhere.
func (f *Function) Fallback() *FallbackStatus {
	spec, gate := f.Spec.Activation.Fallback, f.Status.Gate
	if spec == nil || gate == nil || gate.Fallback == nil || gate.Fallback.Service != spec.Name {
		return nil
	}
	return gate.Fallback
}

// HoldFirst is for how long requests are held before they are given the placeholder.
func (p *Placeholder) HoldFirst() time.Duration {
	if p.After == nil {
		return 0
	}
	return p.After.Duration
}

// StaticFor is the first of spec.activation.static for path at host, nil for none.
func (a *Activation) StaticFor(host, path string) *StaticAnswer {
	for i := range a.Static {
		s := &a.Static[i]
		if s.Path == path && (len(s.Hosts) == 0 || slices.Contains(s.Hosts, host)) {
			return s
		}
	}
	return nil
}
