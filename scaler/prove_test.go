package scaler

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

// servicePath stands for a Service: its nth connection is answered by endpoints[n], the last one from then on.
func servicePath(t *testing.T, endpoints ...func(net.Conn)) (address string, connections *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connections = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n := connections.Add(1) - 1
			endpoints[min(int(n), len(endpoints)-1)](conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), connections
}

// answer reads the request and answers with the text.
func answerWith(text string) func(net.Conn) {
	return func(conn net.Conn) {
		buf := make([]byte, 4096)
		_, _ = conn.Read(buf)
		_, _ = io.WriteString(conn, text)
	}
}

var (
	podAnswers  = answerWith("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	gateAnswers = answerWith("HTTP/1.1 204 No Content\r\nSluice-Gate: default/hello\r\n\r\n")
	otherGate   = answerWith("HTTP/1.1 204 No Content\r\nSluice-Gate: default/other\r\n\r\n")
	notHTTP     = answerWith("\x16\x03\x01 no HTTP here")
	hangsUp     = func(net.Conn) {}
	neverEnds   = func(conn net.Conn) {
		for {
			if _, err := io.WriteString(conn, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	}
	says = func(conn net.Conn) { // nothing, until the caller gives up
		_, _ = io.Copy(io.Discard, conn)
	}
)

func TestProve(t *testing.T) {
	tests := []struct {
		name      string
		endpoints []func(net.Conn)
		tries     int
		want      string // part of the error, empty for a proof
		wantConns int64
	}{
		{"the gate answers", []func(net.Conn){gateAnswers}, 8, "", 1},
		{"pods answer first", []func(net.Conn){podAnswers, podAnswers, gateAnswers}, 8, "", 3},
		{"pods that speak no HTTP, hang up or say nothing", []func(net.Conn){notHTTP, hangsUp, says, gateAnswers}, 8, "", 4},
		{"an answer without end", []func(net.Conn){neverEnds, gateAnswers}, 8, "", 2},
		{"only pods", []func(net.Conn){podAnswers}, 5, "5 connections to", 5},
		{"the gate of another function", []func(net.Conn){otherGate}, 3, `the gate of "default/other" answered`, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			address, connections := servicePath(t, tt.endpoints...)
			// One that says nothing takes all of a try's time, and those that answer must not, whatever else the machine does.
			p := ServiceProver{Tries: tt.tries, TryTimeout: 2 * time.Second, Timeout: time.Minute}
			err := p.Prove(t.Context(), Path{Function: hello, Host: "hello.default.svc", Address: address})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("not proven: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if got := connections.Load(); got != tt.wantConns {
				t.Errorf("%d connections were made, want %d", got, tt.wantConns)
			}
		})
	}
}

// The request is the ping of HTTP, which a server of the standard library answers without calling a handler.
func TestProveReachesNoHandler(t *testing.T) {
	var asked atomic.Value
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked.Store(r.Method + " " + r.RequestURI) }),
		ReadHeaderTimeout: time.Second,
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })

	err = ServiceProver{Tries: 2, TryTimeout: 10 * time.Second, Timeout: time.Minute}.Prove(t.Context(), Path{Function: hello, Host: "hello.default.svc", Address: l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "a pod answered (200 OK)") {
		t.Errorf("got %v, want that a pod answered", err)
	}
	if got := asked.Load(); got != nil {
		t.Errorf("the pod's handler was called with %q", got)
	}
}

func TestProveIsBounded(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		address, _ := servicePath(t, says)
		start := time.Now()
		p := ServiceProver{Tries: 1000, Timeout: 200 * time.Millisecond, TryTimeout: 50 * time.Millisecond}
		err := p.Prove(t.Context(), Path{Function: hello, Address: address})
		if took := time.Since(start); err == nil || took > 30*time.Second { // all tries would take two minutes
			t.Errorf("got %v after %s, want an error after about 200ms", err, took)
		}
	})
	t.Run("by its caller", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		address, _ := servicePath(t, func(conn net.Conn) { cancel(); says(conn) })
		err := ServiceProver{}.Prove(ctx, Path{Function: hello, Address: address})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

// scripted is a Prover that waits to be told its result.
type scripted chan error

func (s scripted) Prove(ctx context.Context, _ Path) error {
	select {
	case err := <-s:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A result belongs to the attempt that asked for it.
func TestProofsKeepAttemptsApart(t *testing.T) {
	results := make(scripted)
	done := make(chan bool)
	p := newProofs(results, func(_ types.NamespacedName, proven bool) { done <- proven })
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- p.Start(ctx) }()

	first, second := midnight, midnight.Add(time.Minute)
	p.ask(Path{Function: hello}, first)
	p.ask(Path{Function: hello}, first) // asked again while under way: not started again
	if at, err := p.result(hello, first); !at.IsZero() || err != "" {
		t.Errorf("before the result: got %v %q", at, err)
	}
	results <- errors.New("no route")
	<-done
	if _, err := p.result(hello, first); err != "no route" {
		t.Errorf("first attempt: got %q, want its error", err)
	}
	if at, err := p.result(hello, second); !at.IsZero() || err != "" {
		t.Errorf("second attempt shows the first one's result: %v %q", at, err)
	}
	p.ask(Path{Function: hello}, second)
	results <- nil
	<-done
	if at, err := p.result(hello, second); at.IsZero() || err != "" {
		t.Errorf("second attempt: got %v %q, want a proof", at, err)
	}

	// A proof whose attempt was forgotten leaves nothing behind, and Start waits for one that is under way.
	p.ask(Path{Function: hello}, midnight.Add(time.Hour))
	p.forget(hello)
	cancel()
	select {
	case <-done: // the proof had begun
		err := <-stopped
		if err != nil {
			t.Error(err)
		}
	case err := <-stopped: // it had not
		if err != nil {
			t.Error(err)
		}
	}
	if len(p.results) != 0 {
		t.Errorf("left behind: %v", p.results)
	}
}
