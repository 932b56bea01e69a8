package activator

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const doorHost = "echo.example.com"

func appProtocol(p string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { gateOf(fn).AppProtocol = p }
}

// newPodOf is a pod's server of these protocols.
func newPodOf(t *testing.T, h http.Handler, protocols func(*http.Protocols)) string {
	t.Helper()
	ln := listen(t)
	srv := &http.Server{Handler: h, Protocols: &http.Protocols{}, ReadHeaderTimeout: 10 * time.Second}
	protocols(srv.Protocols)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return ln.Addr().String()
}

func onlyHTTP1(p *http.Protocols) { p.SetHTTP1(true) }
func onlyH2C(p *http.Protocols)   { p.SetUnencryptedHTTP2(true) }

// client is a client of one of these protocols, with connections of its own.
func client(t *testing.T, protocols func(*http.Protocols)) *http.Transport {
	t.Helper()
	tr := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 10 * time.Second, Protocols: &http.Protocols{}}
	protocols(tr.Protocols)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// exchangeWith does one exchange with whatever serves at address, and returns what the client saw.
type exchangeWith func(t *testing.T, address string) any

// saw is what a client sees of an HTTP answer.
type saw struct {
	Status          int
	Proto           string // where the case compares it
	Length          int64
	Header, Trailer http.Header
	Body            string
	Err             string
}

func sawAnswer(res *http.Response, err error) saw {
	if err != nil {
		return saw{Err: err.Error()}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	for _, own := range []string{"Date", headerColdStart} {
		res.Header.Del(own)
	}
	s := saw{res.StatusCode, "", res.ContentLength, res.Header, res.Trailer, string(body), ""}
	if err != nil {
		s.Err = err.Error()
	}
	return s
}

// send makes an exchange of one request by a client of these protocols.
func send(protocols func(*http.Protocols), method string, body func() io.Reader, change ...func(*http.Request)) exchangeWith {
	return func(t *testing.T, address string) any {
		t.Helper()
		var r io.Reader
		if body != nil {
			r = body()
		}
		req := newRequest(t, method, "http://"+address+"/a%2Fb?x=1", r)
		req.Host = doorHost
		for _, c := range change {
			c(req)
		}
		return sawAnswer(client(t, protocols).RoundTrip(req))
	}
}

func words() io.Reader { return strings.NewReader("some words") }

// chunks has no length that net/http could find out.
func chunks() io.Reader {
	return struct{ io.Reader }{strings.NewReader(strings.Repeat("chunk ", 20000))}
}

// tell answers with all that it was asked, but for what the gate must add.
func tell(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	body, err := io.ReadAll(r.Body)
	for _, added := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", headerVia} {
		r.Header.Del(added)
	}
	w.Header().Set("Trailer", "X-After")
	w.Header().Set("X-Two", "a")
	w.Header().Add("X-Two", "b")
	fmt.Fprintln(w, r.Method, r.Host, r.RequestURI, r.Header, len(body), err, r.Trailer)
	w.(http.Flusher).Flush()
	_, _ = w.Write(body)
	w.Header().Set("X-After", "all")
	w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
}

func plain(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "5")
	w.WriteHeader(http.StatusCreated)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, "plain")
	}
}

// events sends the next event when the client has answered the one before by its body.
func events(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	w.Header().Set("Content-Type", "text/event-stream")
	br := bufio.NewReader(r.Body)
	for i := range 3 {
		fmt.Fprintf(w, "data: %d\n\n", i)
		_ = rc.Flush()
		if _, err := br.ReadString('\n'); err != nil {
			return
		}
	}
}

func readEvents(protocols func(*http.Protocols)) exchangeWith {
	return func(t *testing.T, address string) any {
		t.Helper()
		pr, pw := io.Pipe()
		req := newRequest(t, http.MethodPost, "http://"+address+"/events", pr)
		req.Host = doorHost
		res, err := client(t, protocols).RoundTrip(req)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		var got []string
		br := bufio.NewReader(res.Body)
		for line, err := br.ReadString('\n'); err == nil; line, err = br.ReadString('\n') {
			if got = append(got, line); strings.HasPrefix(line, "data:") {
				fmt.Fprintln(pw, "next")
			}
		}
		_ = pw.Close()
		return append(got, res.Header.Get("Content-Type"))
	}
}

