//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestIntegration(t *testing.T) {
	w := newWorld(t)
	eventually(t, 60*time.Second, "the metrics API to answer", func(ctx context.Context) string {
		for _, version := range []string{"v1beta1", "v1beta2"} {
			if _, err := w.kube.Discovery().ServerResourcesForGroupVersion("custom.metrics.k8s.io/" + version); err != nil {
				return err.Error()
			}
		}
		return ""
	})
	t.Run("ExampleIsAccepted", w.exampleIsAccepted)
	t.Run("HPAFollowsTheRateAndHoldsOnUnknown", w.hpaFollows)
	t.Run("SleepAndWake", w.sleepAndWake)
	t.Run("DeletionWakes", w.deletionWakes)
	t.Run("Words", w.words)
	t.Run("API", w.api)
	t.Run("OwnHPAs", w.ownHPAs)
	t.Run("KafkaAway", w.kafkaAway)
	t.Run("SecretsOnlyWhereGranted", w.secretsOnlyWhereGranted)
}

// The example of the README's demo is a valid Function.
func (w *world) exampleIsAccepted(t *testing.T) {
	out, err := w.kubectl("apply", "--dry-run=server", "-f", filepath.Join(w.root, "test", "function", "function.yaml"))
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// The HPA that the scaler wrote scales to ceil(rate / target) on the number that both versions of the API serve; when
// the number becomes unknown it says why, and holds.
func (w *world) hpaFollows(t *testing.T) {
	const name, rate, want = "follows", 60.0, 3 // ceil(60 / 25)
	w.gate.set(name, rate)
	w.workload(t, name, 1)
	w.pod(t, name, true)
	fn := function(name)
	fn.Spec.Metrics = []v1alpha1.Metric{{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("25")}}}
	w.create(t, fn)

	eventually(t, 30*time.Second, "replicas to follow the rate", func(ctx context.Context) string {
		if n := w.replicas(ctx, t, name); n != want {
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})
	// Exact once the beginning of the load, which fell between two scrapes, has left the window of 30 s.
	for _, version := range []string{"v1beta1", "v1beta2"} {
		eventually(t, 40*time.Second, version+" to serve the rate", func(ctx context.Context) string {
			got, err := w.metric(ctx, version, name, v1alpha1.RequestsPerSecond)
			if err != nil || math.Abs(got-rate) > 0.01*rate {
				return fmt.Sprintf("requests_per_second is %v (%v) at a rate of exactly %v", got, err, rate)
			}
			return ""
		})
	}

	w.gate.fail(true)
	defer w.gate.fail(false)
	eventually(t, 30*time.Second, "the HPA to say why it holds", func(ctx context.Context) string {
		var h autoscalingv2.HorizontalPodAutoscaler
		if err := w.client.Get(ctx, key("sluice-"+name), &h); err != nil {
			return err.Error()
		}
		for _, c := range h.Status.Conditions {
			if c.Type == autoscalingv2.ScalingActive && c.Status == corev1.ConditionFalse &&
				strings.Contains(c.Message, "stale") && strings.Contains(c.Message, "activator") {
				return ""
			}
		}
		return fmt.Sprintf("%+v", h.Status.Conditions)
	})
	if n := w.replicas(t.Context(), t, name); n != want {
		t.Errorf("%d replicas while the rate is unknown; want %d", n, want)
	}
	w.gate.fail(false)
	eventually(t, 30*time.Second, "the rate to be known again", func(ctx context.Context) string {
		if _, err := w.metric(ctx, "v1beta2", name, v1alpha1.RequestsPerSecond); err != nil {
			return err.Error()
		}
		return ""
	})
}

// Idle: the gate joins the Service, then replicas is 0. Scaled up: the gate stays until a pod is ready.
func (w *world) sleepAndWake(t *testing.T) {
	const name = "sleeps"
	w.gate.set(name, 5)
	w.workload(t, name, 2)
	w.pod(t, name, true)
	w.create(t, function(name))
	w.awaitPhase(t, name, v1alpha1.Active)
	eventually(t, 20*time.Second, "the rate to be read", func(ctx context.Context) string {
		if got, err := w.metric(ctx, "v1beta2", name, v1alpha1.IdleSeconds); err != nil || got > 1.5 {
			return fmt.Sprintf("idle_seconds %v (%v) under traffic", got, err)
		}
		return ""
	})
	if w.replicas(t.Context(), t, name) != 2 {
		t.Fatal("a function under traffic was put to sleep")
	}

	w.gate.set(name, 0)
	w.awaitPhase(t, name, v1alpha1.Idle)
	if n := w.replicas(t.Context(), t, name); n != 0 {
		t.Errorf("Idle with %d replicas", n)
	}
	w.pod(t, name, false)
	if got := w.gateEndpoints(t.Context(), t, name); got != 1 {
		t.Errorf("%d gate endpoints in the Service at zero; want 1", got)
	}

	before := w.version(t, name)
	scale := []byte(`[{"op":"test","path":"/spec","value":{}},{"op":"add","path":"/spec/replicas","value":1}]`)
	if _, err := w.kube.AppsV1().Deployments("default").Patch(t.Context(), name, apitypes.JSONPatchType, scale, metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.kube.AppsV1().Deployments("default").Patch(t.Context(), name, apitypes.JSONPatchType, scale, metav1.PatchOptions{}, "scale"); !apierrors.IsInvalid(err) {
		t.Errorf("a second wake: %v; want 422", err)
	}
	w.awaitPhase(t, name, v1alpha1.Waking)
	if got := w.gateEndpoints(t.Context(), t, name); got != 1 {
		t.Errorf("%d gate endpoints while waking; want 1", got)
	}
	w.pod(t, name, true)
	w.awaitPhase(t, name, v1alpha1.Active)
	eventually(t, 10*time.Second, "the gate to leave", func(ctx context.Context) string {
		if n := w.gateEndpoints(ctx, t, name); n != 0 {
			return fmt.Sprintf("%d endpoints", n)
		}
		return ""
	})
	if w.version(t, name) == before {
		t.Error("the Function's status was not written on the way from Idle to Active")
	}
}

// Deleting a Function that sleeps leaves its workload running, and nothing of Sluice's beside it.
func (w *world) deletionWakes(t *testing.T) {
	const name = "goes"
	w.workload(t, name, 0)
	w.create(t, function(name))
	w.awaitPhase(t, name, v1alpha1.Idle)
	if err := w.client.Delete(t.Context(), function(name)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the workload to be woken", func(ctx context.Context) string {
		if w.replicas(ctx, t, name) < 1 {
			return "0 replicas"
		}
		return ""
	})
	w.pod(t, name, true)
	eventually(t, 20*time.Second, "the Function and all it had to be gone", func(ctx context.Context) string {
		if err := w.client.Get(ctx, key(name), &v1alpha1.Function{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("Function: %v", err)
		}
		if err := w.client.Get(ctx, key("sluice-"+name), &corev1.Service{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("Service: %v", err)
		}
		if n := w.gateEndpoints(ctx, t, name); n != 0 {
			return fmt.Sprintf("%d gate endpoints", n)
		}
		return ""
	})
}

// What the API refuses, it explains.
func (w *world) words(t *testing.T) {
	for _, tt := range []struct{ function, metric, want string }{
		{"nobody", v1alpha1.RequestsPerSecond, "there is no Function default/nobody"},
		{"follows", "queue_depth", "requests_per_second"},
	} {
		out, err := w.kubectl("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/"+tt.function+"/"+tt.metric)
		if err == nil || !strings.Contains(out, "NotFound") || !strings.Contains(out, tt.want) {
			t.Errorf("%s of %s: %v, %q; want NotFound with %q", tt.metric, tt.function, err, out, tt.want)
		}
	}
	out, err := w.kubectl("get", "fn", "sleeps")
	if err != nil || !strings.Contains(out, "PHASE") || !strings.Contains(out, "REASON") {
		t.Errorf("kubectl get fn: %v\n%s", err, out)
	}
}

func function(name string) *v1alpha1.Function {
	return &v1alpha1.Function{
		ObjectMeta: types("default", name),
		Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{Mode: v1alpha1.Proxied},
			Scale:   v1alpha1.Scale{MaxReplicas: 5, IdleAfter: &metav1.Duration{Duration: 2 * time.Second}},
		},
	}
}

func key(name string) client.ObjectKey { return client.ObjectKey{Namespace: "default", Name: name} }

func (w *world) create(t *testing.T, obj client.Object) {
	t.Helper()
	if err := w.client.Create(t.Context(), obj); err != nil {
		t.Fatalf("creating %T %s: %v", obj, obj.GetName(), err)
	}
}

// workload creates a Deployment and a Service without selector, whose pods the test stands in for.
func (w *world) workload(t *testing.T, name string, replicas int32) {
	t.Helper()
	labels := map[string]string{"app": name}
	w.create(t, &appsv1.Deployment{
		ObjectMeta: types("default", name),
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "function", Image: "function"}}},
			},
		},
	})
	w.create(t, &corev1.Service{
		ObjectMeta: types("default", name),
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
}

// pod makes the Service have one ready pod, a new one each time, or none.
func (w *world) pod(t *testing.T, service string, ready bool) {
	t.Helper()
	tcp, port, portName := corev1.ProtocolTCP, int32(8080), "http"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: types("default", service+"-pods")}
	if err := client.IgnoreNotFound(w.client.Delete(t.Context(), slice.DeepCopy())); err != nil {
		t.Fatal(err)
	}
	if !ready {
		return
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "test"}
	slice.AddressType = discoveryv1.AddressTypeIPv4
	slice.Endpoints = []discoveryv1.Endpoint{{
		Addresses:  []string{"10.1.2.4"},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: service, UID: uuid.NewUUID()},
	}}
	slice.Ports = []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}}
	w.create(t, slice)
}

