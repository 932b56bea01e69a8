package activator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func overTCP(fn *v1alpha1.Function) { fn.Spec.Traffic.Protocol = v1alpha1.ProtocolTCP }

// tcpGate opens a gate of TCP for fn.
func (p *plane) tcpGate(fn *function) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	return p.tcpGateAt(ln, fn)
}

func (p *plane) tcpGateAt(ln net.Listener, fn *function) string {
	ctx, cut := context.WithCancelCause(context.Background())
	srv := newTCPServer(ctx, fn, p.proxy)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	p.t.Cleanup(func() {
		cut(errStopping)
		if err := srv.Shutdown(context.Background()); err != nil {
			p.t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			p.t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// newTCPPod serves each connection by serve, and closes it then.
func newTCPPod(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}

func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

func copyBack(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// greet speaks first, as the servers of mail and of some databases do.
func greet(c *net.TCPConn) {
	fmt.Fprintln(c, "hello")
	copyBack(c)
}

// sum answers only when it has seen the end of the client's words.
func sum(c *net.TCPConn) {
	n, _ := io.Copy(io.Discard, c)
	fmt.Fprintln(c, n)
}

// Each exchange is made with the pod directly, and then through the gate: warm, held until a pod is there, and draining.
func TestTCPIsTheSameThroughTheGate(t *testing.T) {
	secret := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") }))
	defer secret.Close()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	tests := []struct {
		name  string
		serve func(*net.TCPConn)
		do    func(t *testing.T, c *net.TCPConn) string
	}{
		{"the server speaks first", greet, func(_ *testing.T, c *net.TCPConn) string {
			br := bufio.NewReader(c)
			a, err := br.ReadString('\n')
			fmt.Fprintln(c, "word")
			b, err2 := br.ReadString('\n')
			return fmt.Sprint(a, b, err, err2)
		}},
		{"half-close", sum, func(_ *testing.T, c *net.TCPConn) string {
			_, err := c.Write(big)
			_ = c.CloseWrite()
			all, err2 := io.ReadAll(c)
			return fmt.Sprint(string(all), err, err2)
		}},
		{"much, both ways", copyBack, func(_ *testing.T, c *net.TCPConn) string {
			go func() {
				_, _ = c.Write(big)
				_ = c.CloseWrite()
			}()
			all, err := io.ReadAll(c)
			return fmt.Sprint(bytes.Equal(all, big), err)
		}},
		{"a reset by the pod", func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 1))
			_ = c.SetLinger(0)
		}, func(_ *testing.T, c *net.TCPConn) string {
			_, _ = c.Write([]byte("x"))
			n, err := c.Read(make([]byte, 1))
			return fmt.Sprint(n, errors.Is(err, syscall.ECONNRESET))
		}},
		{"looks like a probe and is none", copyBack, func(_ *testing.T, c *net.TCPConn) string {
			const said = "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"
			fmt.Fprint(c, said)
			buf := make([]byte, len(said))
			_, err := io.ReadFull(c, buf)
			return fmt.Sprint(string(buf), err)
		}},
		{"TLS to the pod", func(c *net.TCPConn) {
			up, err := net.Dial("tcp", secret.Listener.Addr().String())
			if err != nil {
				return
			}
			defer up.Close()
			go func() { _, _ = io.Copy(up, c) }()
			_, _ = io.Copy(c, up)
		}, func(t *testing.T, c *net.TCPConn) string {
			tr := &http.Transport{
				TLSClientConfig: secret.Client().Transport.(*http.Transport).TLSClientConfig,
				DialContext:     func(context.Context, string, string) (net.Conn, error) { return c, nil },
			}
			defer tr.CloseIdleConnections()
			res, err := tr.RoundTrip(newRequest(t, http.MethodGet, "https://example.com", nil))
			if err != nil {
				return err.Error()
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			return fmt.Sprint(string(body), err)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := newTCPPod(t, tt.serve)
			want := tt.do(t, dialTCP(t, pod))
			through := func(t *testing.T) (*plane, *function, string) {
				t.Helper()
				p := newPlane(t, nil)
				fn := p.add(newTestFunction("hello", overTCP))
				return p, fn, p.tcpGate(fn)
			}
			compare := func(t *testing.T, fn *function, c *net.TCPConn, got string) {
				t.Helper()
				if got != want {
					t.Errorf("got %.200q, want %.200q as from the pod directly", got, want)
				}
				_ = c.Close()
				wantInFlight(t, fn, 0)
				if n := fn.stats.snapshot().started; n != 1 {
					t.Errorf("counted %d times, want once", n)
				}
			}
			for _, draining := range []bool{false, true} {
				t.Run(fmt.Sprint("warm, draining ", draining), func(t *testing.T) {
					p, fn, address := through(t)
					p.pods("hello", pod)
					p.proxy.draining.Store(draining)
					c := dialTCP(t, address)
					compare(t, fn, c, tt.do(t, c))
				})
			}
			t.Run("handed on", func(t *testing.T) {
				from, to, address := handsOn(t, newTestFunction("hello", overTCP, limited(1)), pod)
				c := dialTCP(t, address)
				compare(t, from.function(), c, tt.do(t, c))
				if n := to.function().stats.snapshot().started; n != 0 {
					t.Errorf("counted %d times where it was handed to", n)
				}
			})
			t.Run("held", func(t *testing.T) {
				p, fn, address := through(t)
				c, got := dialTCP(t, address), make(chan string, 1)
				go func() { got <- tt.do(t, c) }()
				// The patch is waited for too: none is sent for who has a pod already.
				eventually(t, "it is held", func() bool { return held(fn) == 1 && p.wakes.Load() > 0 })
				p.pods("hello", refusing(t), pod)
				compare(t, fn, c, <-got)
				if p.wakes.Load() != 1 {
					t.Errorf("%d wakes, want one", p.wakes.Load())
				}
			})
		})
	}
}

func TestAnIdleConnectionIsInFlight(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", overTCP))
	p.pods("hello", newTCPPod(t, copyBack))
	c := dialTCP(t, p.tcpGate(fn))
	wantInFlight(t, fn, 1)
	pod := fn.pods.Load().ready[0]
	eventually(t, "it is counted at its pod", func() bool { return pod.inFlight.Load() == 1 })
	_ = c.Close()
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
	if n := pod.inFlight.Load(); n != 0 {
		t.Errorf("%d in flight at the pod, want 0", n)
	}
}

// What gets no pod is reset, and not closed, which would look like an empty answer.
func TestTCPThatGetsNoPod(t *testing.T) {
	wantReset := func(c *net.TCPConn) {
		t.Helper()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	}
	p := newPlane(t, nil)
	full := p.add(newTestFunction("full", overTCP, maxHeld(1)))
	address := p.tcpGate(full)
	first := dialTCP(t, address)
	eventually(t, "one is held", func() bool { return held(full) == 1 })
	wantReset(dialTCP(t, address))
	_ = first.Close()
	wantFinished(t, full, map[outcome]uint64{outcomeQueueFull: 1, outcomeClientGone: 1})

	late := p.add(newTestFunction("late", overTCP, timeout(300*time.Millisecond)))
	wantReset(dialTCP(t, p.tcpGate(late)))
	wantFinished(t, late, map[outcome]uint64{outcomeHoldTimeout: 1})
}

// A held client that leaves frees its place; one that has closed its side after it spoke waits for its answer.
func TestAHeldTCPClientThatLeaves(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", overTCP))
	address := p.tcpGate(fn)
	silent, spoke, reset := dialTCP(t, address), dialTCP(t, address), dialTCP(t, address)
	fmt.Fprint(spoke, "12345")
	fmt.Fprint(reset, "12345")
	eventually(t, "all are held", func() bool { return held(fn) == 3 })
	_ = silent.Close()
	_ = reset.SetLinger(0)
	_ = reset.Close()
	_ = spoke.CloseWrite()
	eventually(t, "two have left", func() bool { return held(fn) == 1 })
	p.pods("hello", newTCPPod(t, sum))
	if got, err := io.ReadAll(spoke); err != nil || strings.TrimSpace(string(got)) != "5" {
		t.Errorf("got %q, %v, want 5", got, err)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1, outcomeClientGone: 2})
}

// turnstile is a listener that accepts a connection for each pass. So it can be certain that what a client does at once is
// done before its connection is looked at, which is for probeWait only.
type turnstile struct {
	net.Listener
	passes chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newTurnstile(t *testing.T) *turnstile {
	t.Helper()
	return &turnstile{Listener: listen(t), passes: make(chan struct{}), closed: make(chan struct{})}
}

func (l *turnstile) Accept() (net.Conn, error) {
	select {
	case <-l.passes:
		return l.Listener.Accept()
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *turnstile) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// The scaler's proof of the path is the same for TCP: it is answered whether the function sleeps or is just going to, and
// neither counts nor wakes. A check that only connects does not either.
func TestProbesOfTCP(t *testing.T) {
	for name, state := range map[string]func(*v1alpha1.Function){
		"Direct": direct,
		"Proxied, gate in the path": func(fn *v1alpha1.Function) {
			fn.Status.Gate = &v1alpha1.GateStatus{InPath: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", overTCP, state))
			gate := newTurnstile(t)
			address := p.tcpGateAt(gate, fn)
			for range 2 { // asleep, then with a pod
				conn := dialTCP(t, address)
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				fmt.Fprintf(conn, "%sHost: h\r\n%s: 1\r\n\r\n", probeLine, headerProbe)
				gate.passes <- struct{}{}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if res.StatusCode != http.StatusNoContent || res.Header.Get(headerGate) != "default/hello" {
					t.Errorf("got %d, %s %q, want 204, default/hello", res.StatusCode, headerGate, res.Header.Get(headerGate))
				}
				_ = dialTCP(t, address).Close()
				gate.passes <- struct{}{}
				p.pods("hello", newTCPPod(t, copyBack))
			}
			eventually(t, "nothing runs", func() bool { return p.proxy.active.Load() == 0 })
			if n := fn.stats.snapshot().started; n != 0 || p.wakes.Load() != 0 {
				t.Errorf("counted %d times, woke %d times, want neither", n, p.wakes.Load())
			}
		})
	}
}

func TestAPortFollowsTheProtocol(t *testing.T) {
	g := newGated(t)
	port := freePort(t)
	g.pods("a", newTCPPod(t, copyBack))
	says := func(want string) func() bool {
		return func() bool {
			conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
			if err != nil {
				return false
			}
			defer conn.Close()
			fmt.Fprint(conn, "this is no HTTP\r\n\r\n") // longer than what net/http waits for to tell HTTP/2 from HTTP/1.1
			line, _ := bufio.NewReader(conn).ReadString('\r')
			return line == want+"\r"
		}
	}
	for _, change := range []func(*v1alpha1.Function){func(*v1alpha1.Function) {}, overTCP, func(*v1alpha1.Function) {}} {
		obj := newTestFunction("a", gatePort(port), direct, change)
		g.table.setFunction(obj)
		want := "HTTP/1.1 400 Bad Request"
		if obj.IsTCP() {
			want = "this is no HTTP"
		}
		eventually(t, "the port says "+want, says(want))
		wantOwner(t, port, "default/a")
	}
}

func TestDrainGivesTCPItsGrace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grace time.Duration
		over  bool // before the client leaves
	}{{"the client leaves in time", time.Minute, false}, {"the client stays", 100 * time.Millisecond, true}} {
		t.Run(tt.name, func(t *testing.T) {
			noLeaks(t)
			a := newAPI(t)
			port := freePort(t)
			a.set(newTestFunction("hello", gatePort(port), overTCP))
			a.set(newSlice("hello", 0, newTCPPod(t, copyBack), true))
			r := start(t, a, func(o *Options) { o.DrainDelay, o.DrainTimeout = time.Millisecond, tt.grace })
			eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
			conn := dialTCP(t, fmt.Sprint("127.0.0.1:", port))
			say := func(word string) {
				fmt.Fprint(conn, word)
				if _, err := io.ReadFull(conn, make([]byte, len(word))); err != nil {
					t.Errorf("%s: %v", word, err)
				}
			}
			say("before")
			stopped := time.Now()
			r.stop()
			if tt.over {
				if n, err := conn.Read(make([]byte, 1)); err == nil {
					t.Errorf("got %d bytes, want the connection closed when the grace is over", n)
				}
				if took := time.Since(stopped); took < tt.grace {
					t.Errorf("closed after %s, want it to have its grace of %s", took, tt.grace)
				}
			} else {
				eventually(t, "the port is closed", func() bool {
					c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
					if err == nil {
						_ = c.Close()
					}
					return err != nil
				})
				say("in the drain")
				_ = conn.Close()
			}
			r.wait(t)
		})
	}
}
