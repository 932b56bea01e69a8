package activator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/go-logr/logr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// warmRequest and warmAnswer are what a small function is asked and what it says.
const (
	warmRequest = "GET /function HTTP/1.1\r\nHost: function.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
	warmAnswer  = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\nhello\n"
)

// warmPod is a pod that costs next to nothing: it answers every request with warmAnswer. It returns its host:port.
func warmPod(t testing.TB) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(t.Context(), func() { _ = ln.Close() })
	answer := []byte(warmAnswer)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for r := bufio.NewReader(conn); ; {
					for line := []byte(nil); len(line) != len("\r\n"); {
						if line, err = r.ReadSlice('\n'); err != nil {
							return
						}
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// warmClient is a connection that costs next to nothing.
type warmClient struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialWarm(ctx context.Context, address string) (*warmClient, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &warmClient{conn, bufio.NewReader(conn)}, nil
}

var errNotOK = errors.New("not the pod's answer")

// ask sends the request and reads the answer to its end.
func (c *warmClient) ask(request []byte) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return errNotOK
	}
	for len(line) != len("\r\n") {
		if line, err = c.r.ReadSlice('\n'); err != nil {
			return err
		}
	}
	_, err = c.r.Discard(len("hello\n"))
	return err
}

// warmSubjects are the gate of a function that is awake, and the least that net/http/httputil needs for a
// proxy, both in front of the pod. The latter has a pool of buffers too: without, it costs a third more.
func warmSubjects(t testing.TB, pod string, change ...func(*v1alpha1.Function)) (ours, minimal http.Handler) {
	t.Helper()
	p := newProxy(logr.Discard(), newMetrics(), nil, DefaultOptions())
	self := &peer{name: "self", ready: true}
	p.peers.set.Store(&peerSet{self: self, owners: []*peer{self}})
	tb := newTable(func(int32, *function) {}, p.peers)
	tb.setFunction(newTestFunction("hello", change...))
	tb.setSlice(newSlice("hello", 0, pod, true))
	transport := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	t.Cleanup(func() {
		p.close()
		transport.CloseIdleConnections()
	})
	target := &url.URL{Scheme: "http", Host: pod}
	return gateHandler(&gate{fn: tb.functions[newTestFunction("hello").Key()]}, p),
		&httputil.ReverseProxy{
			Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(target) },
			Transport: transport, BufferPool: &bufferPool{},
		}
}

// maxWarmAllocations is what a warm request without a body may allocate, net/http's server included. A minimal
// httputil.ReverseProxy allocates nearly twice as often. `go test -run - -bench Warm -benchmem ./activator` tells both.
const maxWarmAllocations = 42

func TestWarmAllocations(t *testing.T) {
	gate, minimal := warmSubjects(t, warmPod(t))
	measure := func(h http.Handler) float64 {
		front := httptest.NewServer(h) // and not newServer, so that both have the same
		defer front.Close()
		c, err := dialWarm(t.Context(), front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		request := []byte(warmRequest)
		return testing.AllocsPerRun(1000, func() {
			if err := c.ask(request); err != nil {
				t.Fatal(err)
			}
		})
	}
	got, floor := measure(gate), measure(minimal)
	t.Logf("allocations of a warm request: %v through the gate, %v through a minimal httputil.ReverseProxy", got, floor)
	if got > maxWarmAllocations {
		t.Errorf("a warm request allocates %v times, want %d at most", got, maxWarmAllocations)
	}
}
