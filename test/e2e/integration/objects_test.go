//go:build integration

package integration

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	custommetricsv1beta1 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta1"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetrics "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// podRate is the rate at each of the two pods of functions that direct makes.
const podRate = 14.0

// direct makes a Deployment with two pods that count their own requests, and its Function, which never sleeps. The pods
// are those of the Deployment, which the test says are running.
func (w *world) direct(t *testing.T, name string, metrics ...v1alpha1.Metric) {
	t.Helper()
	w.gate.set(name, podRate)
	w.workload(t, name, 2)
	fn := function(name)
	fn.Labels = map[string]string{"app": name}
	fn.Spec.Scale.MinReplicas = 1
	fn.Spec.Traffic = &v1alpha1.Traffic{
		Mode: v1alpha1.Direct, PodMetrics: &v1alpha1.PodMetrics{Path: "/pods/" + name, Requests: "calls_total"},
	}
	fn.Spec.Metrics = metrics
	w.create(t, fn)
	w.runPods(t, name, 2)
}

// runPods makes n pods of the Deployment running and ready, in its Service too.
func (w *world) runPods(t *testing.T, name string, n int) {
	t.Helper()
	var pods corev1.PodList
	eventually(t, 30*time.Second, fmt.Sprintf("%d pods of %s", n, name), func(ctx context.Context) string {
		err := w.client.List(ctx, &pods, client.InNamespace("default"), client.MatchingLabels{"app": name})
		if err != nil || len(pods.Items) != n {
			return fmt.Sprintf("%d pods, %v", len(pods.Items), err)
		}
		return ""
	})
	yes, port, portName := true, int32(8080), "http"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: types("default", name+"-pods"), AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "test"}
	for i := range pods.Items {
		pod := &pods.Items[i]
		ip, now := fmt.Sprintf("10.1.3.%d", i+1), metav1.Now()
		pod.Status.Phase, pod.Status.PodIP, pod.Status.StartTime = corev1.PodRunning, ip, &now
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
		if err := w.client.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &yes},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod.Name, UID: pod.UID},
		})
	}
	w.create(t, slice)
}

// asHPA is a client of the API server with the identity of its HPA controller.
func (w *world) asHPA(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	config := rest.CopyConfig(w.config)
	config.Impersonate.UserName = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
	config.Impersonate.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// item is one value of either version of the API.
type item struct {
	object    corev1.ObjectReference
	metric    string
	value     float64
	timestamp time.Time
	window    *int64
}

func items(list runtime.Object) ([]item, error) {
	var all []item
	switch list := list.(type) {
	case *custommetricsv1beta1.MetricValueList:
		for _, i := range list.Items {
			all = append(all, item{i.DescribedObject, i.MetricName, i.Value.AsApproximateFloat64(), i.Timestamp.Time, i.WindowSeconds})
		}
	case *custommetrics.MetricValueList:
		for _, i := range list.Items {
			all = append(all, item{i.DescribedObject, i.Metric.Name, i.Value.AsApproximateFloat64(), i.Timestamp.Time, i.WindowSeconds})
		}
	case *externalmetrics.ExternalMetricValueList:
		for _, i := range list.Items {
			all = append(all, item{corev1.ObjectReference{}, i.MetricName, i.Value.AsApproximateFloat64(), i.Timestamp.Time, i.WindowSeconds})
		}
	default:
		return nil, fmt.Errorf("a list of type %T", list)
	}
	return all, nil
}

// read reads a list of values, in JSON or protobuf.
func read(ctx context.Context, kube kubernetes.Interface, path, accept string) ([]item, error) {
	result := kube.Discovery().RESTClient().Get().RequestURI("/apis/"+path).SetHeader("Accept", accept).Do(ctx)
	raw, err := result.Raw()
	if err != nil {
		return nil, err
	}
	var contentType string
	if result.ContentType(&contentType); contentType != accept {
		return nil, fmt.Errorf("answered %s, asked for %s", contentType, accept)
	}
	metrics := runtime.NewScheme()
	utilruntime.Must(custommetricsv1beta1.AddToScheme(metrics))
	utilruntime.Must(custommetrics.AddToScheme(metrics))
	utilruntime.Must(externalmetrics.AddToScheme(metrics))
	list, _, err := serializer.NewCodecFactory(metrics).UniversalDeserializer().Decode(raw, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%w in %q", err, raw)
	}
	return items(list)
}

// The API through the aggregation layer as the HPA controller asks it: both versions, both encodings, and every object
// that stands for a function.
func (w *world) api(t *testing.T) {
	w.direct(t, "described")
	w.statefulSet(t, "stateful")
	kube := w.asHPA(t)
	tests := []struct {
		object string // in the path
		kind   corev1.ObjectReference
		items  int
		value  float64
	}{
		{"functions.sluice.dev/described", corev1.ObjectReference{Kind: "Function", APIVersion: "sluice.dev/v1alpha1", Name: "described"}, 1, 2 * podRate},
		{"deployments.apps/described", corev1.ObjectReference{Kind: "Deployment", APIVersion: "apps/v1", Name: "described"}, 1, 2 * podRate},
		{"services/described", corev1.ObjectReference{Kind: "Service", APIVersion: "v1", Name: "described"}, 1, 2 * podRate},
		{"statefulsets.apps/stateful", corev1.ObjectReference{Kind: "StatefulSet", APIVersion: "apps/v1", Name: "stateful"}, 1, podRate},
		{"pods/*", corev1.ObjectReference{Kind: "Pod", APIVersion: "v1"}, 2, podRate},
	}
	for _, version := range []string{"v1beta1", "v1beta2"} {
		for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
			for _, tt := range tests {
				path := fmt.Sprintf("custom.metrics.k8s.io/%s/namespaces/default/%s/%s", version, tt.object, v1alpha1.RequestsPerSecond)
				if tt.object == "pods/*" {
					path += "?labelSelector=app%3Ddescribed"
				}
				eventually(t, 60*time.Second, path+" as "+accept, func(ctx context.Context) string {
					got, err := read(ctx, kube, path, accept)
					if err != nil || len(got) != tt.items {
						return fmt.Sprintf("%d items: %v", len(got), err)
					}
					for _, i := range got {
						if tt.kind.Name == "" {
							i.object.Name = ""
						}
						tt.kind.Namespace = "default"
						switch {
						case i.object != tt.kind:
							return fmt.Sprintf("describes %+v, want %+v", i.object, tt.kind)
						case i.metric != v1alpha1.RequestsPerSecond || math.Abs(i.value-tt.value) > 0.02*tt.value:
							return fmt.Sprintf("%s is %v, want %v", i.metric, i.value, tt.value)
						case time.Since(i.timestamp).Abs() > 10*time.Second || i.window == nil || *i.window < 1 || *i.window > 30:
							return fmt.Sprintf("observed at %v over %v seconds", i.timestamp, i.window)
						}
					}
					return ""
				})
			}
		}
	}
	const external = "external.metrics.k8s.io/v1beta1/namespaces/default/requests_per_second?labelSelector=function%3Ddescribed"
	for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		got, err := read(t.Context(), kube, external, accept)
		if err != nil || len(got) != 1 || math.Abs(got[0].value-2*podRate) > 0.02*2*podRate {
			t.Errorf("%s as %s: %+v, %v", external, accept, got, err)
		}
	}
}

