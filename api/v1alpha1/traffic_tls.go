package v1alpha1

import "k8s.io/apimachinery/pkg/types"

// TrafficTLS says by which certificate the shared door serves the function's hosts.
type TrafficTLS struct {
	// SecretRef names a Secret of type kubernetes.io/tls in the Function's namespace. Its certificate must be for all
	// hosts. The namespace has to let the activator read it; see docs/operations.md.
	SecretRef SecretRef `json:"secretRef"`
}

// TLSSecret is the Secret with the certificate of the function's hosts; its name is empty where there is none.
func (f *Function) TLSSecret() types.NamespacedName {
	if f.Spec.Traffic == nil || f.Spec.Traffic.TLS == nil {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: f.Namespace, Name: f.Spec.Traffic.TLS.SecretRef.Name}
}
