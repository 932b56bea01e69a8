package activator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// noFiles are errors as package net has them where a process, or a node, may open no more.
func noFiles(call string, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(call, errno)}
}

// countErrors is a logger that counts the errors whose message is among those that tell.
func countErrors(n *atomic.Int64, tell string) logr.Logger {
	return funcr.New(func(_, line string) {
		if strings.Contains(line, `"error"`) && strings.Contains(line, tell) {
			n.Add(1)
		}
	}, funcr.Options{})
}

// starve has all connections to pods fail with the error in why, while that is not nil.
func starve(p *plane) (why *atomic.Pointer[error]) {
	why = &atomic.Pointer[error]{}
	real := p.proxy.dial
	p.proxy.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := why.Load(); err != nil {
			return nil, &dialError{*err}
		}
		return real(ctx, network, address)
	}
	p.proxy.h2 = newH2Client(p.proxy.transport, p.proxy.dial, time.Second)
	return why
}

// That the activator can open no file is no fault of the pod, which is not set aside for it, whatever is spoken to it.
func TestNoFilesForAConnectionToAPod(t *testing.T) {
	for _, tt := range []struct {
		name    string
		err     error
		change  []func(*v1alpha1.Function)
		request func(t *testing.T, url string) answer
	}{
		{"without a body", noFiles("socket", syscall.EMFILE), nil, get},
		{"of all processes", noFiles("socket", syscall.ENFILE), nil, get},
		{"with a body", noFiles("socket", syscall.EMFILE), nil, func(t *testing.T, url string) answer {
			t.Helper()
			return do(t, newRequest(t, http.MethodPost, url, words()))
		}},
		{"by HTTP/2", noFiles("socket", syscall.EMFILE), []func(*v1alpha1.Function){h2cPort}, get},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			why := starve(p)
			var told atomic.Int64
			p.proxy.log = countErrors(&told, "too many open files")
			fn := p.add(newTestFunction("hello", append(tt.change, timeout(time.Second))...))
			p.pods("hello", newPodOf(t, http.HandlerFunc(echo), func(ps *http.Protocols) { onlyHTTP1(ps); onlyH2C(ps) }))
			url, pod := p.gateURL(fn), fn.pods.Load().ready[0]
			why.Store(&tt.err)
			const times = 5
			for range times {
				got := tt.request(t, url)
				if got.status != http.StatusServiceUnavailable || got.header.Get(headerReason) != "TooManyOpenFiles" || got.header.Get("Retry-After") != "2" {
					t.Fatalf("got %d %v, want 503 TooManyOpenFiles with Retry-After", got.status, got.header)
				}
				if b := got.refusal(t); !strings.Contains(b.Error, "as many files open as it may") || !strings.Contains(b.Error, "default/hello") {
					t.Errorf("sentence %q does not say what is wanting", b.Error)
				}
			}
			if pod.aside.Load() != nil || !pod.usable() {
				t.Error("the pod is set aside")
			}
			if told.Load() != 1 {
				t.Errorf("%d lines in the log, want 1", told.Load())
			}
			why.Store(nil)
			if got := tt.request(t, url); got.status != http.StatusOK || got.header.Get(headerColdStart) != "" {
				t.Errorf("with files again: got %d %v, want the pod's answer at once", got.status, got.header)
			}
			wantFinished(t, fn, map[outcome]uint64{outcomeNoFiles: times, outcomeOK: 1})
		})
	}
}

// A pod that was proven ahead of Ready stays so.
func TestNoFilesForAConnectionToAProvenPod(t *testing.T) {
	p := newPlane(t, nil)
	why := starve(p)
	fn := p.add(newTestFunction("hello", timeout(time.Second)))
	p.table.setSlice(newSlice("hello", 0, newPod(t, echo), false))
	if !fn.prove(fn.pods.Load().coming[0], time.Now().Add(time.Minute)) {
		t.Fatal("it is not proven")
	}
	err := noFiles("socket", syscall.EMFILE)
	why.Store(&err)
	url := p.gateURL(fn)
	if got := get(t, url); got.header.Get(headerReason) != "TooManyOpenFiles" {
		t.Errorf("got %d %v", got.status, got.header)
	}
	why.Store(nil)
	if got := get(t, url); got.status != http.StatusOK || p.wakes.Load() != 0 {
		t.Errorf("got %d after %d patches, want 200 and none: the pod has to be proven anew", got.status, p.wakes.Load())
	}
}

