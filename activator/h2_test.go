package activator

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var h2cPort = appProtocol("kubernetes.io/h2c")

// warmH2C is a function whose Service port says h2c, with these pods, and its gate's URL.
func warmH2C(t *testing.T, addresses ...string) (*plane, *function, string) {
	t.Helper()
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", h2cPort))
	p.pods("hello", addresses...)
	return p, fn, p.gateURL(fn)
}

// framer is a pod that speaks HTTP/2 frame by frame.
type framer struct {
	*http2.Framer
	conn    net.Conn
	headers bytes.Buffer
}

func (f *framer) answer(stream uint32, status string) {
	f.headers.Reset()
	_ = hpack.NewEncoder(&f.headers).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.headers.Bytes(), EndHeaders: true, EndStream: true})
}

// newFramePod calls request with each header block that comes, and its number over all connections, from 1. The
// connection ends when that returns false.
func newFramePod(t *testing.T, settings []http2.Setting, request func(f *framer, stream uint32, n int64) bool) (address string, conns *atomic.Int64) {
	t.Helper()
	ln := listen(t)
	conns = &atomic.Int64{}
	var requests atomic.Int64
	var served sync.WaitGroup
	serve := func(conn net.Conn) {
		defer conn.Close()
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := &framer{Framer: http2.NewFramer(conn, conn), conn: conn}
		_ = f.WriteSettings(settings...)
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := frame.(*http2.HeadersFrame); ok && !request(f, h.StreamID, requests.Add(1)) {
				return
			}
		}
	}
	served.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			served.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		served.Wait()
	})
	return ln.Addr().String(), conns
}

// A request is repeated only if the pod has told that it did not look at it: RFC 9113, 8.7.
func TestWhatAnH2PodHasNotSeen(t *testing.T) {
	goAway := func(last func(stream uint32) uint32) func(*framer, uint32, int64) bool {
		return func(f *framer, stream uint32, n int64) bool {
			if n == 2 {
				_ = f.WriteGoAway(last(stream), http2.ErrCodeNo, nil)
				return last(stream) < stream // what it took ends with the connection
			}
			f.answer(stream, "204")
			return true
		}
	}
	reset := func(code http2.ErrCode) func(*framer, uint32, int64) bool {
		return func(f *framer, stream uint32, n int64) bool {
			if n == 2 {
				_ = f.WriteRSTStream(stream, code)
			} else {
				f.answer(stream, "204")
			}
			return true
		}
	}
	afterTheBody := func(f *framer, stream uint32, n int64) bool {
		for n == 2 {
			if frame, err := f.ReadFrame(); err != nil || frame.Header().Type == http2.FrameData {
				break
			}
		}
		return reset(http2.ErrCodeRefusedStream)(f, stream, n)
	}
	for _, tt := range []struct {
		name   string
		pod    func(*framer, uint32, int64) bool
		method string
		body   io.Reader
		want   int
	}{
		{"refused stream", reset(http2.ErrCodeRefusedStream), http.MethodGet, nil, 204},
		{"refused stream, not idempotent", reset(http2.ErrCodeRefusedStream), http.MethodPost, nil, 204},
		{"refused stream, body read", afterTheBody, http.MethodPost, strings.NewReader("body"), 502},
		{"beyond the last of a GOAWAY", goAway(func(s uint32) uint32 { return s - 2 }), http.MethodPost, nil, 204},
		{"within a GOAWAY", goAway(func(s uint32) uint32 { return s }), http.MethodGet, nil, 502},
		{"PROTOCOL_ERROR", reset(http2.ErrCodeProtocol), http.MethodDelete, nil, 502}, // net/http's own pool repeats it
		{"INTERNAL_ERROR", reset(http2.ErrCodeInternal), http.MethodGet, nil, 502},
		{"connection lost", func(f *framer, s uint32, n int64) bool {
			if n != 2 {
				f.answer(s, "204")
			}
			return n != 2
		}, http.MethodGet, nil, 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var seen atomic.Int64
			pod, _ := newFramePod(t, nil, func(f *framer, s uint32, n int64) bool {
				seen.Store(n)
				return tt.pod(f, s, n)
			})
			_, fn, url := warmH2C(t, pod)
			if got := get(t, url); got.status != http.StatusNoContent {
				t.Fatalf("the first: got %d %q, want 204", got.status, got.body)
			}
			res, err := client(t, onlyH2C).RoundTrip(newRequest(t, tt.method, url, tt.body))
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if want := int64(2 + max(0, 1-(tt.want-204))); res.StatusCode != tt.want || seen.Load() != want {
				t.Errorf("got %d and %d requests at the pod, want %d and %d", res.StatusCode, seen.Load(), tt.want, want)
			}
			if tt.want == 502 {
				wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1, outcomeUpstreamError: 1})
			}
		})
	}
}

