package adapter

import (
	"context"
	"crypto/tls"
	"encoding/json"
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

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/metrics/pkg/apis/custom_metrics"
)

const (
	customPath = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/"
	ownRead    = customPath + "functions.sluice.dev/awake/requests_per_second"
	// othersRead is nothing of Sluice's.
	othersRead = customPath + "pods/other-1/memory?metricLabelSelector=a%3Db"
	othersHost = "prometheus-adapter.monitoring.svc"
)

// otherAdapter is a prometheus-adapter, or what stands in its place.
type otherAdapter struct {
	address, caFile, tokenFile string

	mu     sync.Mutex // protects following
	answer http.HandlerFunc
	seen   []*http.Request
}

func newOtherAdapter(t testing.TB, answer http.HandlerFunc) *otherAdapter {
	t.Helper()
	made := certPolicy{names: []string{othersHost}, caLife: day, leafLife: day}
	data, _, err := made.renew(nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		t.Fatal(err)
	}
	a := &otherAdapter{
		caFile: filepath.Join(t.TempDir(), "ca.crt"), tokenFile: filepath.Join(t.TempDir(), "token"), answer: answer,
	}
	for file, content := range map[string][]byte{a.caFile: data[caCertsKey], a.tokenFile: []byte("sluices-own\n")} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewUnstartedServer(a)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	a.address = server.Listener.Addr().String()
	return a
}

func (a *otherAdapter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.seen = append(a.seen, r)
	answer := a.answer
	a.mu.Unlock()
	answer(w, r)
}

func (a *otherAdapter) become(answer http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// reads are the requests for values.
func (a *otherAdapter) reads() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	var reads []*http.Request
	for _, r := range a.seen {
		if strings.Contains(r.URL.Path, "/namespaces/") {
			reads = append(reads, r)
		}
	}
	return reads
}

// behind makes a the upstream of an adapter.
func (a *otherAdapter) behind(o *Options) {
	o.Upstreams = Upstreams{
		CustomMetrics: "monitoring/prometheus-adapter", ExternalMetrics: "monitoring/prometheus-adapter:6443",
		CAFile: a.caFile, TokenFile: a.tokenFile, Timeout: time.Minute,
	}
	o.discoverEvery = 50 * time.Millisecond
	o.dialUpstream = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, a.address)
	}
}

// serves answers discovery of v1beta2, and reads with values.
func serves(values http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/namespaces/") {
			values(w, r)
			return
		}
		version := strings.TrimPrefix(r.URL.Path, "/apis/")
		if version == "custom.metrics.k8s.io/v1beta1" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: version,
			APIResources: []metav1.APIResource{
				{Name: "pods/memory", Namespaced: true, Kind: "MetricValueList", Verbs: metav1.Verbs{"get"}},
				{Name: "pods/requests_per_second", Namespaced: true, Kind: "MetricValueList", Verbs: metav1.Verbs{"get"}},
			},
		})
	}
}

func answers(code int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func status(code int, message string) http.HandlerFunc {
	data, _ := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Message: message,
	})
	return answers(code, "application/json", string(data))
}

// newTestUpstream is the upstream by itself.
func newTestUpstream(t testing.TB, other *otherAdapter) *upstream {
	t.Helper()
	o := Options{Config: &rest.Config{}}
	other.behind(&o)
	s, err := parseService(o.Upstreams.CustomMetrics)
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUpstream(o, custom_metrics.GroupName, s, newUpstreamMetrics(), logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func readFrom(ctx context.Context, u *upstream) (int, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, othersRead, nil).WithContext(ctx)
	r.Header.Set("Accept", "application/json")
	u.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
