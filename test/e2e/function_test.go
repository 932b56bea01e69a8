//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetrics "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// story is one story's namespace and what it does there.
type story struct {
	*world
	*testing.T
	namespace string
}

func (w *world) begin(t *testing.T) *story {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "story-"}}
	if err := w.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	s := &story{world: w, T: t, namespace: ns.Name}
	t.Cleanup(func() {
		if t.Failed() {
			s.tell()
		}
		// The test's own context has ended by now.
		if err := w.client.Delete(context.Background(), ns); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("removing namespace %s: %v", ns.Name, err)
		}
	})
	return s
}

// tell prints what the story's functions look like, for a failure's log.
func (s *story) tell() {
	var fns v1alpha1.FunctionList
	if err := s.client.List(context.Background(), &fns, client.InNamespace(s.namespace)); err != nil {
		s.Logf("listing Functions: %v", err)
		return
	}
	for i := range fns.Items {
		status, err := json.MarshalIndent(fns.Items[i].Status, "  ", "  ")
		s.Logf("function %s: %s %v", fns.Items[i].Name, status, err)
	}
	var events corev1.EventList
	if err := s.client.List(context.Background(), &events, client.InNamespace(s.namespace)); err == nil {
		for _, e := range events.Items {
			s.Logf("event %s %s/%s %s: %s", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

func (s *story) create(obj client.Object) {
	s.Helper()
	obj.SetNamespace(s.namespace)
	if err := s.client.Create(s.Context(), obj); err != nil {
		s.Fatalf("creating %T %s: %v", obj, obj.GetName(), err)
	}
}

func (s *story) get(obj client.Object, name string) {
	s.Helper()
	if err := s.client.Get(s.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, obj); err != nil {
		s.Fatalf("reading %T %s: %v", obj, name, err)
	}
}

// workload creates the sample function's Deployment and Service under name.
func (s *story) workload(name string, replicas int32) {
	s.Helper()
	s.deploy(name, replicas, s.template(name))
	s.service(name)
}

// deploy creates a Deployment of pods of template.
func (s *story) deploy(name string, replicas int32, template corev1.PodTemplateSpec) {
	s.Helper()
	s.create(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Template: template, Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
		},
	})
}

// template is the sample function's pod.
func (s *story) template(name string) corev1.PodTemplateSpec {
	no, yes, uid := false, true, int64(65532)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			Containers: []corev1.Container{{
				Name:            "function",
				Image:           "docker.io/sluice/function:dev",
				ImagePullPolicy: corev1.PullNever,
				Ports:           []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}},
					PeriodSeconds: 1,
					// Three that take longer make a pod unready, and where it is the only one its callers are refused. By
					// default that is 1 s, which a machine that is short of time may need.
					TimeoutSeconds: 5,
				},
				// Without it a pod dies at once when it is told to, while kube-proxy still sends to it.
				Lifecycle:       &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}},
				Resources:       corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("5m")}},
				SecurityContext: &corev1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: &uid},
			}},
		},
	}
}

// service creates the Service in front of the pods of name.
func (s *story) service(name string) {
	s.Helper()
	s.serviceSpeaking(name, "")
}

// serviceSpeaking does the same of a Service whose port says an appProtocol, unless that is "".
func (s *story) serviceSpeaking(name, appProtocol string) {
	s.Helper()
	port := corev1.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}
	if appProtocol != "" {
		port.AppProtocol = &appProtocol
	}
	s.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{port}},
	})
}

// direct and proxied are the Functions that most stories begin from.
func direct(name string) *v1alpha1.Function {
	return &v1alpha1.Function{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{
				Mode:       v1alpha1.Direct,
				PodMetrics: &v1alpha1.PodMetrics{Requests: "function_calls_total", InFlight: "function_in_flight"},
			},
			Scale: v1alpha1.Scale{MaxReplicas: 5, IdleAfter: &metav1.Duration{Duration: time.Minute}},
		},
	}
}

func proxied(name string, hosts ...string) *v1alpha1.Function {
	fn := direct(name)
	fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied, Hosts: hosts}
	return fn
}

// idleAfter and onRate vary a Function.
func idleAfter(fn *v1alpha1.Function, d time.Duration) *v1alpha1.Function {
	fn.Spec.Scale.IdleAfter = &metav1.Duration{Duration: d}
	return fn
}

func onRate(fn *v1alpha1.Function, target string) *v1alpha1.Function {
	fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse(target)}})
	return fn
}

func (s *story) function(name string) *v1alpha1.Function {
	s.Helper()
	var fn v1alpha1.Function
	s.get(&fn, name)
	return &fn
}

