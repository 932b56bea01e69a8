//go:build integration

package integration

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	metrics "github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/adapter"
	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
	queries "github.com/sluice-dev/sluice/providers/prometheus"
	"github.com/sluice-dev/sluice/providers/requests"
	"github.com/sluice-dev/sluice/scaler"
	"github.com/sluice-dev/sluice/test/cluster"
)

var state = flag.String("state", "", "state directory with the programs of the test cluster")

// world is a control plane with adapter and scaler at work.
type world struct {
	client  client.Client
	kube    kubernetes.Interface
	kubectl func(args ...string) (string, error)
	config  *rest.Config // of an administrator
	gate    *gate
	// prometheus is the URL of a server whose answer to the query N is N, for those who know its password.
	prometheus string
	adapter    string // address
	root       string
}

func newWorld(t *testing.T) *world {
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
		// Every 15 s by default; what it does is the same.
		ControllerManagerArgs: []string{"--horizontal-pod-autoscaler-sync-period=2s"},
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
	w := &world{root: root, config: config, gate: newGate(t)}
	w.kubectl = func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(c.BinDir(), "kube"),
			append([]string{"kubectl", "--kubeconfig", c.Kubeconfig()}, args...)...).CombinedOutput()
		return string(out), err
	}
	if w.client, err = client.New(config, client.Options{Scheme: scheme.Scheme}); err != nil {
		t.Fatal(err)
	}
	if w.kube, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if out, err := w.kubectl("apply", "-k", filepath.Join(root, "manifests", "base")); err != nil {
		t.Fatalf("applying manifests/base: %v\n%s", err, out)
	}
	w.startAdapter(t, config)
	w.startScaler(t, config)
	return w
}

// as returns config with the identity of one of Sluice's ServiceAccounts, and so with its rights only.
func (w *world) as(t *testing.T, config *rest.Config, account string) *rest.Config {
	t.Helper()
	token, err := w.kube.CoreV1().ServiceAccounts(v1alpha1.SystemNamespace).
		CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := rest.AnonymousClientConfig(config)
	c.BearerToken = token.Status.Token
	return c
}

// run runs a component until the test ends.
func run(t *testing.T, name string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(logr.NewContext(context.Background(), testr.NewWithOptions(t, testr.Options{}).WithName(name)))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s did not end within 30s", name)
		}
	})
}

