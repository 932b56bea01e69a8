package activator

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// A request is handed on over a connection to another activator's admin address that GET /handed-on has opened. So the other
// one knows by the address that it comes from an activator, before any of it was sent; and whatever a client says at a door
// or a gate, it cannot pass for one that was handed on. The activator that the client came to counts the request as traffic.
// The other one holds it, in turn with its own, and sends it to a pod as the first would have done.

// headerHandedOn says of a request that was handed on: its function, how often it was, and its age in milliseconds. It is
// read on those connections alone, and is sent to no pod.
const headerHandedOn = "Sluice-Handed-On"

// maxHops is how often one request is handed on at most. Once is enough while all activators see the same; the others are
// for the moments in which they do not, as when one of them stops.
const maxHops = 3

// handedKey is the context's key for what is said of the one connection of TCP that is dialled for.
type handedKey struct{}

func (ex *exchange) handedOn() string {
	return fmt.Sprintf("%s %d %d", ex.fn.name, ex.hops+1, time.Since(ex.start).Milliseconds())
}

// received is the exchange of a request of which handed was said; nil where that makes no sense here.
func (t *table) received(handed string) *exchange {
	fields := strings.Split(handed, " ")
	if len(fields) != 3 {
		return nil
	}
	hops, err := strconv.Atoi(fields[1])
	age, err2 := strconv.ParseUint(fields[2], 10, 31)
	fn := t.function(fields[0])
	if err != nil || err2 != nil || hops < 1 || hops > maxHops || fn == nil {
		return nil
	}
	return &exchange{fn: fn, hops: hops, start: time.Now().Add(-time.Duration(age) * time.Millisecond)}
}

// handOnsLocked are the other activators as if they were pods of fn.
func (fn *function) handOnsLocked(to []*peer) map[*peer]*pod {
	known, all := map[string]*pod{}, map[*peer]*pod{}
	for _, p := range to {
		address := peerAddress(p.admin)
		if known[address] = fn.handOns[address]; known[address] == nil {
			known[address] = &pod{address: address, peer: true, place: &place{}}
		}
		all[p] = known[address]
	}
	fn.handOns = known
	return all
}

// What opens a connection by which requests are handed on: after the answer it is as if it had been made to a gate.
const (
	handOnPath = "/handed-on"
	switched   = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\n"
)

// dial makes such a connection to the peer at the address: for requests of HTTP if handed is empty, else for the one
// connection of TCP of which that is said. After an error nothing of any was sent.
func (ps *peers) dial(ctx context.Context, address, handed string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ps.timeout)
	defer cancel()
	conn, err := ps.connect(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	request := "GET " + handOnPath + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n"
	if handed != "" {
		request += headerHandedOn + ": " + handed + "\r\n"
	}
	answer := make([]byte, len(switched)) // not a byte more: what follows is for who gets the connection
	if _, err = io.WriteString(conn, request+"\r\n"); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err == nil && string(answer) != switched {
		line, _, _ := strings.Cut(string(answer), "\r\n")
		err = fmt.Errorf("the activator at %s does not take what is handed on: %q", address, line)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// handOns takes what other activators hand on. It is the listener of the server of these requests.
type handOns struct {
	table  *table
	proxy  *proxy
	base   func() context.Context // of connections; they are cut off when it ends
	server *http.Server

	conns     chan net.Conn
	accepting atomic.Bool
	once      sync.Once
	closed    chan struct{}
}

func newHandOns(ctx context.Context, log logr.Logger, t *table, p *proxy) *handOns {
	h := &handOns{
		table: t, proxy: p, base: func() context.Context { return ctx },
		conns: make(chan net.Conn), closed: make(chan struct{}),
	}
	h.server = newServer(ctx, log, http.HandlerFunc(h.serve))
	h.server.MaxHeaderBytes = 2 * maxHeader // what was within the bound has grown
	return h
}

// Accept implements net.Listener.
func (h *handOns) Accept() (net.Conn, error) {
	h.accepting.Store(true)
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		h.accepting.Store(false) // again: it was closed when this began
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handOns) Close() error {
	h.accepting.Store(false)
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handOns) Addr() net.Addr { return &net.UnixAddr{Name: handOnPath} }

// register adds what other activators ask for. synced is false while this one has no requests, and has not seen what there is.
func (h *handOns) register(synced func() bool) func(*http.ServeMux) {
	return func(mux *http.ServeMux) {
		mux.Handle("GET "+handOnPath, h)
		mux.HandleFunc("POST "+claimsPath, h.table.answerClaims(synced))
	}
}

// ServeHTTP opens a connection, at the admin address.
func (h *handOns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex := (*exchange)(nil)
	handed := r.Header.Get(headerHandedOn)
	if handed != "" {
		ex = h.table.received(handed)
	}
	switch {
	case !h.proxy.peers.knows(r.RemoteAddr):
		http.Error(w, "only activators may hand requests on", http.StatusForbidden)
		return
	case !h.accepting.Load():
		http.Error(w, "this activator is not serving", http.StatusServiceUnavailable)
		return
	case handed != "" && (ex == nil || !ex.fn.object.Load().IsTCP()):
		http.Error(w, "no such function of TCP", http.StatusNotFound)
		return
	}
	// The drain waits for what is on its way to a server, or is served here.
	h.proxy.active.Add(1)
	defer h.proxy.active.Add(-1)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the client is gone
	}
	if ex != nil {
		defer conn.Close()
		if _, err := io.WriteString(conn, switched); err == nil {
			h.proxy.carry(h.base(), conn.(*net.TCPConn), nil, ex) //nolint:contextcheck // the connection is no request's any more
		}
		return
	}
	select {
	case h.conns <- conn:
		// Only now is it certain that somebody serves what comes. Nobody else writes before it has come.
		if _, err := io.WriteString(conn, switched); err != nil {
			_ = conn.Close()
		}
	case <-h.closed:
		_ = conn.Close()
	}
}

// serve serves one request of HTTP.
func (h *handOns) serve(w http.ResponseWriter, r *http.Request) {
	ex := h.table.received(r.Header.Get(headerHandedOn))
	if ex == nil {
		refuseHandedOn().write(w, 0, isGRPC(r))
		return
	}
	ex.static = staticFor(ex.fn.object.Load(), r)
	if _, ok := adminOf(r.Host); ok {
		r.Host = "" // there was none, and the Transport of the other activator gave it this one's address
	}
	h.proxy.serveExchange(w, r, ex) //nolint:contextcheck // the request has it
}

// outcomeOf is that of a request whose answer, with the header h, came from a peer.
func outcomeOf(h http.Header) outcome {
	if h.Get(headerFallback) != "" {
		return outcomeFallback
	}
	return outcomesOf[h.Get(headerReason)]
}

// outcomesOf are those of requests that a peer has answered by itself, by the reason that it gave.
var outcomesOf = map[string]outcome{
	"QueueFull": outcomeQueueFull, "HoldTimeout": outcomeHoldTimeout, "DialFailed": outcomeDialFailed,
	"UpstreamError": outcomeUpstreamError, "FunctionDeleted": outcomeDeleted, "Stopping": outcomeStopping,
	"RequestBroken": outcomeClientGone, "Loop": outcomeLoop, "UpgradeUnsupported": outcomeProtocol,
	"PodNotHTTP2": outcomeProtocol, "AppProtocolUnsupported": outcomeProtocol, "Placeholder": outcomePlaceholder,
	"TooManyOpenFiles": outcomeNoFiles,
}