func (w *world) replicas(ctx context.Context, t *testing.T, name string) int32 {
	t.Helper()
	var d appsv1.Deployment
	if err := w.client.Get(ctx, key(name), &d); err != nil {
		t.Fatal(err)
	}
	return *d.Spec.Replicas
}

func (w *world) version(t *testing.T, name string) string {
	t.Helper()
	var fn v1alpha1.Function
	if err := w.client.Get(t.Context(), key(name), &fn); err != nil {
		t.Fatal(err)
	}
	return fn.ResourceVersion
}

// gateEndpoints counts the gate's endpoints in the function's own Service.
func (w *world) gateEndpoints(ctx context.Context, t *testing.T, service string) int {
	t.Helper()
	var list discoveryv1.EndpointSliceList
	if err := w.client.List(ctx, &list, client.InNamespace("default"), client.MatchingLabels{
		discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: v1alpha1.GateManager,
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range list.Items {
		n += len(s.Endpoints)
	}
	return n
}

func (w *world) awaitPhase(t *testing.T, name string, phase v1alpha1.Phase) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("function %s to be %s", name, phase), func(ctx context.Context) string {
		var fn v1alpha1.Function
		if err := w.client.Get(ctx, key(name), &fn); err != nil {
			return err.Error()
		}
		if fn.Status.Phase != phase {
			return fmt.Sprintf("phase %q, last decision %+v", fn.Status.Phase, fn.Status.LastDecision)
		}
		return ""
	})
}

// metric reads a metric of a function in namespace default as an HPA does.
func (w *world) metric(ctx context.Context, version, function, metric string) (float64, error) {
	raw, err := w.kube.Discovery().RESTClient().Get().
		AbsPath(fmt.Sprintf("/apis/custom.metrics.k8s.io/%s/namespaces/default/functions.sluice.dev/%s/%s", version, function, metric)).
		DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	var list custommetrics.MetricValueList
	if err := json.Unmarshal(raw, &list); err != nil {
		return 0, fmt.Errorf("%w in %s", err, raw)
	}
	if len(list.Items) != 1 {
		return 0, fmt.Errorf("%d items in %s", len(list.Items), raw)
	}
	return list.Items[0].Value.AsApproximateFloat64(), nil
}
