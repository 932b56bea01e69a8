package activator

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// warm is a function with these pods and its gate's URL.
func warm(t *testing.T, addresses ...string) (*plane, *function, string) {
	t.Helper()
	return warmAs(t, nil, addresses...)
}

func warmAs(t *testing.T, change []func(*v1alpha1.Function), addresses ...string) (*plane, *function, string) {
	t.Helper()
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", change...))
	p.pods("hello", addresses...)
	return p, fn, p.gateURL(fn)
}

func echo(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	_, _ = io.Copy(w, r.Body)
}

func TestADialErrorIsRetriedWithTheWholeBody(t *testing.T) {
	p, fn, url := warm(t, refusing(t), refusing(t), newPod(t, echo))
	body := strings.Repeat("0123456789", 100000)
	for i := range 5 {
		// Without a length too, which net/http sends in chunks.
		req := newRequest(t, http.MethodPost, url, struct{ io.Reader }{strings.NewReader(body)})
		if got := do(t, req); got.status != http.StatusOK || got.body != body {
			t.Fatalf("request %d: got %d and %d bytes, want 200 and all %d; %.300s", i, got.status, len(got.body), len(body), got.body)
		}
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 5})
	if p.wakes.Load() != 0 {
		t.Error("a function with a pod that answers was woken")
	}
	for _, pod := range fn.pods.Load().ready {
		if n := pod.inFlight.Load(); n != 0 {
			t.Errorf("pod %s: %d in flight, want 0", pod.address, n)
		}
	}
}

func TestARequestIsHeldWhenThePodJustWent(t *testing.T) {
	p, fn, url := warm(t, refusing(t))
	done := make(chan answer, 1)
	go func() { done <- do(t, newRequest(t, http.MethodPost, url, strings.NewReader("body"))) }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	p.pods("hello", newPod(t, echo)) // the slice moves to another pod
	if got := <-done; got.status != http.StatusOK || got.body != "body" {
		t.Errorf("got %d %q, want 200 and the body", got.status, got.body)
	}
}

func TestAPodThatRefusedIsTriedAgain(t *testing.T) {
	address := refusing(t)
	_, fn, url := warm(t, address)
	done := make(chan answer, 1)
	go func() { done <- get(t, url) }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	// Nothing changes in Kubernetes: the container calls itself ready a moment before it listens.
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(echo), ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	if got := <-done; got.status != http.StatusOK {
		t.Errorf("got %d, want 200", got.status)
	}
}

func TestAllPodsRefuse(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", timeout(300*time.Millisecond)))
	p.pods("hello", refusing(t), refusing(t))
	got := get(t, p.gateURL(fn))
	if got.status != http.StatusBadGateway || got.header.Get(headerReason) != "DialFailed" {
		t.Errorf("got %d %q, want 502 DialFailed", got.status, got.header.Get(headerReason))
	}
	if b := got.refusal(t); !strings.Contains(b.Error, "readinessProbe") {
		t.Errorf("sentence %q names no remedy", b.Error)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeDialFailed: 1})
}

// The gate reads no body that it does not pass on, and must not leave its connection to another request then.
func TestARefusedBodyEndsItsConnection(t *testing.T) {
	p := newPlane(t, nil)
	address := strings.TrimPrefix(p.gateURL(p.add(newTestFunction("hello", timeout(50*time.Millisecond)))), "http://")
	for _, tt := range []struct {
		request string
		closes  bool
	}{
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", false},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", true},
		{"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", true}, // and nothing comes
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		for range 2 {
			fmt.Fprint(conn, tt.request)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Errorf("%q: %v", tt.request, err)
				break
			}
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != http.StatusGatewayTimeout || res.Close != tt.closes {
				t.Errorf("%q: got %d, closes %t, %v, want 504, %t", tt.request, res.StatusCode, res.Close, err, tt.closes)
			}
			if tt.closes {
				break
			}
		}
		_ = conn.Close()
	}
}

func TestNoRetryAfterAByteWasSent(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		t.Run(method, func(t *testing.T) {
			var served atomic.Int64
			abort := func(w http.ResponseWriter, r *http.Request) {
				served.Add(1)
				panic(http.ErrAbortHandler)
			}
			_, fn, url := warm(t, newPod(t, abort), newPod(t, abort))
			got := do(t, newRequest(t, method, url, strings.NewReader("once")))
			if got.status != http.StatusBadGateway || got.header.Get(headerReason) != "UpstreamError" {
				t.Errorf("got %d %q, want 502 UpstreamError", got.status, got.header.Get(headerReason))
			}
			if n := served.Load(); n != 1 {
				t.Errorf("pods saw the request %d times, want once", n)
			}
			wantFinished(t, fn, map[outcome]uint64{outcomeUpstreamError: 1})
		})
	}
}

