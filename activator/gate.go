package activator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// How long after a port could not be opened it is tried again: doubled from the first to the last.
const (
	firstReopen = time.Second
	maxReopen   = 30 * time.Second
)

// gateLinger is how long a port goes on serving a function that has left it, and kept connections outlive a change of what
// a port serves. By then kube-proxy leads nobody there any more, and a client that used its connection meanwhile was told to
// make another one.
const gateLinger = 10 * time.Second

// gates keeps a listener open for every gate port. A port always stands for one function: when its owner changes, another
// server takes over the listener, so that no connection is refused and no kept one reaches the wrong function.
type gates struct {
	log     logr.Logger
	metrics *metrics
	host    string
	proxy   *proxy
	linger  time.Duration // gateLinger, but for tests

	kick     chan struct{} // tells run that dirty is not empty; holds one
	standing chan struct{} // closed when every port known at the start of run was tried
	closing  sync.WaitGroup
	ending   chan struct{} // closed by the first end
	ended    sync.Once

	mu    sync.Mutex // protects following
	want  map[int32]*function
	dirty map[int32]bool

	open map[int32]*gate // run's alone, then shutdown's
}

// gate is one open port and what serves it.
type gate struct {
	fn      *function
	tcp     bool // opaque TCP, not HTTP
	ln      *net.TCPListener
	server  portServer
	lease   *lease
	served  chan struct{} // closed when the server has stopped accepting
	leaving atomic.Bool   // answers ask clients to close their connections
	until   time.Time     // when the port closes, unless somebody has it again; zero for not
}

