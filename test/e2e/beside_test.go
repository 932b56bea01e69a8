//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/prometheus"
)

// legacyRules are a prometheus-adapter's own.
const legacyRules = `
rules:
- seriesQuery: 'function_calls_total{namespace!="",pod!=""}'
  resources: {overrides: {namespace: {resource: namespace}, pod: {resource: pod}}}
  name: {as: legacy_calls_per_second}
  metricsQuery: 'sum(rate(<<.Series>>{<<.LabelMatchers>>}[20s])) by (<<.GroupBy>>)'
externalRules:
- seriesQuery: 'queue_depth{namespace!=""}'
  resources: {overrides: {namespace: {resource: namespace}}}
  name: {as: legacy_queue_depth}
  metricsQuery: 'sum(<<.Series>>{<<.LabelMatchers>>}) by (queue)'
`

// besidePrometheusAdapter is a cluster that scales on a prometheus-adapter's metrics, and then has Sluice in front of it:
// the HPAs of both kinds go on, and neither adapter's trouble is the other's.
func besidePrometheusAdapter(s *story) {
	s.workload("legacy", 1)
	s.workload("hello", 1)
	fn := proxied("hello")
	fn.Spec.Scale.MinReplicas = 1
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	pod := s.onlyPod("legacy")
	queue := s.queue()
	queue.set(42)
	other := s.prometheusAdapter(s.prometheus(
		prometheus.Target{
			Address: net.JoinHostPort(pod.Status.PodIP, "8080"), Labels: map[string]string{"namespace": s.namespace, "pod": pod.Name},
		},
		prometheus.Target{Address: queue.address, Labels: map[string]string{"namespace": s.namespace}},
	))
	stopLegacy := s.steadyLoad(s.clusterIP("legacy"), 25, false)
	defer stopLegacy()
	stopHello := s.steadyLoad(s.clusterIP("sluice-hello"), 20, true)
	defer stopHello()

	custom := fmt.Sprintf("/apis/custom.metrics.k8s.io/v1beta2/namespaces/%s/pods/*/legacy_calls_per_second", s.namespace)
	external := fmt.Sprintf("/apis/external.metrics.k8s.io/v1beta1/namespaces/%s/legacy_queue_depth", s.namespace)
	if _, err := s.customValue(s.Context(), custom); err == nil {
		s.Error("another adapter's metric is served before Sluice knows of it")
	}
	undo := s.upstream(other)
	defer undo()

	for _, metric := range []struct {
		name string
		read func(context.Context) (float64, error)
		want float64
	}{
		{"the other's custom metric", func(ctx context.Context) (float64, error) { return s.customValue(ctx, custom) }, 25},
		{"the other's external metric", func(ctx context.Context) (float64, error) { return s.externalValue(ctx, external) }, 42},
		{"Sluice's own", func(ctx context.Context) (float64, error) { return s.metric(ctx, "hello", v1alpha1.RequestsPerSecond) }, 20},
	} {
		eventually(s.T, 90*time.Second, metric.name+" to be served", func(ctx context.Context) string {
			if got, err := metric.read(ctx); err != nil || math.Abs(got-metric.want) > metric.want/10 {
				return fmt.Sprintf("%v, want %v (%v)", got, metric.want, err)
			}
			return ""
		})
	}
	eventually(s.T, 90*time.Second, "discovery to list both", func(ctx context.Context) string {
		var all metav1.APIResourceList
		if err := s.read(ctx, "/apis/custom.metrics.k8s.io/v1beta2", &all); err != nil {
			return err.Error()
		}
		for _, name := range []string{"pods/legacy_calls_per_second", "functions.sluice.dev/" + v1alpha1.RequestsPerSecond} {
			if !slices.ContainsFunc(all.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
				return "without " + name
			}
		}
		return ""
	})
	s.ownHPA("legacy", 1, autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "legacy_calls_per_second"}, Target: averageOf("10"),
	}})
	eventually(s.T, 90*time.Second, "an HPA on the other's metric to scale up", func(ctx context.Context) string {
		if n := *s.deployment("legacy").Spec.Replicas; n < 2 {
			return fmt.Sprintf("%d replicas; %s", n, s.hpaSays(ctx, "mine-legacy", autoscalingv2.ScalingActive, corev1.ConditionTrue))
		}
		return ""
	})

	// An adapter that accepts and never answers costs its own readers a deadline, and nobody else anything.
	other.signal(syscall.SIGSTOP)
	defer other.signal(syscall.SIGCONT)
	if _, err := s.customValue(s.Context(), custom); err == nil || !strings.Contains(err.Error(), other.name) {
		s.Errorf("a read of an adapter that hangs: %v; want its name", err)
	}
	var slowest time.Duration
	for range 200 {
		began := time.Now()
		if _, err := s.metric(s.Context(), "hello", v1alpha1.RequestsPerSecond); err != nil {
			s.Errorf("a read of Sluice's own beside an adapter that hangs: %v", err)
		}
		slowest = max(slowest, time.Since(began))
	}
	s.Logf("200 reads of Sluice's own beside an adapter that hangs: the slowest took %s", slowest.Round(time.Millisecond))
	if slowest > time.Second {
		s.Errorf("a read beside an adapter that hangs took %s", slowest)
	}
	other.signal(syscall.SIGCONT)
	eventually(s.T, 60*time.Second, "the other adapter's metric to be back", func(ctx context.Context) string {
		if got, err := s.customValue(ctx, custom); err != nil || got <= 0 {
			return fmt.Sprintf("%v (%v)", got, err)
		}
		return ""
	})
}

