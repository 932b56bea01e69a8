//go:build integration

package integration

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
)

// TestAdmission installs the CRD in a real API server, which compiles its rules and estimates their cost, and lets it
// judge specs. Those who are refused get words that name the field and the remedy.
func TestAdmission(t *testing.T) {
	admit := startAPIServer(t)
	t.Run("accepted", func(t *testing.T) {
		for _, specs := range []map[string]func(*v1alpha1.Function){
			acceptedSpecs, acceptedLags, acceptedProbes, acceptedProtocols, acceptedAnswers, acceptedLimits,
		} {
			for name, edit := range specs {
				if err := admit(t.Context(), edited(edit)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
	for _, tt := range slices.Concat(refusedSpecs, refusedLags, refusedProbes, refusedProtocols, refusedAnswers, refusedLimits) {
		t.Run(tt.name, func(t *testing.T) {
			err := admit(t.Context(), edited(tt.edit))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, word := range tt.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the refusal does not name %q: %v", word, err)
				}
			}
		})
	}
	t.Run("values that Go cannot hold", func(t *testing.T) { testUnreadable(t, admit) })
}

// testUnreadable: what is admitted must be readable by all components. A single Function that is not would end their
// watches of all Functions, in whatever namespace it is.
func testUnreadable(t *testing.T, admit func(context.Context, client.Object) error) {
	for _, tt := range []struct {
		path  string // of the field, below spec
		value any
		want  string // of the refusal
	}{
		{"traffic.service.port", int64(99999999999), "spec.traffic.service.port must be"},
		{"traffic.service.port", int64(-1), "spec.traffic.service.port must be"},
		{"traffic.service.port", int64(0), "spec.traffic.service.port must be"},
		{"traffic.service.port", "", "spec.traffic.service.port must be"},
		{"traffic.service.port", "Läufer", "spec.traffic.service.port must be"},
		{"scale.behavior.scaleUp.tolerance", "1e1.5", "spec.scale.behavior: tolerance must be"},
		{"scale.behavior.scaleDown.tolerance", "1e1.5", "spec.scale.behavior: tolerance must be"},
		{"scale.behavior.scaleDown.tolerance", "1e9999999999", "spec.scale.behavior: tolerance must be"},
		{"scale.behavior.scaleDown.tolerance", int64(-1), "spec.scale.behavior: tolerance must be"},
		{"scale.behavior.scaleDown.tolerance", "0.05", ""},
		{"scale.behavior.scaleDown.tolerance", "50m", ""},
		{"scale.behavior.scaleDown.tolerance", int64(0), ""},
		{"metrics.requestRate.target", "1e1.5", "spec.metrics[].requestRate.target must be above 0"},
		{"metrics.requestRate.target", "1e9999999999", "spec.metrics[].requestRate.target must be above 0"},
		{"metrics.requestRate.target", "10E", "spec.metrics[].requestRate.target must be above 0"},
		{"metrics.requestRate.target", int64(math.MaxInt64), "spec.metrics[].requestRate.target must be above 0"},
		{"metrics.requestRate.target", int64(0), "spec.metrics[].requestRate.target must be above 0"},
		{"metrics.requestRate.target", "1e3", "spec.metrics[].requestRate.target must be above 0 and at most 1P, and have no exponent"},
		{"metrics.requestRate.target", "1m", ""},
		{"metrics.requestRate.target", "1P", ""},
		{"metrics.requestRate.target", "2Ki", ""},
		{"metrics.requestRate.target", "+.5", ""},
		{"metrics.requestRate.target", int64(3), ""},
		{"metrics.concurrency.limit", int64(0), "spec.metrics[0].concurrency.limit"},
		{"metrics.concurrency.limit", int64(1000001), "spec.metrics[0].concurrency.limit"},
		{"metrics.concurrency.limit", int64(1000000), ""},
		{"metrics.concurrency.target", "10E", "spec.metrics[].concurrency.target must be above 0"},
		{"metrics.prometheus.target", "10E", "spec.metrics[].prometheus.target must be above 0"},
		{"metrics.prometheus.target", "1e9999999999", "spec.metrics[].prometheus.target must be above 0"},
		{"metrics.prometheus.activation", "1e9999999999", "spec.metrics[].prometheus.activation must not be below 0"},
		{"metrics.prometheus.activation", strings.Repeat("9", 400), "spec.metrics[].prometheus.activation must not be below 0"},
		{"metrics.prometheus.activation", int64(0), ""},
		{"metrics.kafkaLag.target", "10E", "spec.metrics[].kafkaLag.target must be above 0"},
		{"metrics.kafkaLag.target", "1e9999999999", "spec.metrics[].kafkaLag.target must be above 0"},
		{"metrics.kafkaLag.target", int64(100), ""},
		{"metrics.kafkaLag.activation", "1e1.5", "spec.metrics[].kafkaLag.activation must not be below 0"},
		{"metrics.kafkaLag.activation", int64(math.MaxInt64), "spec.metrics[].kafkaLag.activation must not be below 0"},
		{"metrics.kafkaLag.activation", "2k", ""},
		{"metrics.kafkaLag.partitions", []any{int64(99999999999)}, "spec.metrics[0].kafkaLag.partitions[0]"},
		{"metrics.kafkaLag.partitions", []any{int64(math.MaxInt32)}, ""},
	} {
		fn := unread(t, tt.path, tt.value)
		err := admit(t.Context(), fn)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v is refused: %v", tt.path, tt.value, err)
		case tt.want != "" && err == nil:
			t.Errorf("%s: %v is accepted; want refused", tt.path, tt.value)
		case tt.want != "" && !strings.Contains(err.Error(), tt.want):
			t.Errorf("%s: %v: the refusal does not say %q: %v", tt.path, tt.value, tt.want, err)
		}
		if err != nil {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(fn.Object, &v1alpha1.Function{}); err != nil {
			t.Errorf("%s: %v is accepted, and cannot be read: %v", tt.path, tt.value, err)
		}
	}
}

// unread is a Function of mode Proxied with one field set to a value that need not fit its Go type.
func unread(t *testing.T, path string, value any) *unstructured.Unstructured {
	t.Helper()
	metric := map[string]any{"requestRate": map[string]any{"target": "1"}}
	spec := map[string]any{"scale": map[string]any{"maxReplicas": int64(5)}, "traffic": map[string]any{"mode": "Proxied"}, "metrics": []any{metric}}
	within, fields := spec, strings.Split(path, ".")
	if fields[0] == "metrics" {
		within, fields = metric, fields[1:]
		if fields[0] != "requestRate" {
			delete(metric, "requestRate")
		}
		if fields[0] == "prometheus" {
			metric["prometheus"] = map[string]any{"name": "queue", "server": "http://prometheus", "query": "x", "target": "1"}
		}
		if fields[0] == "concurrency" {
			metric["concurrency"] = map[string]any{"target": "1"}
		}
		if fields[0] == "kafkaLag" {
			metric["kafkaLag"] = map[string]any{"bootstrapServers": []any{"kafka:9092"}, "topic": "orders", "group": "hello", "target": "1"}
		}
	}
	if err := unstructured.SetNestedField(within, value, fields...); err != nil {
		t.Fatal(err)
	}
	fn := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	fn.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("Function"))
	fn.SetNamespace("default")
	fn.SetName("hello")
	return fn
}

// startAPIServer starts a control plane that knows Functions, and returns a dry run of creating one.
func startAPIServer(t *testing.T) func(context.Context, client.Object) error {
	t.Helper()
	if *state == "" {
		t.Fatal("run these with `make integration`: the flag -state is missing")
	}
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		ControlPlaneOnly: true, Root: root, BinDir: filepath.Join(*state, "bin"), Log: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(c.BinDir(), "kube"), "kubectl", "--kubeconfig", c.Kubeconfig(),
		"create", "-f", filepath.Join(root, "manifests", "crd", "functions.yaml")).CombinedOutput()
	if err != nil {
		t.Fatalf("the API server refuses the CRD: %v\n%s", err, out)
	}
	admit := func(ctx context.Context, fn client.Object) error { return api.Create(ctx, fn, client.DryRunAll) }
	eventually(t, 30*time.Second, "Functions to be served", func(ctx context.Context) string {
		if err := admit(ctx, edited(func(*v1alpha1.Function) {})); err != nil {
			return err.Error()
		}
		return ""
	})
	return admit
}

// edited is a Function of mode Direct, changed.
func edited(edit func(*v1alpha1.Function)) *v1alpha1.Function {
	fn := &v1alpha1.Function{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}}
	fn.Spec.Scale.MaxReplicas = 5
	fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Direct, PodMetrics: &v1alpha1.PodMetrics{Requests: "requests_total"}}
	edit(fn)
	return fn
}

