package adapter

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/metrics/pkg/client/custom_metrics"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var update = flag.Bool("update", false, "write testdata anew")

// apiServer is as much of a Kubernetes API server as the adapter talks to: objects by their path, reviews of tokens
// ("good" is one) and of access (only "good" may).
type apiServer struct {
	*httptest.Server
	mu      sync.Mutex // protects following
	objects map[string][]byte
	reviews int
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{objects: map[string][]byte{}}
	ca, err := policy.newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	caPEM := string(pemOf(ca.cert))
	s.put("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication", &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "extension-apiserver-authentication", ResourceVersion: "1"},
		Data: map[string]string{
			"client-ca-file": caPEM, "requestheader-client-ca-file": caPEM, "requestheader-allowed-names": "[]",
			"requestheader-username-headers": `["X-Remote-User"]`, "requestheader-group-headers": `["X-Remote-Group"]`,
			"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
		},
	})
	for _, name := range apiServices {
		a := apiService(name, "sluice-system", Service)
		a.TypeMeta = metav1.TypeMeta{APIVersion: "apiregistration.k8s.io/v1", Kind: "APIService"}
		s.put("/apis/apiregistration.k8s.io/v1/apiservices/"+name, a)
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) put(path string, object any) {
	data, err := json.Marshal(object)
	if err != nil {
		panic(err)
	}
	s.objects[path] = data
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body := readJSON(r)
	answer := func(code int, data []byte) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write(data)
	}
	marshal := func(v any) []byte {
		data, _ := json.Marshal(v)
		return data
	}
	path := r.URL.Path
	switch {
	case strings.HasSuffix(path, "/tokenreviews"):
		var review authenticationv1.TokenReview
		_ = json.Unmarshal(body, &review)
		if review.Spec.Token == "good" || review.Spec.Token == "poor" {
			review.Status = authenticationv1.TokenReviewStatus{
				Authenticated: true, User: authenticationv1.UserInfo{Username: review.Spec.Token},
			}
		}
		answer(http.StatusCreated, marshal(review))
	case strings.HasSuffix(path, "/subjectaccessreviews"):
		var review authorizationv1.SubjectAccessReview
		_ = json.Unmarshal(body, &review)
		review.Status.Allowed = review.Spec.User == "good"
		s.reviews++
		answer(http.StatusCreated, marshal(review))
	case r.Method == http.MethodGet && s.objects[path] != nil:
		answer(http.StatusOK, s.objects[path])
	case r.Method == http.MethodPost && strings.HasSuffix(path, "/secrets"):
		s.objects[path+"/"+certSecret] = body
		answer(http.StatusCreated, body)
	case r.Method == http.MethodPut:
		s.objects[path] = body
		answer(http.StatusOK, body)
	case r.Method == http.MethodPatch:
		patch, err := jsonpatch.DecodePatch(body)
		if err == nil {
			var patched []byte
			if patched, err = patch.Apply(s.objects[path]); err == nil {
				s.objects[path] = patched
				answer(http.StatusOK, patched)
				return
			}
		}
		answer(http.StatusUnprocessableEntity, []byte(err.Error()))
	default:
		answer(http.StatusNotFound, marshal(metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound, Message: r.Method + " " + path,
		}))
	}
}

// readJSON returns the body as JSON, which clients of the built-in kinds send as protobuf.
func readJSON(r *http.Request) []byte {
	body, _ := io.ReadAll(r.Body)
	object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return body
	}
	object.GetObjectKind().SetGroupVersionKind(*kind)
	data, _ := json.Marshal(object)
	return data
}

// bundle is the CA bundle of v1beta2's APIService.
func (s *apiServer) bundle() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var a struct{ Spec struct{ CABundle []byte } }
	_ = json.Unmarshal(s.objects["/apis/apiregistration.k8s.io/v1/apiservices/"+apiServices[1]], &a)
	return a.Spec.CABundle
}

// running is an adapter that serves, and how it is reached through the aggregation layer.
type running struct {
	t      *testing.T
	api    *apiServer
	addr   string
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, change func(*Options)) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	api := newAPIServer(t)
	registry := prometheus.NewRegistry()
	o := Options{
		Config: &rest.Config{Host: api.URL}, Reader: functions, Server: NewServerOptions(), Registry: registry,
		DrainDelay: -1, CertInterval: 100 * time.Millisecond, CertSettle: -1,
	}
	o.Server.SecureServing.Listener = listener
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(logr.NewContext(t.Context(), testr.New(t)))
	r := &running{t: t, api: api, addr: listener.Addr().String(), cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	r.eventually("livez", func() string {
		code, body := r.try("/livez", "")
		if code != http.StatusOK {
			return body
		}
		return ""
	})
	return r
}

