package adapter

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const serverName = "sluice-adapter.sluice-system.svc"

var policy = certPolicy{
	names:    []string{serverName, serverName + ".cluster.local", "localhost"},
	caLife:   10 * 365 * 24 * time.Hour,
	leafLife: 365 * 24 * time.Hour,
}

const day = 24 * time.Hour

// mustRenew renews and checks that what is in the Secret then can be served and verified.
func mustRenew(t *testing.T, p certPolicy, data map[string][]byte, now time.Time) (map[string][]byte, bool) {
	t.Helper()
	next, changed, err := p.renew(data, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range p.names {
		if err := verify(next[caCertsKey], next[corev1.TLSCertKey], name, now); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := tls.X509KeyPair(next[corev1.TLSCertKey], next[corev1.TLSPrivateKeyKey]); err != nil {
		t.Fatal(err)
	}
	return next, changed
}

// verify checks cert as a client that trusts bundle does.
func verify(bundle, cert []byte, name string, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	leaf := parsePEM(cert)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now})
	return err
}

func TestRenew(t *testing.T) {
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	first, changed := mustRenew(t, policy, nil, now)
	if !changed {
		t.Fatal("nothing made from nothing")
	}
	edit := func(key string, value []byte) map[string][]byte {
		data := maps.Clone(first)
		data[key] = value
		return data
	}
	other, _ := mustRenew(t, policy, nil, now)
	renamed := policy
	renamed.names = []string{"sluice-adapter.elsewhere.svc"}
	tests := []struct {
		name     string
		policy   certPolicy
		data     map[string][]byte
		at       time.Time
		leaf, ca bool // is another one
		cas      int  // in the bundle
	}{
		{name: "as it was", policy: policy, data: first, at: now.Add(240 * day), cas: 1},
		{name: "serving certificate past two thirds", policy: policy, data: first, at: now.Add(250 * day), leaf: true, cas: 1},
		{name: "serving certificate expired", policy: policy, data: first, at: now.Add(400 * day), leaf: true, cas: 1},
		{name: "CA past two thirds: the old one stays in the bundle", policy: policy, data: first, at: now.Add(7 * 365 * day), leaf: true, ca: true, cas: 2},
		{name: "CA expired: the old one goes", policy: policy, data: first, at: now.Add(11 * 365 * day), leaf: true, ca: true, cas: 1},
		{name: "other names", policy: renamed, data: first, at: now, leaf: true, cas: 1},
		{name: "serving certificate lost", policy: policy, data: edit(corev1.TLSCertKey, nil), at: now, leaf: true, cas: 1},
		{name: "serving key of another certificate", policy: policy, data: edit(corev1.TLSPrivateKeyKey, other[corev1.TLSPrivateKeyKey]), at: now, leaf: true, cas: 1},
		{name: "serving certificate of another CA", policy: policy, data: map[string][]byte{
			caCertsKey: first[caCertsKey], caKeyKey: first[caKeyKey],
			corev1.TLSCertKey: other[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: other[corev1.TLSPrivateKeyKey],
		}, at: now, leaf: true, cas: 1},
		{name: "CA key lost", policy: policy, data: edit(caKeyKey, nil), at: now, leaf: true, ca: true, cas: 2},
		{name: "CA key of another CA", policy: policy, data: edit(caKeyKey, other[caKeyKey]), at: now, leaf: true, ca: true, cas: 2},
		{name: "rubbish", policy: policy, data: map[string][]byte{
			caCertsKey: []byte("x"), caKeyKey: []byte("x"), corev1.TLSCertKey: []byte("x"), corev1.TLSPrivateKeyKey: []byte("x"),
		}, at: now, leaf: true, ca: true, cas: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next, changed := mustRenew(t, tt.policy, tt.data, tt.at)
			if changed != tt.leaf {
				t.Errorf("changed = %t, want %t", changed, tt.leaf)
			}
			if leaf := string(next[corev1.TLSCertKey]) != string(first[corev1.TLSCertKey]); leaf != tt.leaf {
				t.Errorf("another serving certificate: %t, want %t", leaf, tt.leaf)
			}
			if ca := string(next[caKeyKey]) != string(first[caKeyKey]); ca != tt.ca {
				t.Errorf("another CA: %t, want %t", ca, tt.ca)
			}
			if got := len(valid(next[caCertsKey], tt.at)); got != tt.cas {
				t.Errorf("%d CAs in the bundle, want %d", got, tt.cas)
			}
			if _, again := mustRenew(t, tt.policy, next, tt.at); again {
				t.Error("renewed again at once")
			}
			if tt.cas == 2 && tt.at.Before(parsePEM(first[corev1.TLSCertKey]).NotAfter) {
				// The other replica serves what the old CA signed until it has read the Secret.
				if err := verify(next[caCertsKey], first[corev1.TLSCertKey], serverName, tt.at); err != nil {
					t.Errorf("the new bundle does not vouch for the old serving certificate: %v", err)
				}
			}
		})
	}
}