// querying adds a Prometheus metric, changed.
func querying(edit func(*v1alpha1.PrometheusMetric)) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		m := &v1alpha1.PrometheusMetric{
			Name: "queue_depth", Server: "http://prometheus.monitoring:9090", Query: "sum(queue_depth)", Target: resource.MustParse("20"),
		}
		edit(m)
		fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{Prometheus: m})
	}
}

func asItIs(*v1alpha1.PrometheusMetric) {}

// withoutTraffic leaves a Function that scales on a Prometheus metric alone.
func withoutTraffic(fn *v1alpha1.Function) {
	fn.Spec.Traffic = nil
	querying(asItIs)(fn)
}

func podMetrics(pm v1alpha1.PodMetrics) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Traffic.PodMetrics = &pm }
}

func workload(kind string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Kind: kind, Name: "hello"} }
}

var acceptedSpecs = map[string]func(*v1alpha1.Function){
	"a StatefulSet":               workload("StatefulSet"),
	"a Deployment":                workload("Deployment"),
	"a preset alone":              podMetrics(v1alpha1.PodMetrics{Preset: v1alpha1.Kubeless}),
	"a Prometheus metric":         querying(asItIs),
	"no traffic, minReplicas 0":   withoutTraffic,
	"activation 0, emptyIs Zero":  querying(func(m *v1alpha1.PrometheusMetric) { m.Activation, m.EmptyIs = new(resource.MustParse("0")), "Zero" }),
	"a fraction as activation":    querying(func(m *v1alpha1.PrometheusMetric) { m.Activation = new(resource.MustParse("500m")) }),
	"a server with path and port": querying(func(m *v1alpha1.PrometheusMetric) { m.Server = "https://[fd00::1]:9090/tenant/a" }),
	"a name as recording rules have it": querying(func(m *v1alpha1.PrometheusMetric) {
		m.Name = "job:queue_depth:sum"
	}),
	"names to fill in": querying(func(m *v1alpha1.PrometheusMetric) {
		m.Query = `sum(rate(x{namespace="{{.Namespace}}",function="{{.Function}}"}[1m])) or vector(0)`
	}),
	"https with authorities": podMetrics(v1alpha1.PodMetrics{
		Preset: v1alpha1.OpenTelemetry, Scheme: "HTTPS", TLS: &v1alpha1.PodMetricsTLS{CARef: &v1alpha1.SecretRef{Name: "ca"}, ServerName: "hello"},
	}),
	"a preset is someone who counts what is in flight": func(fn *v1alpha1.Function) {
		podMetrics(v1alpha1.PodMetrics{Preset: v1alpha1.Kubeless})(fn)
		fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("10")}}}
	},
	"a duration is too": func(fn *v1alpha1.Function) {
		fn.Spec.Traffic.PodMetrics.Duration = "request_seconds"
		fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("10")}}}
	},
	// The rules' real cost is bounded as well as their estimated one.
	"as large as may be": func(fn *v1alpha1.Function) {
		for i := range 8 {
			querying(func(m *v1alpha1.PrometheusMetric) {
				m.Name = strings.Repeat("n", 62) + strconv.Itoa(i)
				m.Server = "http://prometheus/" + strings.Repeat("p", 512-len("http://prometheus/"))
				m.Query = strings.Repeat("{{.Function}} ", 4096/14)
			})(fn)
		}
	},
}

