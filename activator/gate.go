package activator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// How long after a port could not be opened it is tried again: doubled from the first to the last.
const (
	firstReopen = time.Second
	maxReopen   = 30 * time.Second
)

// gates keeps a listener open for every gate port. A port always stands for one function: when its owner changes, the
// server is closed and another opened, so that no kept connection reaches the wrong function.
type gates struct {
	log     logr.Logger
	metrics *metrics
	host    string
	proxy   *proxy

	kick     chan struct{} // tells run that dirty is not empty; holds one
	standing chan struct{} // closed when every port known at the start of run was tried
	closing  sync.WaitGroup

	mu    sync.Mutex // protects following
	want  map[int32]*function
	dirty map[int32]bool

	open map[int32]*gate // run's alone, then shutdown's
}

// gate is one open port.
type gate struct {
	fn     *function
	ln     net.Listener
	server *http.Server
	served chan struct{} // closed when the server has stopped accepting
}

func newGates(log logr.Logger, m *metrics, host string, p *proxy) *gates {
	return &gates{
		log: log, metrics: m, host: host, proxy: p,
		kick: make(chan struct{}, 1), standing: make(chan struct{}),
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
	tick := time.NewTimer(0)
	defer tick.Stop()
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
		g.metrics.gatesFailed.Set(float64(len(failed)))
		if first {
			close(g.standing)
		}
		tick.Reset(firstReopen)
		wait := tick.C
		if len(failed) == 0 {
			wait = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-g.kick:
		case <-wait:
		}
	}
}

// bring makes port stand for fn, or close if fn is nil.
func (g *gates) bring(serveCtx context.Context, port int32, fn *function, failed map[int32]retry) {
	if cur := g.open[port]; cur != nil {
		if cur.fn == fn {
			return
		}
		delete(g.open, port)
		g.retire(serveCtx, cur)
	}
	if fn == nil {
		return
	}
	log := g.log.WithValues("namespace", fn.key.Namespace, "function", fn.key.Name, "port", port)
	var lc net.ListenConfig
	ln, err := lc.Listen(serveCtx, "tcp", net.JoinHostPort(g.host, strconv.Itoa(int(port))))
	if err != nil {
		delay := min(max(2*failed[port].delay, firstReopen), maxReopen)
		failed[port] = retry{fn: fn, at: time.Now().Add(delay), delay: delay}
		g.metrics.gateErrors.Inc()
		log.Error(err, "cannot open gate port; trying again", "delay", delay)
		return
	}
	delete(failed, port)
	gt := &gate{fn: fn, ln: ln, server: newServer(serveCtx, g.log, gateHandler(fn, g.proxy)), served: make(chan struct{})}
	g.open[port] = gt
	g.closing.Go(func() {
		defer close(gt.served)
		if err := gt.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error(err, "gate port stopped accepting")
		}
	})
	log.V(1).Info("opened gate port")
}

// retire closes the port at once and lets the requests that came by it finish, until ctx ends.
func (g *gates) retire(ctx context.Context, gt *gate) {
	_ = gt.ln.Close() // the port must be free for its next owner
	<-gt.served
	g.closing.Go(func() {
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
	for _, gt := range g.open {
		_ = gt.server.Close()
	}
	g.closing.Wait()
}

// gateHandler serves the port of one function. A probe asks whether the data path of a Service leads here; it is
// answered by the gate itself, whatever the function's state, and is not traffic.
func gateHandler(fn *function, p *proxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions && r.RequestURI == "*" && r.Header.Get(headerProbe) != "" {
			w.Header().Set(headerGate, fn.name)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		p.serve(w, r, fn, true)
	})
}