func TestNoFilesForAConnectionOfTCP(t *testing.T) {
	p := newPlane(t, nil)
	why := starve(p)
	fn := p.add(newTestFunction("hello", overTCP, timeout(time.Second)))
	p.pods("hello", newTCPPod(t, greet))
	err := noFiles("socket", syscall.EMFILE)
	why.Store(&err)
	gate := p.tcpGate(fn)
	conn, reset := net.Dial("tcp", gate)
	if reset == nil {
		_, reset = io.ReadAll(conn)
		_ = conn.Close()
	}
	if !errors.Is(reset, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", reset)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeNoFiles: 1})
	why.Store(nil)
	warm := dialTCP(t, gate)
	_ = warm.CloseWrite()
	if said, err := io.ReadAll(warm); err != nil || string(said) != "hello\n" {
		t.Errorf("with files again: got %q, %v", said, err)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeNoFiles: 1, outcomeOK: 1})
}

// Nor are the pods of a fallback set aside; the answer is the function's own refusal.
func TestNoFilesForAConnectionToAFallback(t *testing.T) {
	p := newPlane(t, nil)
	why := starve(p)
	fn := p.add(newTestFunction("hello", timeout(50*time.Millisecond), fallsBackTo("sorry", "")))
	p.pods("sorry", newPod(t, sorry), newPod(t, sorry))
	err := noFiles("socket", syscall.EMFILE)
	why.Store(&err)
	url := p.gateURL(fn)
	if got := get(t, url); got.header.Get(headerReason) != "HoldTimeout" || got.status != http.StatusGatewayTimeout {
		t.Errorf("got %d %v, want 504 HoldTimeout", got.status, got.header)
	}
	for _, pod := range fn.fallback.Load().ready {
		if pod.aside.Load() != nil {
			t.Errorf("pod %s is set aside", pod.address)
		}
	}
	why.Store(nil)
	if got := get(t, url); got.header.Get(headerFallback) != "sorry" {
		t.Errorf("with files again: got %d %v, want the fallback's answer", got.status, got.header)
	}
}

// Who waits for a connection to a pod may still get one that becomes free.
func TestNoFilesForOneDialEndsNoOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan error)
		all, dialing, _ := pipes(dials)
		var s podConns
		var failed, served atomic.Int32
		var running sync.WaitGroup
		for range 2 * maxDialsPerPod {
			running.Go(func() {
				c, _, err := s.get(t.Context(), all, "pod", time.Now(), false)
				if err != nil {
					failed.Add(1)
					return
				}
				served.Add(1)
				c.release(true)
			})
		}
		synctest.Wait()
		dials <- noFiles("socket", syscall.EMFILE)
		synctest.Wait()
		if failed.Load() != 1 || dialing.Load() != maxDialsPerPod {
			t.Errorf("%d have failed, %d dial; want 1, and %d", failed.Load(), dialing.Load(), maxDialsPerPod)
		}
		dials <- nil
		synctest.Wait()
		// Two of those that waited dial by now, for the two dials that have ended.
		if want := int32(1 + maxDialsPerPod - 2); served.Load() != want {
			t.Errorf("one connection has served %d, want its own and those that waited: %d", served.Load(), want)
		}
		close(dials)
		running.Wait()
		all.close()
	})
}

// scarceListener fails for want of files at first.
type scarceListener struct {
	net.Listener
	fails atomic.Int64 // so many times
}

func (l *scarceListener) Accept() (net.Conn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// A door or a gate port that cannot accept for want of files says so, once, and goes on when it can.
func TestNoFilesToAccept(t *testing.T) {
	type server interface {
		Serve(net.Listener) error
		Close() error
	}
	for name, serve := range map[string]func(*plane, logr.Logger) server{
		"HTTP": func(p *plane, log logr.Logger) server {
			return newServer(context.Background(), log, gateHandler(&gate{fn: p.add(newTestFunction("hello"))}, p.proxy))
		},
		"TCP": func(p *plane, log logr.Logger) server {
			p.proxy.log = log
			return newTCPServer(context.Background(), p.add(newTestFunction("hello", overTCP)), p.proxy)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var told atomic.Int64
			p := newPlane(t, nil)
			srv := serve(p, countErrors(&told, acceptFailed))
			ln := &scarceListener{Listener: listen(t)}
			ln.fails.Store(5)
			done := make(chan error, 1)
			go func() { done <- srv.Serve(ln) }()
			conn := dialTCP(t, ln.Addr().String())
			fmt.Fprintf(conn, "%sHost: h\r\n%s: 1\r\nConnection: close\r\n\r\n", probeLine, headerProbe)
			if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "204 No Content") {
				t.Errorf("got %q, %v, want an answer of the gate", answer, err)
			}
			if got := told.Load(); got != 1 {
				t.Errorf("%d lines in the log, want 1", got)
			}
			_ = srv.Close()
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}