// A sidecar may accept before the server behind it does: such a pod refuses, as far as requests are concerned.
func TestAnH2PodThatClosesWhatItAccepts(t *testing.T) {
	ln := listen(t)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	defer ln.Close()
	_, fn, url := warmH2C(t, ln.Addr().String(), newPodOf(t, http.HandlerFunc(echo), onlyH2C))
	for range 20 {
		res, err := client(t, onlyH2C).RoundTrip(newRequest(t, http.MethodPost, url, strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("got %d, want 200 from the other pod", res.StatusCode)
		}
	}
	wantInFlight(t, fn, 0)
}

func wantInFlight(t *testing.T, fn *function, want int64) {
	t.Helper()
	eventually(t, fmt.Sprint(want, " in flight"), func() bool { return fn.stats.snapshot().inFlight == want })
}

// A thousand requests that are let go at once make one connection to a pod that takes them, and no more of them at a
// time than a pod allows.
func TestConnectionsToAnH2Pod(t *testing.T) {
	for _, tt := range []struct {
		name     string
		limit    uint32
		requests int
		atMost   int64 // connections
	}{
		{"no limit", 0, 500, 1},
		{"three at a time", 3, 30, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var settings []http2.Setting
			if tt.limit > 0 {
				settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: tt.limit})
			}
			pod, conns := newFramePod(t, settings, func(f *framer, stream uint32, _ int64) bool {
				f.answer(stream, "204")
				return true
			})
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", h2cPort))
			url := p.gateURL(fn)
			tr := client(t, onlyHTTP1)
			var wg sync.WaitGroup
			var good atomic.Int64
			for range tt.requests {
				wg.Go(func() {
					res, err := tr.RoundTrip(newRequest(t, http.MethodGet, url, nil))
					if err != nil {
						return
					}
					defer res.Body.Close()
					if res.StatusCode == http.StatusNoContent {
						good.Add(1)
					}
				})
			}
			eventually(t, "all are held", func() bool { return held(fn) == tt.requests })
			p.pods("hello", pod)
			wg.Wait()
			if good.Load() != int64(tt.requests) || conns.Load() > tt.atMost {
				t.Errorf("%d of %d answered over %d connections, want all over %d at most", good.Load(), tt.requests, conns.Load(), tt.atMost)
			}
		})
	}
}

// What a pod does that is not ready for HTTP/2, and what becomes of the request.
func TestPodsThatAreNoH2Pods(t *testing.T) {
	none, _ := newFramePod(t, []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}, nil)
	silent := listen(t)
	defer silent.Close()
	for _, tt := range []struct {
		name, pod string
		patience  time.Duration // with the pod
		reason    string
	}{
		{"allows no stream", none, time.Minute, "DialFailed"},
		{"accepts and says nothing", silent.Addr().String(), 100 * time.Millisecond, "DialFailed"},
		{"HTTP/1.1", newPod(t, echo), time.Minute, "PodNotHTTP2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil, func(o *Options) { o.DialTimeout = tt.patience })
			fn := p.add(newTestFunction("hello", h2cPort, timeout(200*time.Millisecond)))
			p.pods("hello", tt.pod)
			got := do(t, newRequest(t, http.MethodPost, p.gateURL(fn), strings.NewReader("body")))
			if got.status != http.StatusBadGateway || got.header.Get(headerReason) != tt.reason {
				t.Errorf("got %d %q, want 502 %s", got.status, got.header.Get(headerReason), tt.reason)
			}
		})
	}
}