// prometheusAdapter is one that runs on the node, behind a Service of the story.
type prometheusAdapter struct {
	name   string // NAMESPACE/SERVICE
	ca     []byte
	signal func(syscall.Signal)
}

// prometheusAdapter starts one on what server knows.
func (s *story) prometheusAdapter(server *prometheus.Server) *prometheusAdapter {
	s.Helper()
	const service, port = "prometheus-adapter", 6444
	dir := s.TempDir()
	pem, key, err := cert.GenerateSelfSignedCertKey(fmt.Sprintf("%s.%s.svc", service, s.namespace), nil, nil)
	if err != nil {
		s.Fatal(err)
	}
	files := map[string][]byte{"rules.yaml": []byte(legacyRules), "tls.crt": pem, "tls.key": key}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			s.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		s.Fatal(err)
	}
	kubeconfig := s.cluster.Kubeconfig()
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.root, ".cluster", "build", "prometheus-adapter"),
		"--config="+filepath.Join(dir, "rules.yaml"), "--prometheus-url="+server.URL, "--metrics-relist-interval=2s", "--metrics-max-age=10m",
		fmt.Sprintf("--secure-port=%d", port), "--tls-cert-file="+filepath.Join(dir, "tls.crt"), "--tls-private-key-file="+filepath.Join(dir, "tls.key"),
		"--lister-kubeconfig="+kubeconfig, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.Fatalf("starting prometheus-adapter: %v", err)
	}
	s.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		if said, err := os.ReadFile(log.Name()); err == nil && s.Failed() {
			s.Logf("prometheus-adapter: %s", said[max(0, len(said)-4000):])
		}
		_ = log.Close()
	})

	name, number, tcp, ready := "https", int32(port), corev1.ProtocolTCP, true
	s.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: name, Port: 443, Protocol: tcp}}},
	})
	s.create(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &tcp}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{s.nodeIP()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	})
	return &prometheusAdapter{
		name: s.namespace + "/" + service, ca: pem, signal: func(sig syscall.Signal) { _ = cmd.Process.Signal(sig) },
	}
}

// upstream puts Sluice in front of other, as docs/operations.md says, until undo.
func (s *story) upstream(other *prometheusAdapter) (undo func()) {
	s.Helper()
	const name, dir = "upstream-ca", "/etc/upstream"
	ca := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name}, Data: map[string]string{"ca.crt": string(other.ca)},
	}
	if err := s.client.Create(s.Context(), ca); err != nil {
		s.Fatal(err)
	}
	var before corev1.PodTemplateSpec
	s.changeSystem("sluice-adapter", func(d *appsv1.Deployment) {
		before = *d.Spec.Template.DeepCopy()
		pod := &d.Spec.Template.Spec
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		}})
		c := &pod.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: dir, ReadOnly: true})
		c.Args = append(c.Args, "--upstream-custom-metrics="+other.name, "--upstream-external-metrics="+other.name, "--upstream-ca-file="+dir+"/ca.crt")
	})
	return func() {
		s.Helper()
		s.changeSystem("sluice-adapter", func(d *appsv1.Deployment) { d.Spec.Template = before })
		s.awaitRollout(s.T, "sluice-adapter", 2)
		if err := s.client.Delete(context.Background(), ca); err != nil {
			s.Error(err)
		}
	}
}

// onlyPod waits for the only pod of a workload.
func (s *story) onlyPod(workload string) *corev1.Pod {
	s.Helper()
	var pods corev1.PodList
	eventually(s.T, 30*time.Second, "the pod of "+workload, func(ctx context.Context) string {
		if err := s.client.List(ctx, &pods, client.InNamespace(s.namespace), client.MatchingLabels{"app": workload}); err != nil {
			return err.Error()
		}
		if len(pods.Items) != 1 || pods.Items[0].Status.PodIP == "" {
			return fmt.Sprintf("%d pods", len(pods.Items))
		}
		return ""
	})
	return &pods.Items[0]
}
