package adapter

import (
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
	"strings"
	"sync"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/scheme"
)

var update = flag.Bool("update", false, "write testdata anew")

// apiServer is as much of a Kubernetes API server as the adapter talks to: objects by their path, reviews of tokens
// ("good" is one) and of access (only "good" may).
type apiServer struct {
	*httptest.Server
	mu      sync.Mutex // protects following
	objects map[string][]byte
	// reviews of access and of tokens that were asked for.
	reviews, tokenReviews int
}

func newAPIServer(t testing.TB) *apiServer {
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
		s.tokenReviews++
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
	case r.Method == http.MethodPost:
		var created struct{ Metadata metav1.ObjectMeta }
		_ = json.Unmarshal(body, &created)
		if s.objects[path+"/"+created.Metadata.Name] != nil {
			answer(http.StatusConflict, marshal(metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonAlreadyExists, Code: http.StatusConflict, Message: path,
			}))
			return
		}
		s.objects[path+"/"+created.Metadata.Name] = body
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
		object, kind, err = aggregatorscheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	}
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
	t      testing.TB
	api    *apiServer
	addr   string
	cancel context.CancelFunc
	done   chan error
}

func start(t testing.TB, change func(*Options)) *running {
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
	log := logr.Discard() // a fuzz test may not be written to while it runs
	if t, ok := t.(*testing.T); ok {
		log = testr.New(t)
	}
	ctx, cancel := context.WithCancel(logr.NewContext(t.Context(), log))
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
	got := r.ask(path, token, "")
	return got.code, got.body
}

// answer is what the adapter said; code is 0 where it said nothing, and body why.
type answer struct {
	code   int
	header http.Header
	body   string
}

func (r *running) ask(path, token, accept string) answer {
	return r.send(http.MethodGet, path, token, accept)
}

func (r *running) send(method, path, token, accept string) answer {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.api.bundle())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: serverName}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(r.t.Context(), method, "https://"+r.addr+path, nil)
	if err != nil {
		return answer{body: err.Error()}
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
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
		o.CertSettle = 500 * time.Millisecond // that a client has from reading the bundle to the end of its handshake
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
