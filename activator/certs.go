package activator

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// secretReader reads Secrets. It is called from many goroutines; ctx bounds the call.
type secretReader interface {
	Secret(ctx context.Context, name types.NamespacedName) (*corev1.Secret, error)
}

// How often certificates are read again. One in use is at most freshFor old when a handshake shows it, so that a rotation
// takes effect within 10 s. Those that nobody asks for are only looked at for what is wrong with them.
const (
	readInUse     = 5 * time.Second
	readUnused    = 5 * time.Minute
	inUseFor      = 10 * time.Minute // since the last handshake
	freshFor      = 10 * time.Second
	secretTimeout = 2 * time.Second
	readAtOnce    = 16
)

// certs are the certificates of the functions' hosts, from their Secrets. A handshake takes one from memory, unless it
// has not been looked at for freshFor, which is so only where there was no handshake for long: then it reads the Secret.
// While the API server cannot be asked, the last content is used.
type certs struct {
	log       logr.Logger
	metrics   *metrics
	reader    secretReader
	table     *table
	namespace string // of the activator's ServiceAccount, for the remedy that an error names

	told map[types.NamespacedName]string // what was logged, by function; run's alone

	mu      sync.Mutex // protects following
	entries map[types.NamespacedName]*certEntry
}

// certEntry is what is known of one Secret.
type certEntry struct {
	used atomic.Int64 // time of the last handshake that asked, in Unix nanoseconds

	mu      sync.Mutex       // protects following
	read    time.Time        // when the last read began
	pending chan struct{}    // closed when the read that is under way has ended; nil while there is none
	away    bool             // the last read got no verdict, and cert, if there is one, is what was known before
	cert    *tls.Certificate // nil where there is none to show
	err     error            // why
}

func newCerts(log logr.Logger, m *metrics, reader secretReader, t *table, namespace string) *certs {
	return &certs{
		log: log, metrics: m, reader: reader, table: t, namespace: namespace,
		told: map[types.NamespacedName]string{}, entries: map[types.NamespacedName]*certEntry{},
	}
}

// config is that of the door's TLS listener. There is no certificate by default: a client that does not name a host which
// has one is refused in the handshake, by the alert unrecognized_name.
func (c *certs) config() *tls.Config {
	nobody := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true, // a session of another host would do without a certificate
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if fn := c.table.ownerOf(hostName(hello.ServerName)); fn == nil || fn.object.Load().TLSSecret().Name == "" {
				c.metrics.refusedHandshakes.WithLabelValues(handshakeUnknownHost).Inc()
				return nobody, nil
			}
			return nil, nil
		},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			fn := c.table.ownerOf(hostName(hello.ServerName))
			if fn == nil {
				return nil, nil
			}
			cert := c.get(hello.Context(), fn.object.Load().TLSSecret())
			if cert == nil {
				c.metrics.refusedHandshakes.WithLabelValues(handshakeNoCertificate).Inc()
			}
			return cert, nil
		},
	}
}

// get returns the certificate of a Secret, or nil.
func (c *certs) get(ctx context.Context, name types.NamespacedName) *tls.Certificate {
	if name.Name == "" {
		return nil
	}
	e := c.entry(name)
	e.used.Store(time.Now().UnixNano())
	e.mu.Lock()
	enough, cert := time.Since(e.read) < freshFor || (e.away && e.cert != nil), e.cert
	e.mu.Unlock()
	if enough {
		return cert
	}
	c.refresh(ctx, name, e)
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cert
}

func (c *certs) entry(name types.NamespacedName) *certEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[name]
	if e == nil {
		e = &certEntry{}
		c.entries[name] = e
	}
	return e
}

// run reads the Secrets of all functions that have one, now and then again, until ctx ends.
func (c *certs) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		c.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look reads what is due, forgets what no function names any more, and counts what is wrong.
func (c *certs) look(ctx context.Context) {
	named := map[types.NamespacedName][]*function{}
	for _, fn := range c.table.all() {
		if name := fn.object.Load().TLSSecret(); name.Name != "" {
			named[name] = append(named[name], fn)
		}
	}
	var group errgroup.Group
	group.SetLimit(readAtOnce)
	for name := range named {
		if e := c.entry(name); e.due(time.Now()) {
			group.Go(func() error {
				c.refresh(ctx, name, e)
				return nil
			})
		}
	}
	_ = group.Wait()

	c.mu.Lock()
	for name := range c.entries {
		if named[name] == nil {
			delete(c.entries, name)
		}
	}
	c.mu.Unlock()
	bad := 0
	told := make(map[types.NamespacedName]string, len(c.told))
	for name, functions := range named {
		for _, fn := range functions {
			if told[fn.key] = c.judge(fn, name); told[fn.key] != "" {
				bad++
			}
		}
	}
	c.told = told
	c.metrics.badCertificates.Set(float64(bad))
}

