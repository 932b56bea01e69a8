package adapter

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/rest"
)

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
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.addr+othersRead, strings.NewReader("callers"))
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
	if seen[0].ContentLength != 0 {
		t.Errorf("it is sent a body of %d bytes", seen[0].ContentLength)
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

// TestTheUpstreamIsAskedForWhatWasAuthorized, whose path is the decoded one, and not for what a server in front of it
// might make of other spellings.
func TestTheUpstreamIsAskedForWhatWasAuthorized(t *testing.T) {
	other := newOtherAdapter(t, status(404, "there is no such metric"))
	u := newTestUpstream(t, other)
	for path, want := range map[string]string{
		customPath + "pods/other-1%2Fmemory":                   customPath + "pods/other-1/memory",
		customPath + "%70ods/other-1/memory":                   customPath + "pods/other-1/memory",
		customPath + "pods/other-1/memory%3Fa":                 customPath + "pods/other-1/memory%3Fa",
		customPath + "pods/*/memory?labelSelector=a%3Db&%zz=1": customPath + "pods/%2A/memory?labelSelector=a%3Db",
	} {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		u.ServeHTTP(httptest.NewRecorder(), r)
		seen := other.reads()
		if got := seen[len(seen)-1].URL.RequestURI(); got != want {
			t.Errorf("%s is asked for as %s, want %s", path, got, want)
		}
	}
}

// TestOnlyTheAnswerIsPassedOn: neither what comes before it, which the generic API server would take for the answer
// itself, nor what comes behind.
func TestOnlyTheAnswerIsPassedOn(t *testing.T) {
	other := newOtherAdapter(t, serves(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "early=1")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "Set-Cookie")
		status(404, "there is no such metric")(w, r)
		w.Header().Set("Set-Cookie", "late=1")
	}))
	r := start(t, other.behind)
	client, err := rest.HTTPClientFor(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	var early []int
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			early = append(early, code)
			return nil
		},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.addr+othersRead, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("%s %s, %v; want %d", resp.Status, body, err, http.StatusNotFound)
	}
	if len(early) != 0 || len(resp.Trailer) != 0 || resp.Header.Get("Set-Cookie") != "" {
		t.Errorf("passed on: %v, header %v, trailer %v", early, resp.Header, resp.Trailer)
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
			name: "another protocol", answer: answers(101, "application/json", ""),
			code: 502, says: name + "is no metrics API: it answers 101", outcome: "101",
		},
		{
			name: "nothing, in so many words", answer: answers(204, "application/json", ""),
			code: 502, says: name + "is no metrics API: it answers 204", outcome: "204",
		},
		{
			name: "words without end", answer: status(500, strings.Repeat("x\n", 9999)),
			code: 502, says: strings.Repeat("x ", 200) + "x...\"", outcome: "500",
		},
		{
			name: "a header without end", answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Vary", strings.Repeat("x", 1<<20))
				answers(200, "application/json", "{}")(w, r)
			},
			code: 503, says: name + "cannot be asked: ", outcome: "error", counts: 1,
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
			if tt.outcome == "timeout" { // else nobody waits for it, whatever else the machine does
				u.timeout = 500 * time.Millisecond
			}
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
