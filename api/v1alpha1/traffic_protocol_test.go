package v1alpha1

import "testing"

func TestPodProtocolOf(t *testing.T) {
	for app, want := range map[string]PodProtocol{
		"": PodByRequest, "kubernetes.io/h2c": PodH2C, "grpc": PodH2C, "kubernetes.io/ws": PodHTTP1, "http": PodHTTP1,
		"https": PodTLS, "kubernetes.io/wss": PodTLS, "example.com/own": PodByRequest,
	} {
		if got := PodProtocolOf(app); got != want {
			t.Errorf("%q: got %q, want %q", app, got, want)
		}
	}
	var fn Function
	if got := fn.PodProtocol(); got != PodByRequest {
		t.Errorf("before the scaler has looked: got %q, want by request", got)
	}
	fn.Status.Gate = &GateStatus{AppProtocol: "grpc"}
	if got := fn.PodProtocol(); got != PodH2C {
		t.Errorf("got %q, want h2c", got)
	}
}
