package adapter

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

const (
	// certSecret holds the CA and the serving certificate for all replicas.
	certSecret = "sluice-adapter-cert"
	// syncTimeout bounds one look at the Secret and the APIServices.
	syncTimeout = 15 * time.Second
	// maxRaces bounds how often in a row another replica may be first with the Secret.
	maxRaces = 5
)

// keeper keeps the serving certificate: the Secret valid, the APIServices' bundle that of the Secret, and what is
// served the Secret's.
//
// Replicas agree through the API server alone. Who creates or updates the Secret second is refused, and takes what
// the first one wrote. A certificate is served only after the bundle that vouches for it has been published, so that
// no rotation of the CA is seen as an error.
type keeper struct {
	secrets  corev1client.SecretInterface
	bundles  *publisher
	policy   certPolicy
	interval time.Duration
	settle   time.Duration // from publishing a bundle to serving what it vouches for
	serving  *servingCert
	metrics  *adapterMetrics
	trusted  []byte // the bundle last published
}

// first returns after there is a certificate to serve. It tries until ctx ends.
func (k *keeper) first(ctx context.Context) error {
	for {
		err := k.sync(ctx)
		if k.serving.present() {
			return nil // what is left to do is done in run
		}
		logr.FromContextOrDiscard(ctx).Info("serving certificate is not there yet", "err", fmt.Sprint(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("serving certificate: %w", errors.Join(ctx.Err(), err))
		case <-time.After(min(k.interval, 2*time.Second)):
		}
	}
}

// run looks after the certificate and the APIServices every interval until ctx ends.
func (k *keeper) run(ctx context.Context) {
	ticker := time.NewTicker(k.interval)
	defer ticker.Stop()
	// Until this adapter answers. What was waiting for that is done then, not an interval later.
	soon := time.NewTicker(min(k.interval, time.Second))
	defer soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-soon.C:
			if k.bundles.answering() {
				soon.Stop()
				k.note(ctx, k.register(ctx))
			}
		case <-ticker.C:
			k.note(ctx, errors.Join(k.sync(ctx), k.register(ctx)))
		}
	}
}

// register lets the APIServices be told of; nothing that is served waits for it.
func (k *keeper) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	return k.bundles.register(ctx, k.trusted)
}

func (k *keeper) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		k.metrics.certErrors.Inc()
		logr.FromContextOrDiscard(ctx).Error(err, "serving certificate or APIServices cannot be looked after; what is served stays")
	}
}

// sync makes the three agree once.
func (k *keeper) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout+k.settle)
	defer cancel()
	data, err := k.secret(ctx)
	if err != nil {
		return err
	}
	k.trusted = data[caCertsKey]
	err = k.bundles.publish(ctx, k.trusted)
	cert, key := data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey]
	switch {
	case k.serving.is(cert):
		return err
	case err != nil && k.serving.usable(time.Now()):
		return err // the bundle in force may not vouch for the new one yet
	case k.serving.present():
		// Whoever published the bundle, this replica or another: the API servers may not have noticed yet.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(k.settle):
		}
	}
	if err := k.serving.set(cert, key); err != nil {
		return err
	}
	k.metrics.certExpiry.Set(float64(k.serving.expiry().Unix()))
	logr.FromContextOrDiscard(ctx).Info("serving certificate in use", "notAfter", k.serving.expiry())
	return err
}

// secret returns the content of the Secret, which it creates or renews where that is due.
func (k *keeper) secret(ctx context.Context) (map[string][]byte, error) {
	for range maxRaces {
		secret, err := k.secrets.Get(ctx, certSecret, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if missing {
			// What was trusted stays trusted until it expires: it is being served until the new certificate is.
			secret = &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: certSecret}, Type: corev1.SecretTypeTLS,
				Data: map[string][]byte{caCertsKey: k.trusted},
			}
		} else if err != nil {
			return nil, fmt.Errorf("get secret %s: %w", certSecret, err)
		}
		data, changed, err := k.policy.renew(secret.Data, time.Now())
		if err != nil {
			return nil, err
		}
		if !changed {
			return data, nil
		}
		secret = secret.DeepCopy()
		secret.Data = data
		if missing {
			_, err = k.secrets.Create(ctx, secret, metav1.CreateOptions{})
		} else {
			// With the resource version that was read: another replica's write in between is a conflict.
			_, err = k.secrets.Update(ctx, secret, metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			logr.FromContextOrDiscard(ctx).Info("serving certificate issued", "secret", certSecret)
			return data, nil
		case missing && apierrors.IsNotFound(err): // of a create it is the namespace
			return nil, fmt.Errorf("write secret %s: %w; --namespace is to be the adapter's own", certSecret, err)
		case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err):
			continue // another replica was first; take what it wrote
		default:
			return nil, fmt.Errorf("write secret %s: %w", certSecret, err)
		}
	}
	return nil, fmt.Errorf("secret %s: others were first %d times in a row", certSecret, maxRaces)
}

// servingCert is the certificate that the server shows. It implements dynamiccertificates.CertKeyContentProvider, by
// which the server takes a new one without a restart.
type servingCert struct {
	mu        sync.RWMutex // protects following
	cert, key []byte
	notAfter  time.Time
	listeners []dynamiccertificates.Listener
}

var _ dynamiccertificates.CertKeyContentProvider = (*servingCert)(nil)

// Name implements dynamiccertificates.CertKeyContentProvider.
func (c *servingCert) Name() string { return "secret " + certSecret }

// CurrentCertKeyContent implements dynamiccertificates.CertKeyContentProvider.
func (c *servingCert) CurrentCertKeyContent() (cert, key []byte) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.cert, c.key
}

// AddListener implements dynamiccertificates.Notifier.
func (c *servingCert) AddListener(l dynamiccertificates.Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, l)
}

func (c *servingCert) set(cert, key []byte) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	c.mu.Lock()
	c.cert, c.key, c.notAfter = cert, key, pair.Leaf.NotAfter
	listeners := c.listeners
	c.mu.Unlock()
	for _, l := range listeners {
		l.Enqueue()
	}
	return nil
}

func (c *servingCert) is(cert []byte) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return bytes.Equal(c.cert, cert)
}

func (c *servingCert) present() bool { return !c.is(nil) }

func (c *servingCert) usable(now time.Time) bool { return c.present() && now.Before(c.expiry()) }

func (c *servingCert) expiry() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.notAfter
}