// statefulSet makes a StatefulSet whose requests come through the gate, and its Function.
func (w *world) statefulSet(t *testing.T, name string) {
	t.Helper()
	w.gate.set(name, podRate)
	labels, replicas := map[string]string{"app": name}, int32(1)
	w.create(t, &appsv1.StatefulSet{
		ObjectMeta: types("default", name),
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels},
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
	fn := function(name)
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: name}
	fn.Spec.Scale.MinReplicas = 1
	w.create(t, fn)
}

// newPrometheus is a server whose answer to the query N is N, for those who know its password.
func newPrometheus(t *testing.T) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "sluice" || password != "open" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		n, err := strconv.ParseFloat(r.FormValue("query"), 64)
		if err != nil {
			http.Error(w, "not a number", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"scalar","result":[%d,"%v"]}}`, time.Now().Unix(), n)
	}))
	t.Cleanup(server.Close)
	return server
}

// A Secret is read only once the owner of its namespace has bound the role; until then the value says how.
func (w *world) secretsOnlyWhereGranted(t *testing.T) {
	const name = "asks"
	w.create(t, &corev1.Secret{
		ObjectMeta: types("default", "prometheus"), StringData: map[string]string{"username": "sluice", "password": "open"},
	})
	w.workload(t, name, 1)
	fn := function(name)
	fn.Spec.Traffic, fn.Spec.Scale.MinReplicas, fn.Spec.Activation = nil, 1, v1alpha1.Activation{}
	fn.Spec.Metrics = []v1alpha1.Metric{{Prometheus: &v1alpha1.PrometheusMetric{
		Name: "depth", Server: w.prometheus, Query: "42", Target: resource.MustParse("20"),
		AuthRef: &v1alpha1.SecretRef{Name: "prometheus"},
	}}}
	w.create(t, fn)
	eventually(t, 30*time.Second, "the HPA to name the remedy", w.hpaSays("sluice-"+name, "rolebinding", "sluice-adapter-secrets"))

	out, err := w.kubectl("-n", "default", "create", "rolebinding", "sluice-adapter-secrets",
		"--clusterrole=sluice-adapter-secrets", "--serviceaccount=sluice-system:sluice-adapter")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, 30*time.Second, "the answer to be served", func(ctx context.Context) string {
		if got, err := w.metric(ctx, "v1beta2", name, "depth"); err != nil || got != 42 {
			return fmt.Sprintf("depth is %v (%v)", got, err)
		}
		return ""
	})
	w.follows(t, name, 3) // ceil(42 / 20)
}

func (w *world) follows(t *testing.T, deployment string, want int32) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("%s to have %d replicas", deployment, want), func(ctx context.Context) string {
		var d appsv1.Deployment
		if err := w.client.Get(ctx, key(deployment), &d); err != nil {
			return err.Error()
		}
		if n := *d.Spec.Replicas; n != want {
			return fmt.Sprintf("%d replicas; the HPAs say %s", n, w.hpaConditions(ctx))
		}
		return ""
	})
}

// hpaConditions are all messages of all HorizontalPodAutoscalers.
func (w *world) hpaConditions(ctx context.Context) string {
	var all autoscalingv2.HorizontalPodAutoscalerList
	if err := w.client.List(ctx, &all); err != nil {
		return err.Error()
	}
	var said string
	for _, h := range all.Items {
		for _, c := range h.Status.Conditions {
			said += fmt.Sprintf("\n%s %s=%s: %s", h.Name, c.Type, c.Status, c.Message)
		}
	}
	return said
}
