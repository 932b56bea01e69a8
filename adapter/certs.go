package adapter

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	corev1 "k8s.io/api/core/v1"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// Keys of the Secret, beside tls.crt and tls.key of the serving certificate.
const (
	// caCertsKey holds the bundle: the CA that signs, first, and former ones that have not expired.
	caCertsKey = corev1.ServiceAccountRootCAKey
	caKeyKey   = "ca.key"
)

// certPolicy says what certificates are made.
type certPolicy struct {
	names    []string      // of the serving certificate
	caLife   time.Duration // lifetime of a CA
	leafLife time.Duration // lifetime of a serving certificate
}

// authority is a CA that can sign.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// renew returns the content that the Secret should have at now, and whether that is another one than data. It makes
// anew what is missing, unreadable, not fitting, or past two thirds of its life. Former CAs stay in the bundle until
// they expire, because another replica may still serve what they signed.
func (p certPolicy) renew(data map[string][]byte, now time.Time) (map[string][]byte, bool, error) {
	bundle := valid(data[caCertsKey], now)
	ca, err := readAuthority(bundle, data[caKeyKey])
	if err != nil || due(ca.cert, now) {
		if ca, err = p.newAuthority(now); err != nil {
			return nil, false, err
		}
		bundle = append([]*x509.Certificate{ca.cert}, bundle...)
	} else if p.leafFits(data, ca, now) {
		return data, false, nil
	}
	certPEM, keyPEM, err := p.newLeaf(ca, now)
	if err != nil {
		return nil, false, err
	}
	bundlePEM, err := certutil.EncodeCertificates(bundle...)
	if err != nil {
		return nil, false, fmt.Errorf("encode CA bundle: %w", err)
	}
	caKeyPEM, err := keyutil.MarshalPrivateKeyToPEM(ca.key)
	if err != nil {
		return nil, false, fmt.Errorf("encode CA key: %w", err)
	}
	return map[string][]byte{
		caCertsKey: bundlePEM, caKeyKey: caKeyPEM,
		corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM,
	}, true, nil
}

// valid are the certificates in pem that have not expired.
func valid(pem []byte, now time.Time) []*x509.Certificate {
	certs, err := certutil.ParseCertsPEM(pem)
	if err != nil {
		return nil
	}
	var left []*x509.Certificate
	for _, c := range certs {
		if c.IsCA && now.Before(c.NotAfter) {
			left = append(left, c)
		}
	}
	return left
}

// due tells whether two thirds of c's life are over.
func due(c *x509.Certificate, now time.Time) bool {
	return now.After(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3))
}

func readAuthority(bundle []*x509.Certificate, keyPEM []byte) (authority, error) {
	if len(bundle) == 0 {
		return authority{}, errors.New("no valid CA")
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(keyPEM)
	if err != nil {
		return authority{}, fmt.Errorf("CA key: %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return authority{}, fmt.Errorf("CA key of type %T cannot sign", parsed)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(bundle[0].PublicKey) {
		return authority{}, errors.New("CA key does not belong to the CA")
	}
	return authority{cert: bundle[0], key: key}, nil
}

// leafFits tells whether the serving certificate in data can go on being served.
func (p certPolicy) leafFits(data map[string][]byte, ca authority, now time.Time) bool {
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil || due(pair.Leaf, now) {
		return false
	}
	for _, name := range p.names {
		if pair.Leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	return pair.Leaf.CheckSignatureFrom(ca.cert) == nil
}

func (p certPolicy) newAuthority(now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make CA key: %w", err)
	}
	template := &x509.Certificate{
		// A name of its own, so that two CAs in a bundle are not taken for one.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("sluice-adapter-ca@%d", now.Unix())},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := sign(template, template, key.Public(), key, now, p.caLife)
	if err != nil {
		return authority{}, fmt.Errorf("sign CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("read CA: %w", err)
	}
	return authority{cert: cert, key: key}, nil
}

func (p certPolicy) newLeaf(ca authority, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make serving key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: p.names[0]},
		DNSNames:    p.names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := sign(template, ca.cert, key.Public(), ca.key, now, min(p.leafLife, ca.cert.NotAfter.Sub(now)))
	if err != nil {
		return nil, nil, fmt.Errorf("sign serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read serving certificate: %w", err)
	}
	if certPEM, err = certutil.EncodeCertificates(leaf); err != nil {
		return nil, nil, fmt.Errorf("encode serving certificate: %w", err)
	}
	if keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		return nil, nil, fmt.Errorf("encode serving key: %w", err)
	}
	return certPEM, keyPEM, nil
}

// sign completes template with a serial number and its validity, and signs it.
func sign(
	template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer, now time.Time, life time.Duration,
) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// Other machines' clocks may be behind.
	template.NotBefore = now.Add(-min(time.Minute, life/10))
	template.NotAfter = now.Add(life)
	return x509.CreateCertificate(rand.Reader, template, parent, public, key)
}
