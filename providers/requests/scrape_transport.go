package requests

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// dialTimeout bounds a connection's beginning. A dial goes on after the measurement that began it has been given up,
	// and to the pods of a dead node another one begins every interval.
	dialTimeout = 5 * time.Second
	// transportKeep is how long the connections of a TLS identity are kept after its last use: longer than pods are
	// measured apart.
	transportKeep = 2 * time.Minute
	// maxIdentities bounds the TLS identities that are kept at a time: as many as functions, should each have its own.
	maxIdentities = 10_000
)

// identity is whatever tells one TLS client from another.
type identity struct {
	insecure   bool
	serverName string
	authority  providers.SecretVersion // zero for the system's
}

// transports holds one Transport for activators, one for pods over http, and one for each TLS identity in use.
type transports struct {
	dial              func(ctx context.Context, network, address string) (net.Conn, error)
	plain, activators *http.Transport

	mu         sync.Mutex // protects following
	byIdentity map[identity]*tlsTransport
	swept      time.Time
}

type tlsTransport struct {
	*http.Transport
	used time.Time
}

func newDialer() *net.Dialer { return &net.Dialer{Timeout: dialTimeout, KeepAlive: -1} }

func (ts *transports) newTransport() *http.Transport {
	return &http.Transport{
		// No proxy: targets are pod addresses. No keep-alive probes: there is traffic more often than they would be sent.
		DialContext: ts.dial,
		// One connection per target, kept for its next turn. It is HTTP/1.1, as for every Transport with a DialContext.
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: headerLimit,
		// Each of 20,000 connections has these buffers. A request has a few hundred bytes, as has an answer's header; its
		// body is read past the buffer.
		ReadBufferSize:  1 << 10,
		WriteBufferSize: 1 << 9,
		// Answers are limited by what they uncompress to, which is done here.
		DisableCompression: true,
	}
}

// of returns the Transport for t.
func (ts *transports) of(ctx context.Context, t providers.Target, secrets Secrets) (*http.Transport, error) {
	s := t.Scrape
	switch {
	case t.Kind == providers.Activator:
		return ts.activators, nil
	case !s.TLS:
		return ts.plain, nil
	}
	id := identity{insecure: s.InsecureSkipVerify, serverName: s.ServerName}
	var authorities []byte
	if s.CASecret != "" && !s.InsecureSkipVerify {
		name := types.NamespacedName{Namespace: t.Function.Namespace, Name: s.CASecret}
		if secrets == nil {
			return nil, fmt.Errorf("podMetrics.tls.caRef names secret %s, and this adapter reads no Secrets", name)
		}
		secret, err := secrets.Get(ctx, name) // not under the lock: it may do I/O
		if err != nil {
			return nil, fmt.Errorf("podMetrics.tls.caRef: %w", err)
		}
		if authorities = secret.Data["ca.crt"]; len(authorities) == 0 {
			authorities = secret.Data["ca"]
		}
		if len(authorities) == 0 {
			return nil, fmt.Errorf("podMetrics.tls.caRef: secret %s has no ca.crt; put the authorities' certificates there, in PEM", name)
		}
		id.authority = secret.Version
	}
	return ts.get(id, authorities)
}

func (ts *transports) get(id identity, authorities []byte) (*http.Transport, error) {
	now := time.Now()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.sweepLocked(now)
	if found := ts.byIdentity[id]; found != nil {
		found.used = now
		return found.Transport, nil
	}
	if len(ts.byIdentity) >= maxIdentities {
		return nil, errors.New("too many different podMetrics.tls are in use; let functions share a Secret")
	}
	//nolint:gosec // to take any certificate is what the user asked for by name
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: id.serverName, InsecureSkipVerify: id.insecure}
	if authorities != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, errors.New("podMetrics.tls.caRef: ca.crt holds no certificate in PEM")
		}
	}
	transport := ts.newTransport()
	transport.TLSClientConfig = config
	transport.TLSHandshakeTimeout = dialTimeout
	ts.byIdentity[id] = &tlsTransport{Transport: transport, used: now}
	return transport, nil
}

// sweepLocked drops what was not used for a while: the authorities were exchanged, or the function is gone.
func (ts *transports) sweepLocked(now time.Time) {
	if now.Sub(ts.swept) < transportKeep/4 {
		return
	}
	ts.swept = now
	for id, t := range ts.byIdentity {
		if now.Sub(t.used) > transportKeep {
			t.CloseIdleConnections() // and those in use once they are not
			delete(ts.byIdentity, id)
		}
	}
}

func (ts *transports) close() {
	ts.plain.CloseIdleConnections()
	ts.activators.CloseIdleConnections()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.byIdentity {
		t.CloseIdleConnections()
	}
}