// startAdapter runs the adapter on loopback, where the API server reaches it by a Service of type ExternalName.
func (w *world) startAdapter(t *testing.T, config *rest.Config) {
	t.Helper()
	ctx := t.Context()
	account := w.as(t, config, "sluice-adapter")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	w.adapter = listener.Addr().String()
	name := types(v1alpha1.SystemNamespace, adapter.Service)
	if err := w.client.Delete(ctx, &corev1.Service{ObjectMeta: name}); err != nil {
		t.Fatal(err)
	}
	external := &corev1.Service{ObjectMeta: name, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}
	if err := w.client.Create(ctx, external); err != nil {
		t.Fatal(err)
	}
	w.registerAt(t, port)
	intervals := providers.Intervals{Pod: time.Second, Query: time.Second}
	store := providers.NewStore(intervals)
	secrets := secretsOf(t, account)
	scraper := requests.NewScraper()
	scraper.Secrets = secrets
	t.Cleanup(scraper.Close)
	prometheus := newPrometheus(t)
	w.prometheus = prometheus.URL
	queries, err := queries.New(queries.Options{Secrets: secrets, Allow: []string{prometheus.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(queries.Close)
	registry := metrics.NewRegistry()
	lags, err := kafka.New(kafka.Options{Secrets: secrets, Allow: []string{"127.0.0.1"}, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lags.Close)
	collector, err := providers.NewCollector(providers.Options{
		Store:     store,
		Discovery: withGate{real: &requests.Discovery{Config: account, Namespace: v1alpha1.SystemNamespace}, gate: w.gate.endpoint()},
		Sources: map[providers.Kind]providers.Source{
			providers.Activator: scraper, providers.Pod: podsAt{scraper, w.gate.address()}, providers.Query: queries, providers.Lag: lags,
		},
		Registerer: registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "collector", collector.Run)
	server := adapter.NewServerOptions()
	server.SecureServing.Listener, server.SecureServing.BindPort = listener, 0
	run(t, "adapter", func(ctx context.Context) error {
		return adapter.Run(ctx, adapter.Options{
			Config: account, Reader: store, Ready: collector.Ready, Registry: registry, Server: server, DrainDelay: -1,
		})
	})
}

// registerAt makes the APIServices lead to port. The adapter would make that of external metrics by itself, but at the
// port of a real Service.
func (w *world) registerAt(t *testing.T, port int) {
	t.Helper()
	for _, version := range []string{"v1beta1", "v1beta2"} {
		if out, err := w.kubectl("patch", "apiservice", version+".custom.metrics.k8s.io", "--type=merge",
			"-p", fmt.Sprintf(`{"spec":{"service":{"port":%d}}}`, port)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	external := filepath.Join(t.TempDir(), "external.yaml")
	if err := os.WriteFile(external, fmt.Appendf(nil, externalAPIService, v1alpha1.SystemNamespace, adapter.Service, port), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := w.kubectl("create", "-f", external); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

const externalAPIService = `apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  service: {namespace: %s, name: %s, port: %d}
`

func secretsOf(t *testing.T, config *rest.Config) *providers.Secrets {
	t.Helper()
	client, err := corev1client.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return providers.NewSecrets(providers.SecretsOptions{Client: client, TTL: time.Second})
}

// podsAt measures all pods at one address, by the path that their Function names: an EndpointSlice may not name loopback
// addresses.
type podsAt struct {
	providers.Source
	address string
}

func (s podsAt) Measure(ctx context.Context, t providers.Target) (*providers.Measurement, error) {
	t.Address = s.address
	return s.Source.Measure(ctx, t)
}

func (w *world) startScaler(t *testing.T, config *rest.Config) {
	t.Helper()
	// An activator's endpoint; nothing is ever sent to it, for there is no node.
	yes, tcp, port, portName := true, corev1.ProtocolTCP, int32(9090), v1alpha1.ActivatorMetricsPort
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  types(v1alpha1.SystemNamespace, "activator-stand-in"),
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.1.2.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: v1alpha1.ActivatorService, discoveryv1.LabelManagedBy: "test"}
	if err := w.client.Create(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	run(t, "scaler", func(ctx context.Context) error {
		return scaler.Run(ctx, scaler.Options{
			RestConfig: w.as(t, config, "sluice-scaler"), MetricsAddress: "0", HealthAddress: "0", Prover: proven{},
		})
	})
}

// proven stands in for a data path, which needs kube-proxy.
type proven struct{}

func (proven) Prove(context.Context, scaler.Path) error { return nil }

// withGate is the real discovery, but for the activators: an EndpointSlice may not name loopback addresses.
type withGate struct {
	real providers.Discovery
	gate providers.Endpoint
}

func (d withGate) Run(ctx context.Context, sink providers.Sink) error {
	return d.real.Run(ctx, gateSink{Sink: sink, gate: d.gate})
}

type gateSink struct {
	providers.Sink
	gate providers.Endpoint
}

func (s gateSink) SetActivators([]providers.Endpoint) {
	s.Sink.SetActivators([]providers.Endpoint{s.gate})
}

// gate is the metrics of an activator through which requests come at rates that the test sets, and at /pods/FUNCTION
// those of a pod of FUNCTION that takes requests at the same rate. Its counters are exact.
type gate struct {
	server *httptest.Server
	began  time.Time

	mu     sync.Mutex // protects following
	broken bool
	rates  map[string]*arrivals // by function, of namespace default
}

// arrivals at a steady rate, and before it the count of those at earlier rates.
type arrivals struct {
	rate  float64
	since time.Time
	count float64
}

func (a *arrivals) at(now time.Time) float64 { return a.count + a.rate*now.Sub(a.since).Seconds() }

func newGate(t *testing.T) *gate {
	g := &gate{began: time.Now(), rates: map[string]*arrivals{}}
	g.server = httptest.NewServer(g)
	t.Cleanup(g.server.Close)
	return g
}

func (g *gate) address() string { return strings.TrimPrefix(g.server.URL, "http://") }

func (g *gate) endpoint() providers.Endpoint {
	address := g.address()
	return providers.Endpoint{Target: providers.Target{Kind: providers.Activator, Address: address, Scrape: providers.Scrape{Path: "/metrics"}}, Ready: true, Expected: true}
}

// set makes requests for function arrive at rate per second from now on.
func (g *gate) set(function string, rate float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if a := g.rates[function]; a != nil {
		a.count, a.since, a.rate = a.at(now), now, rate
		return
	}
	g.rates[function] = &arrivals{rate: rate, since: now}
}

// fail makes every scrape fail from now on, or no longer.
func (g *gate) fail(broken bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = broken
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken {
		http.Error(w, "broken by the test", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %v\n", float64(g.began.UnixNano())/1e9)
	if function, ok := strings.CutPrefix(r.URL.Path, "/pods/"); ok {
		a := g.rates[function]
		if a == nil {
			a = &arrivals{}
		}
		fmt.Fprintf(w, "# TYPE calls_total counter\ncalls_total %v\n", a.at(time.Now()))
		return
	}
	fmt.Fprintf(w, "# TYPE %s counter\n", v1alpha1.ActivatorStarted)
	for function, a := range g.rates {
		fmt.Fprintf(w, "%s{namespace=\"default\",function=%q} %v\n", v1alpha1.ActivatorStarted, function, a.at(time.Now()))
	}
}

func types(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

// eventually polls until done returns "", and fails with what done last said when that takes longer than limit.
func eventually(t *testing.T, limit time.Duration, what string, done func(context.Context) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := "nothing yet"
	for {
		said := done(ctx)
		if said == "" {
			return
		}
		if ctx.Err() == nil {
			last = said
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %s", what, limit, last)
		}
	}
}