// change patches a Function.
func (s *story) change(name string, edit func(*v1alpha1.Function)) {
	s.Helper()
	fn := s.function(name)
	patch := client.MergeFrom(fn.DeepCopy())
	edit(fn)
	if err := s.client.Patch(s.Context(), fn, patch); err != nil {
		s.Fatalf("changing Function %s: %v", name, err)
	}
}

func (s *story) deployment(name string) *appsv1.Deployment {
	s.Helper()
	var d appsv1.Deployment
	s.get(&d, name)
	return &d
}

// awaitPhase waits until the function is in phase. One that is Idle has no replicas; see awaitNoPod.
func (s *story) awaitPhase(name string, phase v1alpha1.Phase, limit time.Duration) {
	s.Helper()
	eventually(s.T, limit, fmt.Sprintf("function %s to be %s", name, phase), func(ctx context.Context) string {
		var fn v1alpha1.Function
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &fn); err != nil {
			return err.Error()
		}
		if fn.Status.Phase != phase {
			return fmt.Sprintf("phase %q, replicas %d, last decision %+v", fn.Status.Phase, fn.Status.Replicas, fn.Status.LastDecision)
		}
		return ""
	})
}

// asleep creates a workload at zero and fn for it, and waits until it sleeps behind its gate.
func (s *story) asleep(fn *v1alpha1.Function) {
	s.Helper()
	s.workload(fn.Name, 0)
	s.create(fn)
	s.awaitPhase(fn.Name, v1alpha1.Idle, 20*time.Second)
	s.awaitGate(fn.Name, true)
}

// awaitGate waits until the gate is, or is not, in the path of the function's own Service. If it is, each activator
// that the Service leads to takes connections at the function's port by then, and so knows its hosts, of which it is told together
// with the port.
func (s *story) awaitGate(name string, inPath bool) {
	s.Helper()
	eventually(s.T, 20*time.Second, fmt.Sprintf("gate of %s in path = %v", name, inPath), func(ctx context.Context) string {
		var slices discoveryv1.EndpointSliceList
		err := s.client.List(ctx, &slices, client.InNamespace(s.namespace), client.MatchingLabels{
			discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: v1alpha1.GateManager,
		})
		if err != nil {
			return err.Error()
		}
		n := 0
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				n++
				if !inPath {
					continue
				}
				if said := unreachable(ctx, e.Addresses[0], *slice.Ports[0].Port); said != "" {
					return said
				}
			}
		}
		if inPath != (n > 0) {
			return fmt.Sprintf("%d gate endpoints", n)
		}
		return ""
	})
}

// unreachable says why a connection cannot be made, or "".
func unreachable(ctx context.Context, ip string, port int32) string {
	conn, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(ctx, "tcp", net.JoinHostPort(ip, fmt.Sprint(port)))
	if err != nil {
		return err.Error()
	}
	conn.Close()
	return ""
}

// clusterIP is the base URL of a Service by its address, once kube-proxy leads connections to it: what goes to the
// address of a Service that is too new for it is dropped, and the client's next try comes after a second.
func (s *story) clusterIP(service string) string {
	s.Helper()
	var address string
	eventually(s.T, 20*time.Second, "Service "+service+" to lead somewhere", func(ctx context.Context) string {
		var svc corev1.Service
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: service}, &svc); err != nil {
			return err.Error()
		}
		address = svc.Spec.ClusterIP
		return unreachable(ctx, address, 80)
	})
	return "http://" + address
}

// answer is one request's fate.
type answer struct {
	status int
	header http.Header
	body   string
	took   time.Duration
	err    error
}

func (a answer) String() string {
	if a.err != nil {
		return fmt.Sprintf("after %s: %v", a.took.Round(time.Millisecond), a.err)
	}
	return fmt.Sprintf("after %s: %d %s", a.took.Round(time.Millisecond), a.status, strings.TrimSpace(a.body))
}

// ok says why the answer is not 200 from a pod, or "".
func (a answer) ok() string {
	if a.err != nil || a.status != http.StatusOK {
		return a.String()
	}
	return ""
}

// call sends one request that does something, on a connection of its own, as a new client would.
func call(ctx context.Context, url, host string) answer { return ask(ctx, http.MethodPost, url, host) }

// ask does the same by any method.
func ask(ctx context.Context, method, url, host string) answer {
	return askWithin(ctx, method, url, host, callLimit)
}

// askWithin does the same with a client that waits for so long.
func askWithin(ctx context.Context, method, url, host string, limit time.Duration) answer {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var sent io.Reader
	if method == http.MethodPost {
		sent = strings.NewReader("hello")
	}
	req, err := http.NewRequestWithContext(ctx, method, url, sent)
	if err != nil {
		return answer{err: err}
	}
	if host != "" {
		req.Host = host
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), took: time.Since(began), err: err}
}

