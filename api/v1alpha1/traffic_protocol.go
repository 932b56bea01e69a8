package v1alpha1

// TrafficProtocol is what a function's gate port serves.
//
// +kubebuilder:validation:Enum=HTTP;TCP
type TrafficProtocol string

const (
	// ProtocolHTTP is HTTP/1.1 and HTTP/2 without TLS.
	ProtocolHTTP TrafficProtocol = "HTTP"
	// ProtocolTCP is any protocol on TCP. The gate does not look into it.
	ProtocolTCP TrafficProtocol = "TCP"
)

// IsTCP tells whether the function's traffic is opaque TCP.
func (f *Function) IsTCP() bool {
	return f.Spec.Traffic != nil && f.Spec.Traffic.Protocol == ProtocolTCP
}

// PodProtocol is what the gate speaks to the pods of a function.
type PodProtocol string

const (
	// PodHTTP1 is HTTP/1.1 without TLS.
	PodHTTP1 PodProtocol = "HTTP/1.1"
	// PodH2C is HTTP/2 without TLS and with prior knowledge (RFC 9113, 3.3).
	PodH2C PodProtocol = "h2c"
	// PodTLS is any protocol within TLS, which the gate does not speak to pods.
	PodTLS PodProtocol = "TLS"
	// PodByRequest is for Service ports that say nothing: HTTP/1.1, but h2c for gRPC, which has no other form.
	PodByRequest PodProtocol = ""
)

// PodProtocolOf reads the appProtocol of a Service port: the names that Kubernetes standardises (KEP-3726), those that
// it took from the registry of service names, and the short forms in use. What it does not know says nothing.
func PodProtocolOf(appProtocol string) PodProtocol {
	switch appProtocol {
	case "kubernetes.io/h2c", "h2c", "grpc", "http2":
		return PodH2C
	case "http", "kubernetes.io/ws", "ws":
		return PodHTTP1
	case "https", "kubernetes.io/wss", "wss", "tls", "grpcs", "kubernetes.io/https":
		return PodTLS
	default:
		return PodByRequest
	}
}

// PodProtocol is what the pods of the function's Service port speak, as the scaler has resolved it.
func (f *Function) PodProtocol() PodProtocol {
	if f.Status.Gate == nil {
		return PodByRequest
	}
	return PodProtocolOf(f.Status.Gate.AppProtocol)
}