// Whoever closes a connection while its settings are waited for does not take part in the reading of it.
func TestAnH2ConnectionIsClosedWhileItIsRead(t *testing.T) {
	for range 100 {
		ours, theirs := net.Pipe()
		c := &h2NetConn{Conn: ours, client: &h2Client{open: map[*h2NetConn]struct{}{}}, settled: make(chan struct{})}
		var reader sync.WaitGroup
		reader.Go(func() { _, _ = c.Read(make([]byte, frameHeader)) })
		_ = c.Close()
		if err := c.wait(time.Minute); err == nil {
			t.Error("it has settings that nobody sent")
		}
		reader.Wait()
		_ = theirs.Close()
	}
}

// A client that does not read its answer must not stop others whose requests are at the same pod, on the same
// connection; nor may the gate buffer more of it than podBuffer.
func TestASlowClientStopsNobody(t *testing.T) {
	const size = 8 << 20
	pod := newPodOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = w.Write(make([]byte, size))
			return
		}
		echo(w, r)
	}), onlyH2C)
	_, fn, url := warmH2C(t, pod)
	slow := client(t, onlyHTTP1)
	var stalled []io.ReadCloser
	for range 8 {
		res, err := slow.RoundTrip(newRequest(t, http.MethodGet, url+"/large", nil)) //nolint:bodyclose // at the end of the test
		if err != nil {
			t.Fatal(err)
		}
		stalled = append(stalled, res.Body)
	}
	quick := client(t, onlyH2C)
	for range 20 {
		body := strings.Repeat("quick ", 50000)
		res, err := quick.RoundTrip(newRequest(t, http.MethodPost, url, strings.NewReader(body)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(got) != body {
			t.Fatalf("got %d bytes, %v, want all %d", len(got), err, len(body))
		}
	}
	for _, b := range stalled {
		if n, err := io.Copy(io.Discard, b); err != nil || n != size {
			t.Errorf("the slow ones: got %d bytes, %v, want %d", n, err, size)
		}
		_ = b.Close()
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 28})
}

// Requests that are held do not stop others of the same connection, though the body of each waits in the gate.
func TestHeldUploadsStopNobody(t *testing.T) {
	p := newPlane(t, nil)
	asleep := p.add(newTestFunction("asleep", hosts("asleep.example.com")))
	p.add(newTestFunction("awake", hosts("awake.example.com")))
	p.pods("awake", newPod(t, echo))
	tr := client(t, onlyH2C)
	url := p.doorURL()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	const uploads = streamsPerConn - 10
	for range uploads {
		req := newRequest(t, http.MethodPost, url, bytes.NewReader(make([]byte, 2*streamBuffer))).WithContext(ctx)
		req.Host = "asleep.example.com"
		wg.Go(func() {
			if res, err := tr.RoundTrip(req); err == nil {
				_ = res.Body.Close()
			}
		})
	}
	eventually(t, "all are held", func() bool { return held(asleep) == uploads })
	body := strings.Repeat("quick ", 100000)
	req := newRequest(t, http.MethodPost, url, strings.NewReader(body))
	req.Host = "awake.example.com"
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); err != nil || string(got) != body {
		t.Errorf("got %d bytes, %v, want all %d", len(got), err, len(body))
	}
	cancel()
	eventually(t, "the clients that went are not held", func() bool { return held(asleep) == 0 })
}

