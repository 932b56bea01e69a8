package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCall(t *testing.T) {
	tests := []struct {
		name       string
		method     string
		target     string
		id         string
		body       string
		wantStatus int
		wantTook   time.Duration
		want       string
	}{
		{
			name: "get", method: "GET", target: "/", wantStatus: 200, wantTook: 50 * time.Millisecond,
			want: `{"pod":"p1","method":"GET","path":"/","bodyBytes":0,"delay":"50ms"}`,
		},
		{
			name: "post with its own delay", method: "POST", target: "/any/path?delay=200ms", id: "a", body: "12345",
			wantStatus: 200, wantTook: 200 * time.Millisecond,
			want: `{"pod":"p1","method":"POST","path":"/any/path","bodyBytes":5,"delay":"200ms","id":"a"}`,
		},
		{
			name: "longest delay", method: "GET", target: "/?delay=60s", wantStatus: 200, wantTook: time.Minute,
			want: `{"pod":"p1","method":"GET","path":"/","bodyBytes":0,"delay":"1m0s"}`,
		},
		{
			name: "no delay and a status", method: "GET", target: "/?delay=0s&status=503", wantStatus: 503,
			want: `{"pod":"p1","method":"GET","path":"/","bodyBytes":0,"delay":"0s"}`,
		},
		{
			name: "too long", method: "GET", target: "/?delay=61s", wantStatus: 400,
			want: `{"pod":"p1","error":"delay \"61s\": give a duration between 0 and 1m0s, such as 200ms"}`,
		},
		{
			name: "no duration", method: "GET", target: "/?delay=200", wantStatus: 400,
			want: `{"pod":"p1","error":"delay \"200\": give a duration between 0 and 1m0s, such as 200ms"}`,
		},
		{
			name: "negative", method: "GET", target: "/?delay=-1s", wantStatus: 400,
			want: `{"pod":"p1","error":"delay \"-1s\": give a duration between 0 and 1m0s, such as 200ms"}`,
		},
		{
			name: "no status", method: "GET", target: "/?status=100", wantStatus: 400,
			want: `{"pod":"p1","error":"status \"100\": give a number between 200 and 599"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFunction(Options{Name: "p1", Delay: 50 * time.Millisecond})
				r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.target, strings.NewReader(tt.body))
				r.Header.Set("X-Id", tt.id)
				w, began := httptest.NewRecorder(), time.Now()
				f.handler().ServeHTTP(w, r)
				if w.Code != tt.wantStatus {
					t.Errorf("status = %d, want %d", w.Code, tt.wantStatus)
				}
				if took := time.Since(began); took != tt.wantTook {
					t.Errorf("took %s, want %s", took, tt.wantTook)
				}
				if diff := cmp.Diff(tt.want+"\n", w.Body.String()); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestCounts(t *testing.T) {
	srv, f := serve(t, Options{Name: "p1"})
	get(t, srv, "/")
	get(t, srv, "/")
	get(t, srv, "/?status=500")
	get(t, srv, "/?delay=never")
	send(t, srv, "POST", "/", "")
	send(t, srv, "BREW", "/pot", "")
	// None of the following is a call.
	for range 3 {
		get(t, srv, "/healthz")
		get(t, srv, "/metrics")
		get(t, srv, "/ids")
	}
	if status := optionsStar(t, srv); status != "HTTP/1.1 200 OK" {
		t.Errorf("OPTIONS * answered %q", status)
	}

	const want = `
# HELP function_calls_total Calls that have begun.
# TYPE function_calls_total counter
function_calls_total{method="GET"} 4
function_calls_total{method="POST"} 1
function_calls_total{method="other"} 1
# HELP function_failures_total Calls that were not answered, or with a status of 400 or above.
# TYPE function_failures_total counter
function_failures_total{method="GET"} 2
function_failures_total{method="POST"} 0
# HELP function_in_flight Calls that have begun and not ended.
# TYPE function_in_flight gauge
function_in_flight 0
`
	if err := testutil.GatherAndCompare(f.registry, strings.NewReader(want),
		"function_calls_total", "function_failures_total", "function_in_flight"); err != nil {
		t.Error(err)
	}
	_, text := get(t, srv, "/metrics")
	for _, line := range []string{
		`function_duration_seconds_count{method="GET"} 4`,
		`function_duration_seconds_bucket{method="POST",le="+Inf"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("/metrics lacks %q in\n%s", line, text)
		}
	}
}

// A scrape of a pod that was never called must show the counter at zero, not leave it out.
func TestCounterIsThereBeforeTheFirstCall(t *testing.T) {
	srv, _ := serve(t, Options{})
	_, text := get(t, srv, "/metrics")
	if want := "function_calls_total{method=\"GET\"} 0\n"; !strings.Contains(text, want) {
		t.Errorf("/metrics lacks %q in\n%s", want, text)
	}
}

func TestInFlightAndAClientThatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFunction(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, "GET", "/?delay=60s", nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.handler().ServeHTTP(httptest.NewRecorder(), r)
		}()
		synctest.Wait()
		if got := testutil.ToFloat64(f.inFlight); got != 1 {
			t.Errorf("in flight during the call = %v, want 1", got)
		}
		cancel()
		<-done
		if got := testutil.ToFloat64(f.inFlight); got != 0 {
			t.Errorf("in flight after the client went = %v, want 0", got)
		}
		if got := testutil.ToFloat64(f.failures.WithLabelValues("GET")); got != 1 {
			t.Errorf("failures = %v, want 1", got)
		}
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFunction(Options{StartDelay: 3 * time.Second})
		status := func(path string) int {
			w := httptest.NewRecorder()
			f.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
			return w.Code
		}
		<-time.After(3*time.Second - time.Nanosecond)
		if got := status("/healthz"); got != http.StatusServiceUnavailable {
			t.Errorf("healthz before the start delay is over = %d, want 503", got)
		}
		if got := status("/"); got != http.StatusServiceUnavailable {
			t.Errorf("call before the start delay is over = %d, want 503", got)
		}
		<-time.After(time.Nanosecond)
		if got := status("/healthz"); got != http.StatusOK {
			t.Errorf("healthz after the start delay = %d, want 200", got)
		}
		if got := status("/"); got != http.StatusOK {
			t.Errorf("call after the start delay = %d, want 200", got)
		}
	})
}