// config is how a client reaches the adapter: as the aggregation layer does, by the Service's name and with the bundle
// of the APIService.
func (r *running) config(token string) *rest.Config {
	return &rest.Config{
		Host: "https://" + r.addr, BearerToken: token,
		TLSClientConfig: rest.TLSClientConfig{CAData: r.api.bundle(), ServerName: serverName},
	}
}

func (r *running) try(path, token string) (int, string) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.api.bundle())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: serverName}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "https://"+r.addr+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func (r *running) eventually(what string, wrong func() string) {
	r.t.Helper()
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		select {
		case err := <-r.done:
			r.done <- err
			r.t.Fatalf("%s: Run has ended: %v", what, err)
		default:
		}
		if last = wrong(); last == "" {
			return
		}
	}
	r.t.Fatalf("%s: %s", what, last)
}

// TestShapes compares what is served with files, because other programs read it by these shapes.
func TestShapes(t *testing.T) {
	r := start(t, nil)
	const functionsPath = "/namespaces/default/functions.sluice.dev/"
	tests := []struct {
		name, path string
		code       int
	}{
		{name: "discovery", path: "", code: http.StatusOK},
		{name: "one", path: functionsPath + "awake/requests_per_second", code: http.StatusOK},
		{name: "idle", path: functionsPath + "idle/requests_in_flight", code: http.StatusOK},
		{name: "all", path: functionsPath + "*/requests_per_second", code: http.StatusOK},
		{name: "none", path: functionsPath + "*/requests_per_second?labelSelector=app=zzz", code: http.StatusOK},
		{name: "unknown", path: functionsPath + "stale/requests_per_second", code: http.StatusServiceUnavailable},
		{name: "no-function", path: functionsPath + "nobody/requests_per_second", code: http.StatusNotFound},
		{name: "no-metric", path: functionsPath + "awake/latency", code: http.StatusNotFound},
		{name: "pods", path: "/namespaces/default/pods/*/requests_per_second", code: http.StatusNotFound},
		{name: "namespace-metric", path: "/namespaces/default/metrics/requests_per_second", code: http.StatusNotFound},
		{name: "no-namespace", path: "/functions.sluice.dev/*/requests_per_second", code: http.StatusNotFound},
		{name: "bad-selector", path: functionsPath + "*/requests_per_second?labelSelector=a%20b", code: http.StatusBadRequest},
		{name: "bad-metric-selector", path: functionsPath + "*/requests_per_second?metricLabelSelector=a%20b", code: http.StatusBadRequest},
	}
	for _, version := range []string{"v1beta1", "v1beta2"} {
		for _, tt := range tests {
			t.Run(version+"/"+tt.name, func(t *testing.T) {
				code, body := r.try("/apis/custom.metrics.k8s.io/"+version+tt.path, "good")
				if code != tt.code {
					t.Errorf("status %d, want %d: %s", code, tt.code, body)
				}
				var got bytes.Buffer
				if err := json.Indent(&got, []byte(body), "", "  "); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				golden(t, filepath.Join("testdata", version, tt.name+".json"), got.Bytes())
			})
		}
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	got = append(bytes.TrimSpace(got), '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./adapter -update", err)
	}
	if diff := gocmp.Diff(string(want), string(got)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// TestHPAClient asks as the HorizontalPodAutoscaler's controller does, with its own client.
func TestHPAClient(t *testing.T) {
	r := start(t, nil)
	client, err := discovery.NewDiscoveryClientForConfig(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	// The aggregation layer takes discovery in its aggregated form, as this client does.
	_, resources, err := client.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, list := range resources {
		listed[list.GroupVersion] = len(list.APIResources)
	}
	want := map[string]int{"custom.metrics.k8s.io/v1beta1": len(reserved), "custom.metrics.k8s.io/v1beta2": len(reserved)}
	if diff := gocmp.Diff(want, listed); diff != "" {
		t.Error("resources, -want +got:\n" + diff)
	}
	mapper := apimeta.NewDefaultRESTMapper([]schema.GroupVersion{v1alpha1.GroupVersion})
	mapper.Add(v1alpha1.GroupVersion.WithKind("Function"), apimeta.RESTScopeNamespace)
	metrics := custom_metrics.NewForConfig(r.config("good"), mapper, custom_metrics.NewAvailableAPIsGetter(client)).
		NamespacedMetrics("default")
	kind := v1alpha1.GroupVersion.WithKind("Function").GroupKind()
	v, err := metrics.GetForObject(kind, "awake", v1alpha1.RequestsPerSecond, labels.Everything())
	if err != nil || v.Value.MilliValue() != 12346 || !v.Timestamp.Time.Equal(at) || *v.WindowSeconds != 30 {
		t.Errorf("value = %+v, %v", v, err)
	}
	// The reason is what the HPA shows in its condition.
	_, err = metrics.GetForObject(kind, "stale", v1alpha1.RequestsPerSecond, labels.Everything())
	if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "pod 10.0.0.7:8080 is 7.2s old: i/o timeout") {
		t.Errorf("error = %v, want the reason in words", err)
	}
	list, err := metrics.GetForObjects(kind, labels.Everything(), v1alpha1.RequestsPerSecond, labels.Everything())
	if err != nil || len(list.Items) != 2 {
		t.Errorf("list = %+v, %v; want the two that are known", list, err)
	}
}

func TestAccess(t *testing.T) {
	r := start(t, nil)
	const path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/awake/requests_per_second"
	for token, want := range map[string]int{
		"": http.StatusForbidden, "bad": http.StatusUnauthorized, "poor": http.StatusForbidden, "good": http.StatusOK,
	} {
		if code, body := r.try(path, token); code != want {
			t.Errorf("token %q: status %d, want %d: %s", token, code, want, body)
		}
	}
	r.api.mu.Lock()
	before := r.api.reviews
	r.api.mu.Unlock()
	for range 10 {
		r.try(path, "good")
	}
	r.api.mu.Lock()
	defer r.api.mu.Unlock()
	if r.api.reviews != before {
		t.Errorf("10 more reads cost %d reviews of access, want none", r.api.reviews-before)
	}
}

func TestMetricsOfTheProcess(t *testing.T) {
	r := start(t, nil)
	if code, _ := r.try("/metrics", ""); code != http.StatusForbidden {
		t.Errorf("anonymous: status %d, want %d", code, http.StatusForbidden)
	}
	code, body := r.try("/metrics", "good")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	for _, family := range []string{
		"sluice_adapter_certificate_expiry_timestamp_seconds", "sluice_adapter_certificate_errors_total 0",
		`sluice_adapter_apiservice{apiservice="v1beta2.custom.metrics.k8s.io",state="ours"} 1`,
		"apiserver_request_total", "process_start_time_seconds",
	} {
		if !strings.Contains(body, family) {
			t.Errorf("no %s", family)
		}
	}
}

func TestReadinessIsThatOfTheValues(t *testing.T) {
	ready := make(chan struct{})
	r := start(t, func(o *Options) {
		o.Ready = func() error {
			select {
			case <-ready:
				return nil
			default:
				return fmt.Errorf("not listed yet")
			}
		}
	})
	if code, body := r.try("/readyz", ""); code == http.StatusOK || !strings.Contains(body, "values failed") {
		t.Errorf("status %d: %s", code, body)
	}
	close(ready)
	r.eventually("ready", func() string {
		code, body := r.try("/readyz", "")
		if code != http.StatusOK {
			return body
		}
		return ""
	})
}

func TestServingCertificateRotatesWithoutRestart(t *testing.T) {
	r := start(t, func(o *Options) {
		o.CALifetime, o.CertLifetime = 12*time.Second, 6*time.Second
		o.CertSettle = 100 * time.Millisecond
	})
	serials := map[string]bool{}
	bundles := map[string]bool{}
	r.eventually("three certificates of two CAs", func() string {
		bundle := r.api.bundle()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(bundle)
		conn, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: roots, ServerName: serverName})
		if err != nil {
			r.t.Fatalf("a client that trusts the bundle cannot connect: %v", err)
		}
		defer func() { _ = conn.Close() }()
		serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		bundles[string(bundle)] = true
		if len(serials) < 3 || len(bundles) < 2 {
			return fmt.Sprintf("%d certificates, %d bundles", len(serials), len(bundles))
		}
		return ""
	})
}

// TestDrain shows that callers are told first, and served until they have moved away.
func TestDrain(t *testing.T) {
	r := start(t, func(o *Options) { o.DrainDelay = 2 * time.Second })
	r.cancel()
	r.eventually("not ready", func() string {
		if code, _ := r.try("/readyz", ""); code != http.StatusInternalServerError {
			return fmt.Sprintf("readyz: status %d", code)
		}
		return ""
	})
	if code, body := r.try("/apis/custom.metrics.k8s.io/v1beta2", "good"); code != http.StatusOK {
		t.Errorf("while it drains: status %d: %s", code, body)
	}
	err := <-r.done
	r.done <- err
	if err != nil {
		t.Errorf("Run = %v", err)
	}
	if code, _ := r.try("/livez", ""); code != 0 {
		t.Errorf("status %d after Run has returned", code)
	}
}
