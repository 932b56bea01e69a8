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
	"sync"
	"time"
)

// tcpServer serves the gate port of a function whose traffic is opaque TCP. It does what http.Server does for the
// others, as far as gates need it. A connection counts as one request, from the time it was accepted to that at which
// both directions have ended.
type tcpServer struct {
	fn    *function
	proxy *proxy
	base  func() context.Context // of connections; they are cut off when it ends

	mu      sync.Mutex // protects following
	ln      net.Listener
	conns   map[net.Conn]struct{}
	closing bool
	serving sync.WaitGroup
}

func newTCPServer(ctx context.Context, fn *function, p *proxy) *tcpServer {
	return &tcpServer{fn: fn, proxy: p, base: func() context.Context { return ctx }, conns: map[net.Conn]struct{}{}}
}

// Pauses after accepting failed, as for want of file descriptors.
const (
	firstAcceptPause = 5 * time.Millisecond
	lastAcceptPause  = time.Second
)

// Serve accepts connections until Shutdown or Close.
func (s *tcpServer) Serve(ln net.Listener) error {
	s.mu.Lock()
	s.ln = ln
	if s.closing {
		_ = ln.Close()
	}
	s.mu.Unlock()
	for pause := firstAcceptPause; ; {
		conn, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return http.ErrServerClosed
			}
			if s.proxy.noAccept.passes() {
				s.proxy.log.Error(err, acceptFailed)
			}
			timer := time.NewTimer(pause)
			<-timer.C
			pause = min(2*pause, lastAcceptPause)
			continue
		}
		pause = firstAcceptPause
		if !s.begin(conn) {
			_ = conn.Close()
			return http.ErrServerClosed
		}
		go func() {
			defer s.end(conn)
			s.proxy.serveTCP(s.base(), conn.(*net.TCPConn), s.fn)
		}()
	}
}

func (s *tcpServer) begin(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.conns[conn] = struct{}{}
	s.serving.Add(1)
	return true
}

func (s *tcpServer) end(conn net.Conn) {
	_ = conn.Close()
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	s.serving.Done()
}

