package adapter

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
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
		CAFile: a.caFile, TokenFile: a.tokenFile, Timeout: 500 * time.Millisecond,
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

// TestWhatTheUpstreamSees shows that it is asked by Sluice, and never learns who asked Sluice.
func TestWhatTheUpstreamSees(t *testing.T) {
	const answer = "k8s\x00 protobuf as it came"
	other := newOtherAdapter(t, serves(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Audit-Id", "theirs")
		answers(http.StatusOK, "application/vnd.kubernetes.protobuf", answer)(w, r)
	}))
	r := start(t, other.behind)
	if code, body := r.try(ownRead, "good"); code != http.StatusOK || !strings.Contains(body, "12346m") {
		t.Errorf("own read: %d %s", code, body)
	}
	if seen := other.reads(); len(seen) != 0 {
		t.Errorf("the upstream was asked for %s", seen[0].URL)
	}
	client, err := rest.HTTPClientFor(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.addr+othersRead, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"X-Remote-User", "X-Remote-Group", "Cookie", "X-Forwarded-For", "X-Custom"} {
		req.Header.Set(name, "callers")
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf,application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != answer || resp.StatusCode != http.StatusOK {
		t.Errorf("%s %q, %v; want the upstream's answer", resp.Status, body, err)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.kubernetes.protobuf" {
		t.Errorf("content type %q", got)
	}
	if slices.Contains(resp.Header.Values("Audit-Id"), "theirs") || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("the upstream's headers reach the caller: %v", resp.Header)
	}
	seen := other.reads()
	if len(seen) != 1 {
		t.Fatalf("the upstream was asked %d times", len(seen))
	}
	got := seen[0].Header.Clone()
	got.Del("Accept-Encoding") // the client's library
	want := http.Header{
		"Accept":        {"application/vnd.kubernetes.protobuf,application/json"},
		"Authorization": {"Bearer sluices-own"},
		"Sluice-Via":    {"sluice-adapter"},
		"User-Agent":    {"sluice-adapter"},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error("headers, -want +got:\n" + diff)
	}
	if seen[0].Host != othersHost+":443" || seen[0].URL.RequestURI() != othersRead {
		t.Errorf("asked for %s at %s", seen[0].URL.RequestURI(), seen[0].Host)
	}
	if code, body := r.try(othersRead, "poor"); code != http.StatusForbidden {
		t.Errorf("a caller who may not: %d %s", code, body)
	}
	if len(other.reads()) != 1 {
		t.Error("the upstream was asked for a caller who may not")
	}
}

// TestUpstreamErrorsAreInWords goes through what another adapter may do wrong.
func TestUpstreamErrorsAreInWords(t *testing.T) {
	const name = "upstream monitoring/prometheus-adapter "
	tests := []struct {
		name    string
		answer  http.HandlerFunc
		code    int
		says    string
		outcome string
		counts  uint32 // to the breaker, as a failure
	}{
		{
			name: "no such metric is its own answer", answer: status(404, "the server could not find the metric memory for pods"),
			code: 404, says: `"message":"the server could not find the metric memory for pods"`, outcome: "404",
		},
		{
			name: "an error of one metric", answer: status(500, "unable to fetch metrics"),
			code: 502, says: name + "answers 500: unable to fetch metrics", outcome: "500",
		},
		{
			name: "unknown now", answer: status(503, "prometheus is down"),
			code: 503, says: name + "answers 503: prometheus is down", outcome: "503",
		},
		{
			name: "it does not know us", answer: status(403, "pods.custom.metrics.k8s.io is forbidden"),
			code: 502, says: "allow Sluice's ServiceAccount to read its metrics", outcome: "403",
		},
		{
			name: "a proxy in front of it", answer: answers(503, "text/html", "<html>no backend"),
			code: 503, says: name + "answers 503 Service Unavailable", outcome: "503", counts: 1,
		},
		{
			name: "something else altogether", answer: answers(200, "text/html", "<html>hello"),
			code: 502, says: name + "is no metrics API", outcome: "200",
		},
		{
			name: "a redirect", answer: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://a.b/", http.StatusFound) },
			code: 502, says: name + "is no metrics API", outcome: "302",
		},
		{
			name: "too much", answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000000000")
				answers(200, "application/json", "{}")(w, r)
			},
			code: 502, says: name + "answers with more than 32 MiB", outcome: "200",
		},
		{
			name: "silence", answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			code: 503, says: name + "cannot be asked: it did not answer within 500ms", outcome: "timeout", counts: 1,
		},
		{
			name: "a broken connection", answer: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			code: 503, says: name + "cannot be asked: ", outcome: "error", counts: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			other := newOtherAdapter(t, tt.answer)
			u := newTestUpstream(t, other)
			code, body := readFrom(t.Context(), u)
			if code != tt.code || !strings.Contains(body, tt.says) {
				t.Errorf("%d %s\nwant %d %s", code, body, tt.code, tt.says)
			}
			if got := testutil.ToFloat64(u.metrics.requests.WithLabelValues(u.group, tt.outcome)); got != 1 {
				t.Errorf("outcome %s counted %v times, want 1", tt.outcome, got)
			}
			if got := u.breaker.Counts().ConsecutiveFailures; got != tt.counts {
				t.Errorf("%d failures, want %d", got, tt.counts)
			}
		})
	}
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

// TestAnAnswerThatBreaksOff ends the caller's connection, for its header was passed on already, and is a failure.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	other := newOtherAdapter(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"items":[`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	u := newTestUpstream(t, other)
	front := httptest.NewServer(u)
	defer front.Close()
	resp, err := http.Get(front.URL + othersRead)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("half an answer was passed on as a whole one")
	}
	if got := u.breaker.Counts().ConsecutiveFailures; got != 1 {
		t.Errorf("%d failures, want 1", got)
	}
	if got := len(u.slots); got != 0 {
		t.Errorf("%d reads are still under way", got)
	}
}

