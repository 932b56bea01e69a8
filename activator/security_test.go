package activator

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// strictPod is a pod that tells which requests it found in the bytes that came, one connection after the other.
type strictPod struct {
	address string

	mu   sync.Mutex // protects following
	seen []string   // "METHOD target host body"
}

func newStrictPod(t *testing.T) *strictPod {
	t.Helper()
	ln := listen(t)
	p := &strictPod{address: ln.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		conns.Wait()
	})
	return p
}

func (p *strictPod) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for in := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.saw("unreadable: " + err.Error())
			}
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			p.saw("unreadable body: " + err.Error())
			return
		}
		p.saw(strings.TrimSpace(req.Method + " " + req.RequestURI + " " + req.Host + " " + string(body)))
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

func (p *strictPod) saw(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, what)
}

func (p *strictPod) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

// sendRaw sends bytes on a connection of their own and returns the status of each answer until the server closes,
// which the bytes must make it do.
func sendRaw(t *testing.T, address, raw string) []int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	var statuses []int
	for in := bufio.NewReader(conn); ; {
		res, err := http.ReadResponse(in, nil)
		switch {
		case isTimeout(err):
			t.Errorf("the server has not closed the connection after the answers %v", statuses)
			return statuses
		case err != nil:
			return statuses
		}
		statuses = append(statuses, res.StatusCode)
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return statuses
		}
		_ = res.Body.Close()
	}
}

// throughBothDoors calls ask with the address of a function's gate, and with that of the shared door, which leads to it by the
// host hello.example.com. Each time there is another pod.
func throughBothDoors(t *testing.T, ask func(t *testing.T, address string, fn *function, pod *strictPod)) {
	t.Helper()
	for _, door := range []string{"gate", "door"} {
		t.Run(door, func(t *testing.T) {
			pod := newStrictPod(t) // before the plane, which ends the connections to it
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", hosts("hello.example.com")))
			p.pods("hello", pod.address)
			at := p.gateURL(fn)
			if door == "door" {
				at = p.doorURL()
			}
			ask(t, strings.TrimPrefix(at, "http://"), fn, pod)
		})
	}
}