func TestAnAnswerThatBreaksOffIsNotPassedAsWhole(t *testing.T) {
	_, fn, url := warm(t, newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	res, err := http.DefaultTransport.RoundTrip(newRequest(t, http.MethodGet, url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("got %q without an error, want one", body)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeUpstreamError: 1})
}

func TestConnectionCloseLeadsClientsToThePods(t *testing.T) {
	p := newPlane(t, nil)
	address := newPod(t, echo)
	for _, name := range []string{"direct", "proxied"} {
		p.pods(name, address)
	}
	inDirect := p.gateURL(p.add(newTestFunction("direct", direct)))
	inProxied := p.gateURL(p.add(newTestFunction("proxied", hosts("127.0.0.1"))))
	atDoor := p.doorURL()
	for _, tt := range []struct {
		name, url string
		draining  bool
		want      string
	}{
		{"Direct", inDirect, false, "close"},
		{"Proxied", inProxied, false, ""},
		{"shared door", atDoor, false, ""},
		{"Proxied, draining", inProxied, true, "close"},
		{"shared door, draining", atDoor, true, "close"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.proxy.draining.Store(tt.draining)
			got := get(t, tt.url)
			if got.status != http.StatusOK || got.header.Get("Connection") != tt.want {
				t.Errorf("got %d, Connection %q, want 200, %q", got.status, got.header.Get("Connection"), tt.want)
			}
		})
	}
}

func TestDoorRoutesByHost(t *testing.T) {
	p := newPlane(t, nil)
	p.add(newTestFunction("hello", hosts("hello.example.com")))
	p.pods("hello", newPod(t, echo))
	url := p.doorURL()
	for host, want := range map[string]int{
		"hello.example.com": 200, "HELLO.example.com.:8080": 200, "hello.example.org": 404, "hello.default": 404,
	} {
		req := newRequest(t, http.MethodGet, url, nil)
		req.Host = host
		got := do(t, req)
		if got.status != want {
			t.Errorf("host %s: got %d, want %d", host, got.status, want)
		}
		if want == 404 {
			if b := got.refusal(t); b.Reason != "UnknownHost" || !strings.Contains(b.Error, host) || !strings.Contains(b.Error, "spec.traffic.hosts") {
				t.Errorf("host %s: got %+v, want the host and the remedy named", host, b)
			}
		}
	}
}

func TestProbeIsAnsweredByTheGateAndNotCounted(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello")) // asleep: a probe must not wake it
	url := p.gateURL(fn)
	req := newRequest(t, http.MethodOptions, url, nil)
	req.URL.Opaque = "*"
	req.Header.Set(headerProbe, "1")
	got := do(t, req)
	if got.status != http.StatusNoContent || got.header.Get(headerGate) != "default/hello" {
		t.Errorf("got %d, %s %q, want 204, default/hello", got.status, headerGate, got.header.Get(headerGate))
	}
	if n := fn.stats.snapshot().started; n != 0 || p.wakes.Load() != 0 {
		t.Errorf("a probe was counted %d times and woke %d times", n, p.wakes.Load())
	}
	p.pods("hello", newPod(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) }))
	req = newRequest(t, http.MethodOptions, url, nil)
	req.URL.Opaque = "*"
	if got := do(t, req); got.body != "" && got.body != "*" || fn.stats.snapshot().started != 1 {
		t.Errorf("OPTIONS * without the probe's header: got %q, want it forwarded", got.body)
	}
}

func TestUpgrade(t *testing.T) {
	p, fn, url := warm(t, newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(conn, strings.ToUpper(line))
		}
	}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil) //nolint:bodyclose // an upgraded connection has no body
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "shout" {
		t.Fatalf("got %v, %v, want 101 to shout", res, err)
	}
	for _, word := range []string{"a\n", "b\n"} {
		fmt.Fprint(conn, word)
		if got, err := br.ReadString('\n'); err != nil || got != strings.ToUpper(word) {
			t.Errorf("got %q, %v, want %q", got, err, strings.ToUpper(word))
		}
	}
	if got := fn.stats.snapshot().inFlight; got != 1 || p.proxy.active.Load() != 1 {
		t.Errorf("in flight while upgraded: got %d, want 1", got)
	}
	_ = conn.Close()
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
}

