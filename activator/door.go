package activator

import (
	"context"
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
		if fn == nil {
			p.metrics.unrouted.Inc()
			if p.draining.Load() {
				w.Header().Set("Connection", "close")
			}
			refuseHost(host).write(w, 0)
			return
		}
		p.serve(w, r, fn, false)
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

// newServer is a server for requests from outside. Their contexts end with ctx.
func newServer(ctx context.Context, log logr.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		// Longer than clients and ingresses commonly keep connections (60 s and 90 s), so that they close first.
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 1 << 20,
		// net/http answers OPTIONS * by itself otherwise, and the function, or the probe, would never be asked.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:                     netLog(log),
	}
}

type connKey struct{}

// errClientGone is the cause for which a held request is given up when net/http cannot tell.
var errClientGone = errors.New("the client went away")

// clientGone tells whether the client of a request whose body was not read has closed its connection. net/http watches
// for that only from the end of the body on, and a held body is neither read nor buffered. A client whose body fills the
// sockets' buffers is noticed only when it resets the connection.
func clientGone(ctx context.Context) bool {
	c, ok := ctx.Value(connKey{}).(net.Conn)
	return ok && peerClosed(c)
}

// netLog leads what net/http logs, which is about single connections, to the debug level.
func netLog(l logr.Logger) *log.Logger { return log.New(logWriter{l}, "", 0) }

type logWriter struct{ log logr.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	w.log.V(1).Info("http", "message", strings.TrimSpace(string(line)))
	return len(line), nil
}