func TestIDs(t *testing.T) {
	srv, _ := serve(t, Options{})
	for _, id := range []string{"a", "b", "a", "", "c", "a"} {
		send(t, srv, "POST", "/", id)
	}
	_, body := get(t, srv, "/ids")
	var got idReport
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(idReport{Seen: 5, Distinct: 3, Duplicates: 2}, got); diff != "" {
		t.Errorf("/ids (-want +got):\n%s", diff)
	}
}

func TestIDsAreBounded(t *testing.T) {
	var s ids
	for i := range MaxIDs + 7 {
		s.add(fmt.Sprint(i))
	}
	s.add("0") // known still
	want := idReport{Seen: MaxIDs + 8, Distinct: MaxIDs, Duplicates: 1, Untracked: 7}
	if diff := cmp.Diff(want, s.report()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// The end of ctx is SIGTERM: a call in flight gets its answer, and Run returns only then.
func TestRunFinishesCallsInFlight(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, terminate := context.WithCancel(t.Context())
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- Run(ctx, ln, Options{Name: "p1", Drain: 10 * time.Second}) }()

	// The body ends only after SIGTERM, so that the call is certainly in flight when it comes.
	body, finish := io.Pipe()
	type reply struct {
		status    int
		listening string
		err       error
	}
	replies := make(chan reply, 1)
	go func() {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+ln.Addr().String()+"/", body)
		if err != nil {
			replies <- reply{err: err}
			return
		}
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		res, err := tr.RoundTrip(r)
		if err != nil {
			replies <- reply{err: err}
			return
		}
		_ = res.Body.Close()
		replies <- reply{status: res.StatusCode, listening: res.Header.Get("Listening-Since")}
	}()
	if _, err := io.WriteString(finish, "first half"); err != nil { // returns once the transport has taken it
		t.Fatal(err)
	}
	waitForCall(t, ln.Addr().String())
	terminate()
	select {
	case err := <-done:
		t.Fatalf("Run returned with a call in flight: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_ = finish.Close()
	got := <-replies
	if got.err != nil || got.status != http.StatusOK {
		t.Errorf("call in flight got %+v, want 200", got)
	}
	if since, err := time.Parse(time.RFC3339Nano, got.listening); err != nil || since.Before(began.Round(0)) || since.After(time.Now()) {
		t.Errorf("Listening-Since: %q, %v; want a time since %v", got.listening, err, began)
	}
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestRunCutsCallsOffAfterDrain(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, terminate := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, ln, Options{Drain: 20 * time.Millisecond}) }()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /?delay=60s HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	waitForCall(t, ln.Addr().String())
	terminate()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "calls still in flight 20ms") {
		t.Errorf("Run = %v, want it to say that it cut calls off", err)
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name    string
		args    []string
		env     map[string]string
		want    Options
		wantErr string
	}{
		{
			name: "environment", env: map[string]string{"POD_NAME": "p", "FUNCTION_DELAY": "1s", "FUNCTION_START_DELAY": "2s"},
			want: Options{Name: "p", Delay: time.Second, StartDelay: 2 * time.Second, Drain: 20 * time.Second},
		},
		{
			name: "flags win", args: []string{"--delay=3s", "--start-delay=4s", "--drain=5s"},
			env:  map[string]string{"POD_NAME": "p", "FUNCTION_DELAY": "1s"},
			want: Options{Name: "p", Delay: 3 * time.Second, StartDelay: 4 * time.Second, Drain: 5 * time.Second},
		},
		{
			name: "a consumer", env: map[string]string{"POD_NAME": "p"}, args: []string{
				"--kafka-servers=a:9092,b:9092", "--kafka-topic=orders", "--kafka-group=hello", "--kafka-delay=1s", "--kafka-done=done",
			},
			want: Options{Name: "p", Drain: 20 * time.Second, Kafka: KafkaOptions{
				Servers: "a:9092,b:9092", Topic: "orders", Group: "hello", Delay: time.Second, Done: "done",
			}},
		},
		{
			name: "half a consumer", args: []string{"--kafka-topic=orders"}, env: map[string]string{"POD_NAME": "p"},
			wantErr: "to consume, give all of --kafka-servers, --kafka-topic and --kafka-group",
		},
		{
			name: "a slow consumer", env: map[string]string{"POD_NAME": "p"},
			args:    []string{"--kafka-servers=a:9092", "--kafka-topic=orders", "--kafka-group=hello", "--kafka-delay=2m"},
			wantErr: "kafka delay 2m0s: must be between 0 and 1m0s",
		},
		{
			name: "bad environment", env: map[string]string{"FUNCTION_DELAY": "soon"},
			wantErr: `environment FUNCTION_DELAY: time: invalid duration "soon"`,
		},
		{
			name: "too slow", args: []string{"--delay=2m"}, env: map[string]string{"POD_NAME": "p"},
			wantErr: "delay 2m0s: must be between 0 and 1m0s",
		},
		{
			name: "stray argument", args: []string{"x"}, env: map[string]string{"POD_NAME": "p"},
			wantErr: `unexpected argument "x"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, got, err := parse(tt.args, func(k string) string { return tt.env[k] })
			if tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr {
					t.Fatalf("error = %v, want %s", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func serve(t *testing.T, opts Options) (*httptest.Server, *function) {
	t.Helper()
	f := newFunction(opts)
	srv := httptest.NewServer(f.handler())
	t.Cleanup(srv.Close)
	return srv, f
}

func get(t *testing.T, srv *httptest.Server, path string) (status int, body string) {
	t.Helper()
	return do(t, srv.Client(), srv.URL+path, "GET", "")
}

func send(t *testing.T, srv *httptest.Server, method, path, id string) {
	t.Helper()
	do(t, srv.Client(), srv.URL+path, method, id)
}

func do(t *testing.T, c *http.Client, url, method, id string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id != "" {
		r.Header.Set("X-Id", id)
	}
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// optionsStar sends what Go's client cannot: the request that the scaler proves a data path with.
func optionsStar(t *testing.T, srv *httptest.Server) string {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: x\r\nSluice-Probe: 1\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// waitForCall returns once a call is in flight at addr.
func waitForCall(t *testing.T, addr string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, text := do(t, c, "http://"+addr+"/metrics", "GET", "")
		if strings.Contains(text, "function_in_flight 1\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no call in flight after 10s")
		}
		<-time.After(time.Millisecond)
	}
}