// TestSmuggling sends what a proxy and its back end may read differently. Whatever the gate makes of it, the pod must find
// the requests that the gate has answered and no other.
func TestSmuggling(t *testing.T) {
	const head = "Host: hello.example.com\r\n"
	tests := []struct {
		name, raw string
		answers   []int
		pod       []string
	}{
		{
			name: "content-length and chunked: chunked counts",
			raw: "POST /a HTTP/1.1\r\n" + head + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" +
				"GET /next HTTP/1.1\r\n" + head + "Connection: close\r\n\r\n",
			answers: []int{200, 200},
			pod:     []string{"POST /a hello.example.com", "GET /next hello.example.com"},
		},
		{
			name:    "two lengths",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Content-Length: 3\r\nContent-Length: 40\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a list of lengths",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Content-Length: 3, 40\r\n\r\nabcGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a signed length",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Content-Length: +3\r\n\r\nabc",
			answers: []int{400},
		},
		{
			name:    "a coding of another name",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + head + "\r\n",
			answers: []int{501},
		},
		{
			name:    "two codings",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{501},
		},
		{
			name:    "a coding in a list",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{501},
		},
		{
			name:    "a space before the colon",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a line that is folded",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
			answers: []int{200, 400},
			pod:     []string{"POST /a hello.example.com"},
		},
		{
			name:    "a chunk's size with a sign",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
			answers: []int{400},
			pod:     []string{"unreadable body: unexpected EOF"},
		},
		{
			name:    "a bare line feed in a chunk's extension",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + head + "\r\n",
			answers: []int{400},
			pod:     []string{"unreadable body: unexpected EOF"},
		},
		{
			name: "a body of a GET, and what follows it",
			raw: "GET /a HTTP/1.1\r\n" + head + "Content-Length: 5\r\n\r\nGET /" +
				"GET /next HTTP/1.1\r\n" + head + "Connection: close\r\n\r\n",
			answers: []int{200, 200},
			pod:     []string{"GET /a hello.example.com GET /", "GET /next hello.example.com"},
		},
		{
			name:    "two hosts",
			raw:     "GET /a HTTP/1.1\r\n" + head + "Host: other.example.com\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "what follows chunks that are none",
			raw:     "POST /a HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nGET /smuggled HTTP/1.1\r\n" + head + "Connection: close\r\n\r\n",
			answers: []int{400},
			pod:     []string{"unreadable body: unexpected EOF"},
		},
		{
			name:    "a host with a path",
			raw:     "GET /a HTTP/1.1\r\nHost: hello.example.com/x\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "no host",
			raw:     "GET /a HTTP/1.1\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a host that is none",
			raw:     "GET /a HTTP/1.1\r\nHost: hello.example.com/../x y\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a target with a host: it counts, and the pod is told it",
			raw:     "GET http://hello.example.com/a HTTP/1.1\r\nHost: other.example.com\r\nConnection: close\r\n\r\n",
			answers: []int{200},
			pod:     []string{"GET /a hello.example.com"},
		},
		{
			name:    "a target of two slashes is a path",
			raw:     "GET //other.example.com/a HTTP/1.1\r\n" + head + "Connection: close\r\n\r\n",
			answers: []int{200},
			pod:     []string{"GET //other.example.com/a hello.example.com"},
		},
		{
			name:    "a target with a space",
			raw:     "GET /a HTTP/1.1 /b HTTP/1.1\r\n" + head + "\r\n",
			answers: []int{400},
		},
		{
			name:    "a header with a carriage return",
			raw:     "GET /a HTTP/1.1\r\n" + head + "X-A: b\rX-B: c\r\n\r\n",
			answers: []int{400},
		},
		{
			name:    "a header with a null byte",
			raw:     "GET /a HTTP/1.1\r\n" + head + "X-A: b\x00\r\n\r\n",
			answers: []int{400},
		},
		{
			name: "an Upgrade that is no text",
			raw: "POST /a HTTP/1.1\r\n" + head + "Connection: Upgrade\r\nUpgrade: \xe4\r\nContent-Length: 3\r\n\r\nabc" +
				"GET /next HTTP/1.1\r\n" + head + "Connection: close\r\n\r\n",
			answers: []int{400, 200},
			pod:     []string{"GET /next hello.example.com"},
		},
		{
			name:    "a header that the Connection header takes away stays out",
			raw:     "GET /a HTTP/1.1\r\n" + head + "Connection: close, X-Forwarded-For, Host\r\n\r\n",
			answers: []int{200},
			pod:     []string{"GET /a hello.example.com"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			throughBothDoors(t, func(t *testing.T, address string, fn *function, pod *strictPod) {
				if got := sendRaw(t, address, tt.raw); !slices.Equal(got, tt.answers) {
					t.Errorf("answered with %v, want %v", got, tt.answers)
				}
				eventually(t, "nothing in flight", func() bool { return fn.stats.snapshot().inFlight == 0 })
				eventually(t, "the pod to see all", func() bool { return len(pod.all()) >= len(tt.pod) })
				if diff := cmp.Diff(tt.pod, pod.all()); diff != "" {
					t.Errorf("the pod saw (-want +got)\n%s", diff)
				}
			})
		})
	}
}

// TestSmugglingAfterAnEarlyAnswer: a pod that answers before the chunks have ended does not make the gate go on where they
// turn out to be none.
func TestSmugglingAfterAnEarlyAnswer(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	var seen atomic.Int64
	p.pods("hello", newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		seen.Add(1)
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.EnableFullDuplex(), func() error { w.WriteHeader(http.StatusForbidden); return rc.Flush() }()); err != nil {
			t.Error(err)
		}
	}))
	u, err := url.Parse(p.gateURL(fn))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	const head = "Host: hello.example.com\r\n"
	if _, err := io.WriteString(conn, "POST /a HTTP/1.1\r\n"+head+"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil) //nolint:bodyclose // its connection is closed
	if err != nil || res.StatusCode != http.StatusForbidden || !res.Close {
		t.Fatalf("answered with %v, %v; want 403 and the end of the connection", res, err)
	}
	// The gate may have closed already.
	_, _ = io.WriteString(conn, "zz\r\nGET /smuggled HTTP/1.1\r\n"+head+"\r\n")
	if res, err := http.ReadResponse(in, nil); err == nil { //nolint:bodyclose // its connection is closed
		t.Errorf("answered again, with %d", res.StatusCode)
	}
	if n := seen.Load(); n != 1 {
		t.Errorf("the pod saw %d requests, want 1", n)
	}
}