// portServer is an http.Server or a tcpServer. Serve returns http.ErrServerClosed after one of the others was called.
type portServer interface {
	Serve(ln net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}

// lease is one server's use of a port's listener. To close it ends the server's accepting and leaves the port open:
// connections that come meanwhile wait for the next server.
type lease struct {
	*net.TCPListener
	ended atomic.Bool
}

func (t *lease) Accept() (net.Conn, error) {
	conn, err := t.TCPListener.Accept()
	if err != nil && t.ended.Load() {
		return nil, net.ErrClosed
	}
	return conn, err
}

// Close does nothing the second time, when the listener is another's.
func (t *lease) Close() error {
	if t.ended.Swap(true) {
		return nil
	}
	return t.SetDeadline(time.Unix(1, 0))
}

func newGates(log logr.Logger, m *metrics, host string, p *proxy) *gates {
	return &gates{
		log: log, metrics: m, host: host, proxy: p, linger: gateLinger,
		kick: make(chan struct{}, 1), standing: make(chan struct{}), ending: make(chan struct{}),
		want: map[int32]*function{}, dirty: map[int32]bool{}, open: map[int32]*gate{},
	}
}

// assign gives port to fn, or to nobody. It does not block: run does the work.
func (g *gates) assign(port int32, fn *function) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fn == nil {
		delete(g.want, port)
	} else {
		g.want[port] = fn
	}
	g.dirty[port] = true
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// takeDirty returns the ports that changed since the last call, with their owners.
func (g *gates) takeDirty() map[int32]*function {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := make(map[int32]*function, len(g.dirty))
	for port := range g.dirty {
		changed[port] = g.want[port]
	}
	clear(g.dirty)
	return changed
}

// retry is a port that could not be opened.
type retry struct {
	fn    *function
	at    time.Time
	delay time.Duration
}

// run opens and closes ports until ctx ends; the ports then open stay so, for shutdown. Requests run under serveCtx.
func (g *gates) run(ctx, serveCtx context.Context) {
	failed := map[int32]retry{}
	for first := true; ; first = false {
		for port, fn := range g.takeDirty() {
			delete(failed, port)
			g.bring(serveCtx, port, fn, failed)
		}
		for port, r := range failed {
			if !time.Now().Before(r.at) {
				g.bring(serveCtx, port, r.fn, failed)
			}
		}
		g.closeLeft(serveCtx)
		g.metrics.gatesFailed.Set(float64(len(failed)))
		if first {
			close(g.standing)
		}
		var due <-chan time.Time
		var timer *time.Timer
		if at := g.nextDue(failed); !at.IsZero() {
			timer = time.NewTimer(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-g.kick:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// nextDue is when the first port is to be tried again or to be closed; zero for none.
func (g *gates) nextDue(failed map[int32]retry) time.Time {
	var first time.Time
	sooner := func(at time.Time) {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	for _, r := range failed {
		sooner(r.at)
	}
	for _, gt := range g.open {
		sooner(gt.until)
	}
	return first
}

// closeLeft closes the ports that were left long enough ago.
func (g *gates) closeLeft(serveCtx context.Context) {
	for port, gt := range g.open {
		if !gt.until.IsZero() && !time.Now().Before(gt.until) {
			delete(g.open, port)
			_ = gt.ln.Close()
			<-gt.served
			g.retire(serveCtx, gt, 0)
		}
	}
}

// bring makes port stand for fn, or close in a while if fn is nil.
func (g *gates) bring(serveCtx context.Context, port int32, fn *function, failed map[int32]retry) {
	cur := g.open[port]
	if fn == nil {
		if cur != nil {
			cur.leaving.Store(true)
			cur.until = time.Now().Add(g.linger)
		}
		return
	}
	tcp := fn.object.Load().IsTCP()
	if cur != nil && cur.fn == fn && cur.tcp == tcp {
		cur.leaving.Store(false)
		cur.until = time.Time{}
		return
	}
	log := g.log.WithValues("namespace", fn.key.Namespace, "function", fn.key.Name, "port", port)
	gt := &gate{fn: fn, tcp: tcp, served: make(chan struct{})}
	if cur != nil {
		gt.ln = g.takeOver(serveCtx, cur)
	} else {
		var lc net.ListenConfig
		ln, err := lc.Listen(serveCtx, "tcp", net.JoinHostPort(g.host, strconv.Itoa(int(port))))
		if err != nil {
			delay := min(max(2*failed[port].delay, firstReopen), maxReopen)
			failed[port] = retry{fn: fn, at: time.Now().Add(delay), delay: delay}
			g.metrics.gateErrors.Inc()
			log.Error(err, "cannot open gate port; trying again", "delay", delay)
			return
		}
		gt.ln = ln.(*net.TCPListener)
	}
	delete(failed, port)
	if tcp {
		gt.server = newTCPServer(serveCtx, fn, g.proxy)
	} else {
		gt.server = newServer(serveCtx, g.log, gateHandler(gt, g.proxy))
	}
	gt.lease = &lease{TCPListener: gt.ln}
	g.open[port] = gt
	g.closing.Go(func() {
		defer close(gt.served)
		if err := gt.server.Serve(gt.lease); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error(err, "gate port stopped accepting")
		}
	})
	log.V(1).Info("opened gate port")
}

// takeOver ends gt's accepting and returns its listener, open. The connections that gt has go on for a while.
func (g *gates) takeOver(serveCtx context.Context, gt *gate) *net.TCPListener {
	_ = gt.lease.Close()
	<-gt.served
	_ = gt.ln.SetDeadline(time.Time{})
	gt.leaving.Store(true)
	g.retire(serveCtx, gt, g.linger)
	return gt.ln
}

// retire lets the requests finish that came by gt, which accepts no more, until ctx ends. Connections without a request
// are kept for linger.
func (g *gates) retire(ctx context.Context, gt *gate, linger time.Duration) {
	g.closing.Go(func() {
		timer := time.NewTimer(linger)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-g.ending:
		}
		if gt.server.Shutdown(ctx) != nil {
			_ = gt.server.Close()
		}
	})
}

// waitStanding tells whether run has opened the ports it found, false when ctx ends first.
func (g *gates) waitStanding(ctx context.Context) bool {
	select {
	case <-g.standing:
		return true
	case <-ctx.Done():
		return false
	}
}

// shutdown stops accepting on all ports and waits for the requests that came by them, and by ports that were retired,
// until ctx ends. run must have ended.
func (g *gates) shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(g.open))
	g.end()
	for _, gt := range g.open {
		wg.Go(func() { errs <- gt.server.Shutdown(ctx) })
	}
	wg.Wait()
	close(errs)
	all := []error{g.wait(ctx)}
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// end closes every port, and has nothing linger any more.
func (g *gates) end() {
	g.ended.Do(func() { close(g.ending) })
	for _, gt := range g.open {
		_ = gt.ln.Close()
	}
}

// wait waits until no port accepts and no retired one has a request, or until ctx ends.
func (g *gates) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		g.closing.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close cuts every connection that shutdown left. The requests' context must have ended.
func (g *gates) close() {
	g.end()
	for _, gt := range g.open {
		_ = gt.server.Close()
	}
	g.closing.Wait()
}

// gateHandler serves the port of one function. A probe asks whether the data path of a Service leads here; it is
// answered by the gate itself, whatever the function's state, and is not traffic.
func gateHandler(gt *gate, p *proxy) http.Handler {
	fn := gt.fn
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions && r.RequestURI == "*" && r.Header.Get(headerProbe) != "" {
			w.Header().Set(headerGate, fn.name)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		p.serve(w, r, fn, gt) //nolint:contextcheck // the request has it
	})
}
