//go:build integration

package kafka

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-dev/sluice/providers"
)

// sideBySide asks one cluster by right and by wrong credentials at the same time.
func sideBySide(t *testing.T, c *Cluster, authority *Authority) {
	client := connect(t, c)
	ctx := within(t, 2*time.Minute)
	must(t, client.CreateTopic(ctx, "orders", 2))
	must(t, client.Produce(ctx, "orders", 1, 6))
	cert, key, err := authority.Leaf("client")
	must(t, err)
	login := func(mechanism, password string) map[string]string {
		return map[string]string{"sasl": mechanism, "tls": "enable", "ca": authority.PEM, "username": "alice", "password": password}
	}
	tests := []struct {
		name     string
		listener Listener
		secret   map[string]string
		unknown  string
	}{
		{name: "client-certificate", listener: TLSListener, secret: map[string]string{"ca.crt": authority.PEM, "tls.crt": cert, "tls.key": key}},
		{name: "scram-512", listener: SASLListener, secret: login("scram_sha512", "open-sesame")},
		{name: "wrong-password", listener: SASLListener, secret: login("scram_sha512", "close-sesame"), unknown: "SASL Authentication Failed"},
		{name: "no-secret", listener: SASLListener, secret: map[string]string{}, unknown: "authRef: "},
		{name: "no-tls", listener: SASLListener, unknown: "it speaks TLS"},
	}
	var secrets []runtime.Object
	for _, tt := range tests {
		if len(tt.secret) > 0 {
			secrets = append(secrets, secretNamed(tt.name, tt.secret))
		}
	}
	m := source(t, c, 0, secrets...)
	all := map[string]providers.Consumer{}
	for _, tt := range tests {
		consumer := m.consumer("readers", "orders")
		consumer.Servers = strings.Join(c.Addresses(tt.listener), ",")
		if tt.secret != nil {
			consumer.AuthSecret = tt.name
		}
		all[tt.name] = consumer
	}
	m.round(t, all) // all at once, and side by side
	for _, tt := range tests {
		t.Run("lag by "+tt.name, func(t *testing.T) {
			if tt.unknown == "" {
				m.wantLag(t, tt.name, all[tt.name], 6)
				return
			}
			m.wantUnknown(t, tt.name, all[tt.name], tt.unknown)
			if _, err := m.measure(t.Context(), all[tt.name]); err == nil || strings.Contains(err.Error(), "sesame") {
				t.Errorf("got %v, want an error without a password", err)
			}
		})
	}
	wantNoSecret(t, m, "sesame")
	t.Run("lag by a rotated password", func(t *testing.T) { rotation(t, client, m, all["scram-512"], login("scram_sha512", "new-sesame")) })
}

func secretNamed(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

// rotation changes a password at the broker and then in the Secret. The new one is used within 10 s.
func rotation(t *testing.T, client *Client, m *measured, c providers.Consumer, secret map[string]string) {
	ctx := within(t, time.Minute)
	altered, err := client.Admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{
		{User: "alice", Mechanism: kadm.ScramSha512, Iterations: 4096, Password: secret["password"]},
	})
	must(t, errors.Join(err, altered.Error()))
	before := m.requests(t)["SaslAuthenticate"]
	_, err = m.client.Update(ctx, secretNamed(c.AuthSecret, secret), metav1.UpdateOptions{})
	must(t, err)
	rotated := time.Now()
	must(t, poll(ctx, func() error {
		answers, err := m.measure(ctx, c)
		switch {
		case err != nil && time.Since(rotated) > time.Second: // the broker may not know yet
			t.Errorf("%s after the rotation: %v", time.Since(rotated), err)
		case err == nil && answers["kafka_lag"].Value != 6:
			t.Errorf("lag %v, want 6", answers["kafka_lag"].Value)
		case err == nil && m.requests(t)["SaslAuthenticate"] > before:
			return nil
		}
		return fmt.Errorf("the new password is not used: %w", err)
	}))
	if took := time.Since(rotated); took > 10*time.Second {
		t.Errorf("the new password was used after %s, want 10 s at most", took)
	} else {
		t.Logf("the new password was used after %s", took.Round(10*time.Millisecond))
	}
}