func webSocket(t *testing.T, address string) any {
	t.Helper()
	cfg, err := websocket.NewConfig("ws://"+doorHost+"/chat", "http://"+doorHost)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	ws, err := websocket.NewClient(cfg, conn)
	if err != nil {
		return err.Error()
	}
	var got []string
	for _, word := range []string{"one", strings.Repeat("long ", 30000), ""} {
		var back string
		if err := websocket.Message.Send(ws, word); err != nil {
			return err.Error()
		}
		if err := websocket.Message.Receive(ws, &back); err != nil {
			return err.Error()
		}
		got = append(got, back)
	}
	return got
}

func grpcWith(call func(ctx context.Context, conn *grpc.ClientConn) said) exchangeWith {
	return func(t *testing.T, address string) any {
		t.Helper()
		return call(t.Context(), grpcDial(t, address, doorHost))
	}
}

// Every exchange is made with a pod directly, and then through both doors: warm, held until a pod is there, and while
// the activator drains. Its client must see the same.
func TestEveryProtocolIsTheSameThroughTheGate(t *testing.T) {
	h1 := func(h http.HandlerFunc) func(*testing.T) string {
		return func(t *testing.T) string { t.Helper(); return newPodOf(t, h, onlyHTTP1) }
	}
	h2c := func(h http.HandlerFunc) func(*testing.T) string {
		return func(t *testing.T) string { t.Helper(); return newPodOf(t, h, onlyH2C) }
	}
	grpcPod := func(t *testing.T) string { t.Helper(); return newGRPCPod(t) }
	expect := func(r *http.Request) { r.Header.Set("Expect", "100-continue") }
	trailer := func(r *http.Request) {
		r.Trailer = http.Header{"X-In": {"in"}}
		r.Header.Set("TE", "trailers")
	}
	both := func(p *http.Protocols) { p.SetHTTP1(true); p.SetUnencryptedHTTP2(true) }
	socket := websocket.Server{Handler: func(ws *websocket.Conn) {
		var said string
		for websocket.Message.Receive(ws, &said) == nil { // whole: a part is of whatever size has come
			_ = websocket.Message.Send(ws, said)
		}
	}}
	tell1 := func(fn *v1alpha1.Function) {}
	_ = both
	asH2C := appProtocol("kubernetes.io/h2c")
	tests := []struct {
		name string
		port func(*v1alpha1.Function)
		pod  func(*testing.T) string
		do   exchangeWith
	}{
		{"HTTP/1.1 GET", tell1, h1(tell), send(onlyHTTP1, http.MethodGet, nil)},
		{"HTTP/1.1 known length", tell1, h1(plain), send(onlyHTTP1, http.MethodPost, words)},
		{"HTTP/1.1 HEAD", tell1, h1(plain), send(onlyHTTP1, http.MethodHead, nil)},
		{"HTTP/1.1 chunked, trailers both ways", tell1, h1(tell), send(onlyHTTP1, http.MethodPost, chunks, trailer)},
		{"HTTP/1.1 100-continue", tell1, h1(tell), send(onlyHTTP1, http.MethodPut, words, expect)},
		{"HTTP/1.1 server-sent events", tell1, h1(events), readEvents(onlyHTTP1)},
		{"WebSocket", appProtocol("kubernetes.io/ws"), h1(socket.ServeHTTP), webSocket},
		{"h2c GET", asH2C, h2c(tell), send(onlyH2C, http.MethodGet, nil)},
		{"h2c known length", asH2C, h2c(plain), send(onlyH2C, http.MethodPost, words)},
		{"h2c HEAD", asH2C, h2c(plain), send(onlyH2C, http.MethodHead, nil)},
		{"h2c trailers both ways", asH2C, h2c(tell), send(onlyH2C, http.MethodPost, chunks, trailer)},
		{"h2c 100-continue", asH2C, h2c(tell), send(onlyH2C, http.MethodPut, words, expect)},
		{"h2c server-sent events", asH2C, h2c(events), readEvents(onlyH2C)},
		{"gRPC unary", appProtocol("grpc"), grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said {
			return unary(metadata.AppendToOutgoingContext(ctx, "tell", "a", "tell", "b"), c, strings.Repeat("big ", 300000))
		})},
		{"gRPC without appProtocol", tell1, grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said { return unary(ctx, c, "") })},
		{"gRPC error", asH2C, grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said {
			return unary(metadata.AppendToOutgoingContext(ctx, "fail", ""), c, "x")
		})},
		{"gRPC unknown method", asH2C, grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said {
			var header, trailer metadata.MD
			err := c.Invoke(ctx, "/test.Echo/Nothing", &text{}, &text{}, grpc.Header(&header), grpc.Trailer(&trailer))
			return newSaid(nil, header, trailer, err)
		})},
		{"gRPC streams both ways", asH2C, grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said {
			return chat(ctx, c, "2 one", "0 two", "3 "+strings.Repeat("long ", 40000))
		})},
		{"gRPC stream ends in an error", asH2C, grpcPod, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said {
			return chat(ctx, c, "1 one", "bye")
		})},
		{"gRPC through the server of net/http", asH2C, func(t *testing.T) string {
			t.Helper()
			srv := grpc.NewServer()
			t.Cleanup(srv.Stop)
			srv.RegisterService(&grpcService, nil)
			return newPodOf(t, srv, onlyH2C)
		}, grpcWith(func(ctx context.Context, c *grpc.ClientConn) said { return chat(ctx, c, "2 one", "bye") })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := tt.pod(t)
			want := tt.do(t, pod)
			compare := func(t *testing.T, got any) {
				t.Helper()
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-directly +through the gate):\n%s", diff)
				}
			}
			for _, door := range []string{"gate", "shared door"} {
				through := func(t *testing.T) (*plane, *function, string) {
					t.Helper()
					p := newPlane(t, nil)
					fn := p.add(newTestFunction("hello", tt.port, hosts(doorHost)))
					url := p.gateURL(fn)
					if door == "shared door" {
						url = p.doorURL()
					}
					return p, fn, strings.TrimPrefix(url, "http://")
				}
				t.Run(door+", warm", func(t *testing.T) {
					p, fn, address := through(t)
					p.pods("hello", pod)
					compare(t, tt.do(t, address))
					wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
				})
				t.Run(door+", held", func(t *testing.T) {
					p, fn, address := through(t)
					got := make(chan any, 1)
					go func() { got <- tt.do(t, address) }()
					eventually(t, "it is held", func() bool { return held(fn) == 1 })
					p.pods("hello", pod)
					compare(t, <-got)
					wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
				})
				t.Run(door+", handed on", func(t *testing.T) {
					from, to, address := handsOn(t, newTestFunction("hello", tt.port, hosts(doorHost), limited(1)), pod)
					if door == "shared door" {
						address = strings.TrimPrefix(from.doorURL(), "http://")
					}
					compare(t, tt.do(t, address))
					wantFinished(t, from.function(), map[outcome]uint64{outcomeOK: 1})
					wantFinished(t, to.function(), map[outcome]uint64{})
				})
				t.Run(door+", draining", func(t *testing.T) {
					p, fn, address := through(t)
					p.pods("hello", pod)
					p.proxy.draining.Store(true)
					compare(t, tt.do(t, address))
					wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
				})
			}
		})
	}
}