// TestHugeHeader: what is longer than the doors take is answered, in both versions of HTTP, and no pod is asked.
func TestHugeHeader(t *testing.T) {
	pod := newStrictPod(t)
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", hosts("hello.example.com")))
	p.pods("hello", pod.address)
	for name, door := range map[string]string{"gate": p.gateURL(fn), "door": p.doorURL()} {
		u, err := url.Parse(door)
		if err != nil {
			t.Fatal(err)
		}
		huge := strings.Repeat("a", 2*maxHeader)
		raw := "GET /a HTTP/1.1\r\nHost: hello.example.com\r\nX-A: " + huge + "\r\n\r\n"
		if got := sendRaw(t, u.Host, raw); !slices.Equal(got, []int{http.StatusRequestHeaderFieldsTooLarge}) {
			t.Errorf("%s: HTTP/1.1: answered with %v, want 431", name, got)
		}
		got := sendH2(t, u.Host, []hpack.HeaderField{
			{Name: ":method", Value: "GET"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: "/a"},
			{Name: ":authority", Value: "hello.example.com"},
			{Name: "x-a", Value: huge},
		}, "")
		if got != "431" && got != "closed" {
			t.Errorf("%s: HTTP/2: answered with %s, want 431 or the end of the connection", name, got)
		}
		// Many small ones are as long.
		many := "GET /a HTTP/1.1\r\nHost: hello.example.com\r\n" + strings.Repeat("X-A: b\r\n", 2*maxHeader/8) + "\r\n"
		if got := sendRaw(t, u.Host, many); !slices.Equal(got, []int{http.StatusRequestHeaderFieldsTooLarge}) {
			t.Errorf("%s: many headers: answered with %v, want 431", name, got)
		}
	}
	if seen := pod.all(); len(seen) > 0 {
		t.Errorf("the pod saw %v", seen)
	}
}

// pipeListener is a listener of connections in memory, so that a test's clock may stand for the machine's.
type pipeListener chan net.Conn

func (p pipeListener) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (pipeListener) Close() error   { return nil }
func (pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowHeader: a client that never comes to the end of its header, or sends nothing after a request, has its connection
// for a bounded time, whether it says a little now and then or nothing.
func TestSlowHeader(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begin string
		drip  string
		limit time.Duration
	}{
		{"nothing", "", "", headerTime},
		{"a byte a second", "GET /a HTTP/1.1\r\nHost: h\r\nX-A: ", "a", headerTime},
		{"a header a second", "GET /a HTTP/1.1\r\nHost: h\r\n", "X-A: a\r\n", headerTime},
		{"idle after an answer", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "", idleTime},
		{"a preface of HTTP/2 and nothing else", http2.ClientPreface, "", idleTime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t.Context(), logr.Discard(), http.NotFoundHandler())
				accept := make(pipeListener)
				var served sync.WaitGroup
				served.Go(func() { _ = srv.Serve(accept) })
				client, server := net.Pipe()
				accept <- server
				began := time.Now()
				closed := make(chan time.Duration, 1)
				served.Go(func() {
					_, _ = io.Copy(io.Discard, client)
					closed <- time.Since(began)
				})
				_, _ = io.WriteString(client, tt.begin)
				for tt.drip != "" {
					if _, err := io.WriteString(client, tt.drip); err != nil {
						break
					}
					pass(time.Second)
				}
				if took := <-closed; took > tt.limit+time.Second {
					t.Errorf("the connection ended after %s, want %s", took, tt.limit)
				}
				_ = client.Close()
				close(accept)
				_ = srv.Close()
				served.Wait()
			})
		})
	}
}
