package prometheus

import (
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// dialTimeout bounds a connection's beginning. A dial goes on after the query that began it has been given up.
	dialTimeout = 5 * time.Second
	// idleTimeout is how long a connection waits for the next query.
	idleTimeout = 30 * time.Second
	// keepClient is how long credentials that nobody uses stay in memory.
	keepClient = 5 * time.Minute
	// maxClients bounds the sets of credentials in memory. Past it, the one that was not used for longest is dropped.
	maxClients = 1000
)

// client asks servers with one set of credentials.
type client struct {
	creds     *credentials
	transport *http.Transport
	used      time.Time // protected by clients.mu
}

// clients shares a client, and with it connections, between all who have the same credentials: those whose Secrets
// have equal content, and those without any. When a Secret changes it has another client, with new connections, at
// once.
type clients struct {
	allow providers.AllowList

	mu    sync.Mutex // protects following
	byKey map[providers.SecretVersion]*client
	swept time.Time
}

// get returns the client for the Secret's content; the zero Secret is no credentials. An error names keys of it.
func (c *clients) get(secret providers.Secret) (*client, error) {
	found := c.find(secret.Version)
	if found != nil {
		return found, nil
	}
	creds, err := parseCredentials(secret.Data) // takes a while, so without the lock
	if err != nil {
		return nil, err
	}
	return c.add(secret.Version, &client{creds: creds, transport: newTransport(creds, c.allow)}), nil
}

// find returns the client of a key, or nil. It drops those that were not used for long.
func (c *clients) find(key providers.SecretVersion) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.swept) >= keepClient/5 {
		c.swept = now
		for k, v := range c.byKey {
			if now.Sub(v.used) >= keepClient {
				c.dropLocked(k)
			}
		}
	}
	found := c.byKey[key]
	if found != nil {
		found.used = now
	}
	return found
}

// add keeps made and returns it; or the client that somebody else has added meanwhile.
func (c *clients) add(key providers.SecretVersion, made *client) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.byKey[key]; found != nil {
		return found
	}
	for len(c.byKey) >= maxClients {
		var oldest providers.SecretVersion
		var used time.Time
		for k, v := range c.byKey {
			if used.IsZero() || v.used.Before(used) {
				oldest, used = k, v.used
			}
		}
		c.dropLocked(oldest)
	}
	if c.byKey == nil {
		c.byKey = map[providers.SecretVersion]*client{}
	}
	made.used = time.Now()
	c.byKey[key] = made
	return made
}

// dropLocked forgets a client. Queries that still use it end as usual, and their connections are closed after them.
func (c *clients) dropLocked(key providers.SecretVersion) {
	c.byKey[key].transport.CloseIdleConnections() // closes what is idle and waits for nothing
	delete(c.byKey, key)
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.byKey {
		c.dropLocked(key)
	}
}

func newTransport(creds *credentials, allow providers.AllowList) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if allow.Empty() { // else nobody is asked whom it does not name
		dialer.Control = allow.CheckAddress
	}
	// HTTP/1 has a connection per query: one whose query was given up is closed, where HTTP/2 would go on to ask over
	// a connection that may be dead.
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &http.Transport{
		// No proxy, which would see the credentials, and behind which no address can be checked.
		DialContext:         dialer.DialContext,
		TLSClientConfig:     creds.tls.Clone(), // nil stays nil
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		// An answer is one number.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		MaxConnsPerHost:        perServer,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        idleTimeout,
	}
}