func (e *certEntry) due(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	age := readUnused
	if now.Sub(time.Unix(0, e.used.Load())) < inUseFor {
		age = readInUse
	}
	return e.read.IsZero() || now.Sub(e.read) >= age
}

// refresh reads the Secret, or waits for who does.
func (c *certs) refresh(ctx context.Context, name types.NamespacedName, e *certEntry) {
	e.mu.Lock()
	if pending := e.pending; pending != nil {
		e.mu.Unlock()
		select {
		case <-pending:
		case <-ctx.Done():
		}
		return
	}
	pending := make(chan struct{})
	e.pending = pending
	e.mu.Unlock()

	began := time.Now()
	// It is read for all who wait, whatever becomes of this client.
	readCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), secretTimeout)
	defer cancel()
	secret, err := c.reader.Secret(readCtx, name)
	var cert *tls.Certificate
	away := false
	switch {
	case apierrors.IsNotFound(err):
		err = fmt.Errorf("secret %s does not exist; create it, or correct spec.traffic.tls.secretRef", name)
	case apierrors.IsForbidden(err):
		err = fmt.Errorf("secret %s: the activator may not read the Secrets of namespace %s; allow it by: "+
			"kubectl -n %s create rolebinding sluice-activator-secrets --clusterrole=sluice-activator-secrets --serviceaccount=%s:sluice-activator",
			name, name.Namespace, name.Namespace, c.namespace)
	case err != nil:
		away = true
	default:
		cert, err = keyPair(name, secret)
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	e.read, e.pending, e.away = began, nil, away
	close(pending)
	if !away || e.cert == nil {
		e.cert, e.err = cert, err
	}
}

// keyPair is the certificate in a Secret. Its errors tell nothing of the content.
func keyPair(name types.NamespacedName, secret *corev1.Secret) (*tls.Certificate, error) {
	if secret.Type != corev1.SecretTypeTLS {
		return nil, fmt.Errorf("secret %s is of type %q; it must be of type %s", name, secret.Type, corev1.SecretTypeTLS)
	}
	cert, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("secret %s: %s and %s are no certificate in PEM and its key", name, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return &cert, nil
}

// judge says what is wrong with fn's certificate, and logs it when that changes. It is empty while nothing is.
func (c *certs) judge(fn *function, name types.NamespacedName) (wrong string) {
	obj := fn.object.Load()
	if obj.TLSSecret() != name {
		return "" // it has another one, or none, since the Secret was read
	}
	e := c.entry(name)
	e.mu.Lock()
	cert, err := e.cert, e.err
	e.mu.Unlock()
	if cert != nil {
		err = fits(name, cert, obj.Spec.Traffic.Hosts, time.Now())
	}
	if err != nil {
		wrong = err.Error()
	}
	if wrong != c.told[fn.key] {
		log := c.log.WithValues("namespace", fn.key.Namespace, "function", fn.key.Name)
		if err != nil {
			log.Error(err, "something is wrong with the certificate of the function's hosts")
		} else {
			log.Info("nothing is wrong any more with the certificate of the function's hosts")
		}
	}
	return wrong
}

// fits tells what clients will not like about cert. It is shown all the same: a client may know more.
func fits(name types.NamespacedName, cert *tls.Certificate, hosts []string, now time.Time) error {
	if now.After(cert.Leaf.NotAfter) || now.Before(cert.Leaf.NotBefore) {
		return fmt.Errorf("secret %s: the certificate is valid from %s to %s", name,
			cert.Leaf.NotBefore.UTC().Format(time.RFC3339), cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	for _, host := range hosts {
		if cert.Leaf.VerifyHostname(host) != nil {
			return fmt.Errorf("secret %s: the certificate is not for %s of spec.traffic.hosts", name, host)
		}
	}
	return nil
}

// Reasons of handshakes that were refused.
const (
	handshakeUnknownHost   = "unknown_host"
	handshakeNoCertificate = "no_certificate"
)