func TestRefusalsInTheFormOfGRPC(t *testing.T) {
	p := newPlane(t, nil)
	address := strings.TrimPrefix(p.gateURL(p.add(newTestFunction("hello", timeout(50*time.Millisecond)))), "http://")
	got := unary(t.Context(), grpcDial(t, address, ""), "x")
	if got.Code != codes.Unavailable || !strings.Contains(got.Message, "kubectl -n default describe") {
		t.Errorf("held for too long: got %v %q, want Unavailable and the remedy", got.Code, got.Message)
	}
	if reason := append(got.Header.Get(headerReason), got.Trailer.Get(headerReason)...); len(reason) != 1 || reason[0] != "HoldTimeout" {
		t.Errorf("reasons %q, want HoldTimeout", reason)
	}
	got = unary(t.Context(), grpcDial(t, strings.TrimPrefix(p.doorURL(), "http://"), "nobody.example.com"), "x")
	if got.Code != codes.Unimplemented || !strings.Contains(got.Message, "nobody.example.com") {
		t.Errorf("unknown host: got %v %q, want Unimplemented and the host", got.Code, got.Message)
	}
	// What is not gRPC gets JSON, in whatever version of HTTP.
	res, err := client(t, onlyH2C).RoundTrip(newRequest(t, http.MethodGet, p.doorURL(), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); res.StatusCode != http.StatusNotFound || ct != "application/json" {
		t.Errorf("h2c: got %d %q, want 404 and JSON", res.StatusCode, ct)
	}
}
