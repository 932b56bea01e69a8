package scaler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// observeFallback resolves spec.activation.fallback. What is wrong with it is kept for the end of the problems: the
// function serves all the same.
func (r *Reconciler) observeFallback(ctx context.Context, w *world) error {
	want := w.fn.Spec.Activation.Fallback
	if want == nil || w.fn.Spec.Traffic == nil {
		return nil
	}
	const field = "spec.activation.fallback"
	wrong := func(reason, format string, args ...any) {
		w.fallbackProblem = &problem{
			v1alpha1.ConditionReady, reason, fmt.Sprintf(format, args...) + "; until then, requests that need the fallback are refused",
		}
	}
	if want.Name == w.fn.ServiceName() {
		wrong("FallbackServiceUnsupported", "%s.name: Service %s is the function's own, which has no ready pod when the fallback is needed; "+
			"name another one", field, w.fullName(want.Name))
		return nil
	}
	var service corev1.Service
	err := r.Get(ctx, w.key(want.Name), &service)
	switch {
	case apierrors.IsNotFound(err):
		w.missing = true
		wrong("FallbackMissing", "%s.name: Service %s does not exist; create it or correct the name", field, w.fullName(want.Name))
		return nil
	case err != nil:
		return fmt.Errorf("service %s: %w", w.fullName(want.Name), err)
	}
	port, reason, message := servicePort(field, &service, want.Port)
	app := ptr.Deref(port.AppProtocol, "")
	switch {
	case reason != "":
		wrong("Fallback"+reason, "%s", message)
	case v1alpha1.PodProtocolOf(app) == v1alpha1.PodTLS:
		wrong("FallbackServiceUnsupported", "%s.port: port %d of Service %s has the appProtocol %s, and the gate does not speak TLS to pods; "+
			"name a port without", field, port.Port, w.fullName(want.Name), app)
	default:
		w.fallback = &v1alpha1.FallbackStatus{Service: want.Name, ServicePort: port.Name, AppProtocol: app}
	}
	return nil
}