func TestStreamingBothWays(t *testing.T) {
	_, _, url := warm(t, newPod(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_ = rc.Flush()
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(w, "got ", line)
			_ = rc.Flush()
		}
	}))
	pr, pw := io.Pipe()
	res, err := http.DefaultTransport.RoundTrip(newRequest(t, http.MethodPost, url, pr))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	br := bufio.NewReader(res.Body)
	for _, word := range []string{"a\n", "b\n", "c\n"} {
		fmt.Fprint(pw, word)
		if got, err := br.ReadString('\n'); err != nil || got != "got "+word {
			t.Fatalf("got %q, %v, want an answer to %q before the next is sent", got, err, word)
		}
	}
	_ = pw.Close()
	if rest, err := io.ReadAll(br); err != nil || len(rest) != 0 {
		t.Errorf("after the last: %q, %v", rest, err)
	}
}

// An echo answers before it has seen the end of the request: the gate must go on passing the rest.
func TestAnEarlyAnswerDoesNotEndTheRequest(t *testing.T) {
	_, fn, url := warm(t, newPod(t, echo))
	body := strings.Repeat("0123456789", 300000)
	for range 5 {
		if got := do(t, newRequest(t, http.MethodPost, url, strings.NewReader(body))); got.status != http.StatusOK || got.body != body {
			t.Fatalf("got %d and %d bytes, want 200 and all %d", got.status, len(got.body), len(body))
		}
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 5})
}

func TestAnAnswerOfKnownLengthStreamsToo(t *testing.T) {
	release := make(chan struct{})
	_, _, url := warm(t, newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2")
		fmt.Fprint(w, "a")
		w.(http.Flusher).Flush()
		<-release
		fmt.Fprint(w, "b")
	}))
	res, err := http.DefaultTransport.RoundTrip(newRequest(t, http.MethodGet, url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	buf := make([]byte, 1)
	if _, err := res.Body.Read(buf); err != nil || buf[0] != 'a' {
		t.Errorf("got %q, %v, want the first byte before the second is written", buf, err)
	}
	close(release)
	if rest, _ := io.ReadAll(res.Body); string(rest) != "b" {
		t.Errorf("got %q, want b", rest)
	}
}

func TestTrailersBothWays(t *testing.T) {
	_, _, url := warm(t, newPod(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Out")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Out", "saw "+r.Trailer.Get("X-In"))
	}))
	req := newRequest(t, http.MethodPost, url, struct{ io.Reader }{strings.NewReader("body")})
	req.Trailer = http.Header{"X-In": {"in"}}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != "body" || res.Trailer.Get("X-Out") != "saw in" {
		t.Errorf("got %q, trailer %q, %v, want body, saw in", body, res.Trailer.Get("X-Out"), err)
	}
}

func TestAClientThatLeavesEndsThePodsRequest(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	_, fn, url := warm(t, newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if res, err := http.DefaultTransport.RoundTrip(newRequest(t, http.MethodGet, url, nil).WithContext(ctx)); err == nil {
		res.Body.Close()
		t.Error("an answer came to a request that was cancelled")
	}
	<-left
	wantFinished(t, fn, map[outcome]uint64{outcomeClientGone: 1})
}

func TestAWarmRequestMakesNoWrite(t *testing.T) {
	p, fn, url := warm(t, newPod(t, echo))
	for range 20 {
		get(t, url)
	}
	if p.wakes.Load() != 0 || fn.stats.snapshot().waited.seconds() != 0 {
		t.Errorf("warm requests caused %d patches and were held %f s", p.wakes.Load(), fn.stats.snapshot().waited.seconds())
	}
}

// An endpoint that leads back to the gate ends in an error, not in a gate that forwards to itself without end.
func TestLoopIsRefused(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	url := p.gateURL(fn)
	p.table.setSlice(newSlice("hello", 0, strings.TrimPrefix(url, "http://"), true))
	got := get(t, url)
	if got.status != http.StatusLoopDetected || got.header.Get(headerReason) != "Loop" {
		t.Errorf("got %d %q, want 508 Loop", got.status, got.body)
	}
	if n := fn.stats.snapshot(); n.started != 2 || n.inFlight != 0 || n.finished[outcomeLoop] != 1 {
		t.Errorf("counts %+v, want two requests, one of them a loop, none in flight", n)
	}
}
