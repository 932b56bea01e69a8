package activator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
)

// newDoor serves the shared door: requests are routed by Host to the Proxied Function that declares it.
func newDoor(t *table, p *proxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostName(r.Host)
		fn := t.ownerOf(host)
		if r.TLS != nil && (fn == nil || t.ownerOf(hostName(r.TLS.ServerName)) != fn) {
			// The client uses a connection that it made for another host, and may have been shown another's certificate
			// (RFC 9110, 7.4).
			p.metrics.misdirected.Inc()
			refuseMisdirected(host, r.TLS.ServerName).write(w, 0, isGRPC(r))
			return
		}
		if fn == nil {
			p.metrics.unrouted.Inc()
			if p.draining.Load() {
				w.Header().Set("Connection", "close")
			}
			refuseHost(host).write(w, 0, isGRPC(r))
			return
		}
		p.serve(w, r, fn, nil) //nolint:contextcheck // the request has it
	})
}

// hostName is the Host header as Functions spell it: without port, lower case, without the root's dot.
func hostName(host string) string {
	// A bracketed address may hold colons; a name's only colon is before the port.
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// Bounds of what a client may make a door wait for, and hold in memory, before a request is known.
const (
	maxHeader  = 64 << 10         // of a request's header, with some room for the server's own; beyond it the answer is 431
	headerTime = 10 * time.Second // from the connection's begin, or the next request's first byte, to the header's end
	// idleTime is longer than clients and ingresses commonly keep connections (60 s and 90 s), so that they close first.
	idleTime = 2 * time.Minute
)

// newServer is a server for requests from outside. Their contexts end with ctx.
func newServer(ctx context.Context, log logr.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		Protocols:         serverProtocols(false),
		HTTP2:             serverHTTP2(),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		// net/http answers OPTIONS * by itself otherwise, and the function, or the probe, would never be asked.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:                     netLog(log),
	}
}

// newTLSServer is that of the door's TLS listener.
func newTLSServer(ctx context.Context, log logr.Logger, h http.Handler, c *certs) *http.Server {
	srv := newServer(ctx, log, h)
	srv.Protocols, srv.TLSConfig = serverProtocols(true), c.config() //nolint:contextcheck // each handshake has its own
	return srv
}

type connKey struct{}

// errClientGone is the cause for which a held request is given up when net/http cannot tell.
var errClientGone = errors.New("the client went away")

// clientGone tells whether the client of a request whose body was not read has closed its connection. net/http watches
// for that only from the end of the body on, and a held body is neither read nor buffered. A client whose body fills the
// sockets' buffers is noticed only when it resets the connection.
func clientGone(ctx context.Context) bool {
	switch c := ctx.Value(connKey{}).(type) {
	case heldConn:
		return c.gone()
	case *tls.Conn:
		return peerClosed(c.NetConn())
	case net.Conn:
		return peerClosed(c)
	default:
		return false
	}
}

// netLog leads what net/http logs, which is about single connections, to the debug level; but not that it cannot accept any.
func netLog(l logr.Logger) *log.Logger { return log.New(&logWriter{log: l}, "", 0) }

type logWriter struct {
	log      logr.Logger
	noAccept seldom // is told
}

// acceptFailed is what is logged of errors after which accepting is tried again, as for want of files.
const acceptFailed = "cannot accept connections; trying again"

func (w *logWriter) Write(line []byte) (int, error) {
	if cause, ok := bytes.CutPrefix(line, []byte("http: Accept error: ")); ok && w.noAccept.passes() {
		w.log.Error(errors.New(string(bytes.TrimSpace(cause))), acceptFailed)
	}
	w.log.V(1).Info("http", "message", strings.TrimSpace(string(line)))
	return len(line), nil
}