// refusal of a spec, in words.
type refusal struct {
	name string
	edit func(*v1alpha1.Function)
	want []string
}

var refusedSpecs = []refusal{
	{"a workload that cannot sleep", workload("DaemonSet"), []string{"spec.workloadRef", "Deployment or a StatefulSet"}},
	{
		"pods that name nothing", podMetrics(v1alpha1.PodMetrics{Port: 8080}),
		[]string{"spec.traffic.podMetrics", "requests", "preset"},
	},
	{
		"an unknown preset", podMetrics(v1alpha1.PodMetrics{Preset: "Knative"}),
		[]string{"spec.traffic.podMetrics.preset", `"Kubeless"`, `"Generic"`},
	},
	{
		"tls over http", podMetrics(v1alpha1.PodMetrics{Requests: "x", TLS: &v1alpha1.PodMetricsTLS{InsecureSkipVerify: true}}),
		[]string{"spec.traffic.podMetrics.tls", "scheme HTTPS"},
	},
	{
		"authorities that are not looked at", podMetrics(v1alpha1.PodMetrics{
			Requests: "x", Scheme: "HTTPS", TLS: &v1alpha1.PodMetricsTLS{InsecureSkipVerify: true, CARef: &v1alpha1.SecretRef{Name: "ca"}},
		}),
		[]string{"podMetrics.tls.caRef", "insecureSkipVerify"},
	},
	{
		"nobody counts what is in flight", func(fn *v1alpha1.Function) {
			fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("10")}}}
		},
		[]string{"spec.metrics[].concurrency", "podMetrics.inFlight", "podMetrics.duration"},
	},
	{
		"a name that is taken", querying(func(m *v1alpha1.PrometheusMetric) { m.Name = "idle_seconds" }),
		[]string{"spec.metrics[].prometheus.name", "choose another"},
	},
	{
		"a name of Kafka's", querying(func(m *v1alpha1.PrometheusMetric) { m.Name = "kafka_lag" }),
		[]string{"spec.metrics[].prometheus.name", "choose another"},
	},
	{
		"a name that is no path segment", querying(func(m *v1alpha1.PrometheusMetric) { m.Name = "queue/depth" }),
		[]string{"spec.metrics[0].prometheus.name"},
	},
	{
		"one name for two", func(fn *v1alpha1.Function) {
			querying(asItIs)(fn)
			querying(asItIs)(fn)
		},
		[]string{"spec.metrics[].prometheus", "a name of its own"},
	},
	{
		"a server without scheme", querying(func(m *v1alpha1.PrometheusMetric) { m.Server = "prometheus:9090" }),
		[]string{"spec.metrics[0].prometheus.server"},
	},
	{
		"a server with a password", querying(func(m *v1alpha1.PrometheusMetric) { m.Server = "http://me:secret@prometheus" }),
		[]string{"spec.metrics[0].prometheus.server"},
	},
	{
		"a server that is no URL", querying(func(m *v1alpha1.PrometheusMetric) { m.Server = "http://prometheus:web/" }),
		[]string{"spec.metrics[].prometheus.server must be a URL"},
	},
	{
		"a name to fill in that does not exist", querying(func(m *v1alpha1.PrometheusMetric) { m.Query = "sum(x{job=\"{{.Name}}\"})" }),
		[]string{"spec.metrics[].prometheus.query", "{{.Function}}"},
	},
	{
		"target zero", querying(func(m *v1alpha1.PrometheusMetric) { m.Target = resource.MustParse("0") }),
		[]string{"prometheus.target must be above 0"},
	},
	{
		"activation below zero", querying(func(m *v1alpha1.PrometheusMetric) { m.Activation = new(resource.MustParse("-1")) }),
		[]string{"prometheus.activation must not be below 0"},
	},
	{
		"a Secret of another namespace", querying(func(m *v1alpha1.PrometheusMetric) { m.AuthRef = &v1alpha1.SecretRef{Name: "a/b"} }),
		[]string{"authRef.name", "the Function's own namespace"},
	},
	{
		"a Secret without a name", querying(func(m *v1alpha1.PrometheusMetric) { m.AuthRef = &v1alpha1.SecretRef{} }),
		[]string{"authRef.name"},
	},
	{
		"nothing that wakes it", func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil },
		[]string{"spec.scale.minReplicas 0", "spec.traffic", "spec.metrics"},
	},
	{
		"requests held without traffic", func(fn *v1alpha1.Function) {
			withoutTraffic(fn)
			fn.Spec.Activation.MaxHeld = 7
		},
		[]string{"spec.activation", "spec.traffic"},
	},
	{
		"a timeout for requests without traffic", func(fn *v1alpha1.Function) {
			withoutTraffic(fn)
			fn.Spec.Activation.Timeout = &metav1.Duration{Duration: time.Second}
		},
		[]string{"spec.activation", "spec.traffic"},
	},
	{
		"requests counted without traffic", func(fn *v1alpha1.Function) {
			withoutTraffic(fn)
			fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("1")}})
		},
		[]string{"spec.metrics[].requestRate", "spec.traffic"},
	},
}