// Shutdown stops accepting and waits until no connection is left, or until ctx ends.
func (s *tcpServer) Shutdown(ctx context.Context) error {
	s.stop(false)
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops accepting and closes all connections.
func (s *tcpServer) Close() error {
	s.stop(true)
	return nil
}

func (s *tcpServer) stop(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	if s.ln != nil {
		_ = s.ln.Close()
	}
	if cut {
		for conn := range s.conns {
			_ = conn.Close()
		}
	}
}

// serveTCP answers conn for fn: by the gate if it is a probe, else by a pod. It returns when both directions have ended.
func (p *proxy) serveTCP(ctx context.Context, conn *net.TCPConn, fn *function) {
	p.active.Add(1)
	defer p.active.Add(-1)
	start := time.Now()
	said, kind := sniff(conn, fn)
	switch kind {
	case sniffedProbe:
		answerProbe(conn, fn)
		return
	case sniffedNothing:
		return
	case sniffedTraffic:
	}
	ex := &exchange{fn: fn, start: fn.stats.start()}
	ex.start = start
	p.carry(ctx, conn, said, ex)
}

// carry passes on what conn, of which said was read, and a pod say.
func (p *proxy) carry(ctx context.Context, conn *net.TCPConn, said []byte, ex *exchange) {
	fn := ex.fn
	ex.bodyUnread = true // whether the client is gone is looked for
	defer p.finish(ex)
	up, err := p.dialPod(context.WithValue(ctx, connKey{}, heldConn{conn, len(said) > 0}), ex)
	if err != nil {
		ex.outcome = tcpOutcome(ctx, err)
		p.log.V(1).Info("connection refused", "namespace", fn.key.Namespace, "function", fn.key.Name, "err", err.Error())
		// Not an end that looks like an empty answer.
		_ = conn.SetLinger(0)
		return
	}
	if ex.held > 0 && ex.hops == 0 {
		p.metrics.coldStart.WithLabelValues("hold").Observe(ex.held.Seconds())
	}
	ex.outcome = splice(ctx, conn, up, said)
}

// tcpOutcome tells how a connection ended that got no pod.
func tcpOutcome(ctx context.Context, err error) outcome {
	var ref *refusal
	switch {
	case errors.As(err, &ref):
		return ref.outcome
	case errors.Is(context.Cause(ctx), errStopping):
		return outcomeStopping
	default:
		return outcomeClientGone
	}
}

// dialPod connects to a pod of ex's function as RoundTrip does: it tries each ready pod once, then it holds the
// connection until one may be tried again.
func (p *proxy) dialPod(ctx context.Context, ex *exchange) (*net.TCPConn, error) {
	for {
		pod, err := p.next(ctx, ex)
		if err != nil {
			return nil, err
		}
		conn, err := p.dial(context.WithValue(ctx, handedKey{}, ex.handedOn()), "tcp", pod.address)
		if err == nil {
			if ex.pod = pod; pod.peer {
				p.metrics.handedOn.Inc()
			}
			return conn.(*net.TCPConn), nil
		}
		if err := p.notDialled(ctx, ex, pod, err); err != nil {
			return nil, err
		}
	}
}

// heldConn is a connection that is held, and whether its client has said something, which is not in the socket's buffer
// any more.
type heldConn struct {
	*net.TCPConn
	said bool
}

// gone tells whether the client has gone. A client that has closed its side only after it said something may still wait
// for the answer; one that did so without a word does not.
func (c heldConn) gone() bool {
	return peerReset(c.TCPConn) || (!c.said && peerClosed(c.TCPConn) && !unread(c.TCPConn))
}

// halfClosed is how long a client may go on sending after the pod has closed its side. A pod whose process has ended does
// not tell that from one that only has nothing more to say.
const halfClosed = 2 * time.Minute

// splice passes on what both sides say until both have ended: first said, which was read from the client already. An end
// of one side's words is passed on as such, a reset as a reset.
func splice(ctx context.Context, client, pod *net.TCPConn, said []byte) outcome {
	defer func() { _ = pod.Close() }()
	cut := func() {
		_ = client.Close()
		_ = pod.Close()
	}
	stop := context.AfterFunc(ctx, cut)
	defer stop()
	result := make(chan outcome, 1)
	go func() { result <- passOn(pod, client, said, false) }()
	down := passOn(client, pod, nil, true)
	up := <-result
	switch {
	case errors.Is(context.Cause(ctx), errStopping):
		return outcomeStopping
	case up != outcomeOK:
		return up
	default:
		return down
	}
}

// passOn copies from src to dst, first said, until src ends. fromPod tells which of them the pod is.
func passOn(dst, src *net.TCPConn, said []byte, fromPod bool) outcome {
	bad, broken := outcomeClientGone, outcomeUpstreamError // of src, and of dst
	if fromPod {
		bad, broken = broken, bad
	}
	_, err := dst.Write(said)
	if err == nil {
		// Without a buffer of ours where the kernel can do it.
		_, err = io.Copy(dst, src)
	}
	switch {
	case err == nil:
		_ = dst.CloseWrite()
		if fromPod {
			_ = dst.SetReadDeadline(time.Now().Add(halfClosed))
		}
		return outcomeOK
	case isTimeout(err):
		// The pod had ended, and the client went on for halfClosed.
		return outcomeOK
	case peerReset(src):
		// Whoever waits for an answer to what it said must see that none will come.
		_ = dst.SetLinger(0)
		_ = dst.Close()
		return bad
	case fromPod:
		// The client takes no more.
		_ = src.SetLinger(0)
		_ = src.Close()
		return broken
	default:
		// The pod takes no more; what it still says is passed on.
		return outcomeOK
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// probeWait is how long a connection at which a probe may come is listened to before it is taken for one whose server
// speaks first. It is not waited for while the client says something else than a probe does.
const probeWait = 100 * time.Millisecond

// maxProbeSize bounds the header of a probe.
const maxProbeSize = 4 << 10

const probeLine = "OPTIONS * HTTP/1.1\r\n"

// sniffed is what a connection turned out to be.
type sniffed int

const (
	sniffedTraffic sniffed = iota
	sniffedProbe
	// sniffedNothing ended before it had said a word, as the checks of load balancers do: nothing is woken for it.
	sniffedNothing
)

// sniff reads what tells a probe from other connections, and returns it. A probe is only listened for where there can be
// one: it goes to the function's own Service, into which the gate comes when the function goes to sleep.
func sniff(conn *net.TCPConn, fn *function) (said []byte, kind sniffed) {
	obj := fn.object.Load()
	if obj.IsProxied() && (obj.Status.Gate == nil || !obj.Status.Gate.InPath) && fn.pods.Load().usable() {
		return nil, sniffedTraffic
	}
	_ = conn.SetReadDeadline(time.Now().Add(probeWait))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	buf := make([]byte, 512)
	for len(said) < maxProbeSize {
		n, err := conn.Read(buf)
		said = append(said, buf[:n]...)
		like := min(len(said), len(probeLine))
		switch {
		case string(said[:like]) != probeLine[:like]:
			return said, sniffedTraffic
		case bytes.HasSuffix(said, []byte("\r\n\r\n")):
			if req, bad := http.ReadRequest(bufio.NewReader(bytes.NewReader(said))); bad == nil && req.Header.Get(headerProbe) != "" {
				return said, sniffedProbe
			}
			return said, sniffedTraffic
		case err != nil && like == 0 && !isTimeout(err):
			return nil, sniffedNothing
		case err != nil:
			return said, sniffedTraffic // who reads on sees it too
		}
	}
	return said, sniffedTraffic
}

// answerProbe answers as gateHandler does.
func answerProbe(conn *net.TCPConn, fn *function) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	fmt.Fprintf(conn, "HTTP/1.1 204 No Content\r\n%s: %s\r\nConnection: close\r\n\r\n", headerGate, fn.name)
}