// mustAnswer sends a request that a pod must answer.
func (s *story) mustAnswer(url, host string) answer {
	s.Helper()
	a := call(s.Context(), url, host)
	if said := a.ok(); said != "" {
		s.Fatalf("request to %s (host %q): %s", url, host, said)
	}
	return a
}

// metric reads one metric of a function.
func (s *story) metric(ctx context.Context, function, name string) (float64, error) {
	return s.customValue(ctx, fmt.Sprintf(
		"/apis/custom.metrics.k8s.io/v1beta2/namespaces/%s/functions.sluice.dev/%s/%s", s.namespace, function, name))
}

// customValue reads a metric of which there is one item.
func (s *story) customValue(ctx context.Context, path string) (float64, error) {
	var list custommetrics.MetricValueList
	if err := s.read(ctx, path, &list); err != nil {
		return 0, err
	}
	if len(list.Items) != 1 {
		return 0, fmt.Errorf("%s: %d items", path, len(list.Items))
	}
	return list.Items[0].Value.AsApproximateFloat64(), nil
}

// externalValue does the same of an external metric.
func (s *story) externalValue(ctx context.Context, path string) (float64, error) {
	var list externalmetrics.ExternalMetricValueList
	if err := s.read(ctx, path, &list); err != nil {
		return 0, err
	}
	if len(list.Items) != 1 {
		return 0, fmt.Errorf("%s: %d items", path, len(list.Items))
	}
	return list.Items[0].Value.AsApproximateFloat64(), nil
}

// read is `kubectl get --raw`.
func (s *story) read(ctx context.Context, path string, into any) error {
	raw, err := s.kube.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
	if err != nil {
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			return fmt.Errorf("%s: %s: %s", path, status.Status().Message, raw)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w in %s", path, err, raw)
	}
	return nil
}

// awaitCondition waits for a condition whose message holds each of the words.
func (s *story) awaitCondition(function, condition string, status metav1.ConditionStatus, reason string, words ...string) {
	s.Helper()
	s.awaitConditionWithin(20*time.Second, function, condition, status, reason, words...)
}

// awaitConditionWithin is for conditions that wait for a value to grow stale, or for the next status that is due.
func (s *story) awaitConditionWithin(
	limit time.Duration, function, condition string, status metav1.ConditionStatus, reason string, words ...string,
) {
	s.Helper()
	eventually(s.T, limit, fmt.Sprintf("condition %s=%s/%s of %s", condition, status, reason, function), func(ctx context.Context) string {
		var fn v1alpha1.Function
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: function}, &fn); err != nil {
			return err.Error()
		}
		c := meta.FindStatusCondition(fn.Status.Conditions, condition)
		switch {
		case c == nil:
			return "no such condition"
		case c.Status != status || c.Reason != reason:
			return fmt.Sprintf("%s/%s: %s", c.Status, c.Reason, c.Message)
		case c.ObservedGeneration != fn.Generation:
			return "observed an older generation"
		}
		for _, word := range words {
			if !strings.Contains(c.Message, word) {
				return fmt.Sprintf("message %q lacks %q", c.Message, word)
			}
		}
		return ""
	})
}

// awaitRollout waits until a Deployment of Sluice has n ready pods and no other.
func (w *world) awaitRollout(t *testing.T, name string, n int32) {
	t.Helper()
	eventually(t, 90*time.Second, fmt.Sprintf("%s to have %d pods", name, n), func(ctx context.Context) string {
		var pods corev1.PodList
		err := w.client.List(ctx, &pods, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingLabels{"app.kubernetes.io/name": name})
		if err != nil {
			return err.Error()
		}
		ready := int32(0)
		for _, p := range pods.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
					ready++
				}
			}
		}
		if ready != n || len(pods.Items) != int(n) {
			return fmt.Sprintf("%d pods, %d ready", len(pods.Items), ready)
		}
		return ""
	})
}

// scaleSystem sets the replicas of one of Sluice's own Deployments and waits until it has them.
func (w *world) scaleSystem(t *testing.T, name string, n int32) {
	t.Helper()
	var d appsv1.Deployment
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}
	if err := w.client.Get(context.Background(), key, &d); err != nil {
		t.Fatal(err)
	}
	patch := client.MergeFrom(d.DeepCopy())
	d.Spec.Replicas = &n
	if err := w.client.Patch(context.Background(), &d, patch); err != nil {
		t.Fatal(err)
	}
	w.awaitRollout(t, name, n)
}