// The pod is gone, and the client, which waits for its answer, sends no more: the gate must not wait for the client.
func TestAPodThatGoesWhileTheBodyIsIdle(t *testing.T) {
	pod, _ := newFramePod(t, nil, func(*framer, uint32, int64) bool { return false })
	for name, protocol := range map[string]func(*http.Protocols){"HTTP/1.1": onlyHTTP1, "h2c": onlyH2C} {
		t.Run(name, func(t *testing.T) {
			_, fn, url := warmH2C(t, pod)
			pr, pw := io.Pipe()
			defer pw.Close()
			go func() { _, _ = pw.Write([]byte("begun")) }()
			res, err := client(t, protocol).RoundTrip(newRequest(t, http.MethodPost, url, pr))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusBadGateway {
				t.Errorf("got %d, want 502", res.StatusCode)
			}
			wantFinished(t, fn, map[outcome]uint64{outcomeUpstreamError: 1})
		})
	}
}

// What HTTP/2 has no form for.
func TestUpgradesAndPodsOfHTTP2(t *testing.T) {
	tests := []struct {
		name, app, upgrade string
		pod                string
		want               int
	}{
		{"WebSocket to h2c", "kubernetes.io/h2c", "websocket", newPodOf(t, http.HandlerFunc(plain), onlyH2C), http.StatusNotImplemented},
		{"a client that would like h2c", "kubernetes.io/h2c", "h2c", newPodOf(t, http.HandlerFunc(plain), onlyH2C), http.StatusCreated},
		{"the same, HTTP/1.1 pod", "", "h2c", newPodOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			plain(w, r)
		}), onlyHTTP1), http.StatusCreated},
		{"TLS", "https", "", refusing(t), http.StatusBadGateway},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", appProtocol(tt.app)))
			p.pods("hello", tt.pod)
			req := newRequest(t, http.MethodGet, p.gateURL(fn), nil)
			if tt.upgrade != "" {
				req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
				req.Header.Set("Upgrade", tt.upgrade)
				req.Header.Set("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA")
			}
			got := do(t, req)
			if got.status != tt.want {
				t.Errorf("got %d %q, want %d", got.status, got.body, tt.want)
			}
			if tt.want >= 500 {
				if b := got.refusal(t); !strings.Contains(b.Error, "appProtocol") {
					t.Errorf("%q does not name the field", b.Error)
				}
				wantFinished(t, fn, map[outcome]uint64{outcomeProtocol: 1})
			}
		})
	}
}

// In mode Direct, and in the drain, a client of HTTP/2 is told to make its next connection elsewhere, and what it has
// begun on this one goes on.
func TestGoAwayLeadsClientsToThePods(t *testing.T) {
	for _, tt := range []struct {
		name     string
		change   func(*v1alpha1.Function)
		draining bool
		want     bool
	}{
		{"Direct", direct, false, true},
		{"Proxied", func(*v1alpha1.Function) {}, false, false},
		{"Proxied, draining", func(*v1alpha1.Function) {}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", tt.change))
			release := make(chan struct{})
			p.pods("hello", newPod(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					<-release
				}
				echo(w, r)
			}))
			p.proxy.draining.Store(tt.draining)
			url := p.gateURL(fn)
			var dialled atomic.Int64
			tr := client(t, onlyH2C)
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dialled.Add(1)
				return (&net.Dialer{}).DialContext(ctx, network, addr)
			}
			ask := func(path string) int {
				res, err := tr.RoundTrip(newRequest(t, http.MethodPost, url+path, strings.NewReader("x")))
				if err != nil {
					t.Error(err)
					return 0
				}
				defer res.Body.Close()
				_, _ = io.Copy(io.Discard, res.Body)
				return res.StatusCode
			}
			slow := make(chan int, 1)
			go func() { slow <- ask("/slow") }()
			wantInFlight(t, fn, 1)
			for range 3 {
				if got := ask("/"); got != http.StatusOK {
					t.Errorf("got %d, want 200", got)
				}
			}
			close(release)
			if got := <-slow; got != http.StatusOK {
				t.Errorf("the one in flight: got %d, want 200", got)
			}
			if moved := dialled.Load() > 1; moved != tt.want {
				t.Errorf("%d connections, want more than one: %v", dialled.Load(), tt.want)
			}
		})
	}
}