func TestACallerWhoLeavesIsNoFailure(t *testing.T) {
	arrived := make(chan struct{})
	other := newOtherAdapter(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	u := newTestUpstream(t, other)
	u.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	readFrom(ctx, u)
	if got := u.breaker.Counts().ConsecutiveFailures; got != 0 {
		t.Errorf("%d failures, want none", got)
	}
	if got := testutil.ToFloat64(u.metrics.requests.WithLabelValues(u.group, "canceled")); got != 1 {
		t.Errorf("canceled = %v, want 1", got)
	}
}

// TestOnlyAVerifiedServerGetsTheToken has somebody else answer for the other adapter.
func TestOnlyAVerifiedServerGetsTheToken(t *testing.T) {
	stranger, other := newOtherAdapter(t, status(200, "")), newOtherAdapter(t, status(200, ""))
	other.address = stranger.address
	u := newTestUpstream(t, other)
	if code, body := readFrom(t.Context(), u); code != http.StatusServiceUnavailable || !strings.Contains(body, "certificate") {
		t.Errorf("%d %s, want the certificate to be refused", code, body)
	}
	if len(stranger.reads()) != 0 {
		t.Error("a stranger was asked")
	}
}

// roundTrip is a connection to an upstream.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestBreaker is the story of an upstream that hangs, and comes back.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs, asked := true, 0
		u := newTestUpstream(t, &otherAdapter{})
		u.timeout = 5 * time.Second
		u.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			if hangs {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{
				StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody,
			}, nil
		})
		read := func(wantCode, wantAsked int, says string) {
			t.Helper()
			began := time.Now()
			code, body := readFrom(t.Context(), u)
			if code != wantCode || asked != wantAsked || !strings.Contains(body, says) {
				t.Fatalf("%d after %d, %s; want %d after %d, %s", code, asked, body, wantCode, wantAsked, says)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Fatalf("the read took %s", took)
			}
		}
		gauge := func(want float64) {
			t.Helper()
			if got := testutil.ToFloat64(breakerGauge(u)); got != want {
				t.Errorf("open = %v, want %v", got, want)
			}
		}
		for i := range tripAfter {
			read(503, i+1, "it did not answer within 5s")
		}
		gauge(1)
		began := time.Now()
		for range 100 {
			read(503, tripAfter, "failed 5 times in a row: it did not answer within 5s")
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("100 reads of an upstream that is not asked took %s", took)
		}
		pass(coolDown + time.Millisecond)
		read(503, tripAfter+1, "it did not answer") // one to try
		read(503, tripAfter+1, "is not asked")      // and it failed
		pass(coolDown + time.Millisecond)
		hangs = false
		read(200, tripAfter+2, "")
		read(200, tripAfter+3, "")
		gauge(0)
	})
}

// TestAHangingUpstreamConcernsNobodyElse has more reads wait for it than are let through.
func TestAHangingUpstreamConcernsNobodyElse(t *testing.T) {
	release := make(chan struct{})
	other := newOtherAdapter(t, serves(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	r := start(t, func(o *Options) {
		other.behind(o)
		o.Upstreams.Timeout = time.Minute
	})
	client, err := rest.HTTPClientFor(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	defer close(release)
	for range maxForwarded {
		waiting.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.addr+othersRead, nil)
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	r.eventually("all wait", func() string {
		if n := len(other.reads()); n < maxForwarded {
			return fmt.Sprintf("%d reads arrived", n)
		}
		return ""
	})
	if code, body := r.try(othersRead, "good"); code != http.StatusServiceUnavailable || !strings.Contains(body, "late with 100 other reads") {
		t.Errorf("one more: %d %s", code, body)
	}
	for range 20 {
		began := time.Now()
		if code, body := r.try(ownRead, "good"); code != http.StatusOK {
			t.Fatalf("own read: %d %s", code, body)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("own read took %s", took)
		}
	}
	for _, path := range []string{"/readyz", "/livez", "/apis/custom.metrics.k8s.io/v1beta2"} {
		if code, body := r.try(path, "good"); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// TestRoundInCircles is two adapters that name each other, or one that names itself by another name.
func TestRoundInCircles(t *testing.T) {
	other := newOtherAdapter(t, status(200, ""))
	u := newTestUpstream(t, other)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, othersRead, nil)
	r.Header.Set(viaHeader, Service)
	u.ServeHTTP(w, r)
	if w.Code != http.StatusLoopDetected || !strings.Contains(w.Body.String(), "name the other adapter's own Service, not Sluice's") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(other.reads()) != 0 {
		t.Error("it was forwarded")
	}
	other.become(status(508, "round in circles"))
	if code, body := readFrom(t.Context(), u); code != http.StatusLoopDetected || !strings.Contains(body, "round in circles") {
		t.Errorf("the caller gets %d %s", code, body)
	}
}

var errReset = errors.New("connection reset")

// TestConnectionErrorsCount are failures whatever their kind.
func TestConnectionErrorsCount(t *testing.T) {
	u := newTestUpstream(t, &otherAdapter{})
	u.transport = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errReset })
	if code, body := readFrom(t.Context(), u); code != http.StatusServiceUnavailable || !strings.Contains(body, errReset.Error()) {
		t.Errorf("%d %s", code, body)
	}
	if got := u.breaker.Counts().ConsecutiveFailures; got != 1 {
		t.Errorf("%d failures, want 1", got)
	}
}
