//go:build integration

package kafka

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
)

// unsigned is a token that the broker's validator for tests takes, until it ends. It would take it from anybody.
func unsigned(subject string, end time.Time) string {
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims := fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, subject, time.Now().Add(-2*time.Hour).Unix(), end.Unix())
	return encode(`{"alg":"none"}`) + "." + encode(claims) + "."
}

// tokens is a token endpoint. The client "late" gets tokens whose time is over.
func tokens(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		w.Header().Set("Content-Type", "application/json")
		if secret != "open-sesame" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
			return
		}
		end := time.Now().Add(time.Hour)
		if id == "late" {
			end = time.Now().Add(-time.Hour)
		}
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer"}`, unsigned(id, end))
	}))
	t.Cleanup(srv.Close)
	return srv
}

// TestMechanisms lets the adapter in by every Secret that a real broker can be made to take, and says why where it does not.
func TestMechanisms(t *testing.T) {
	authority, err := NewAuthority()
	must(t, err)
	cert, key, err := authority.Leaf("broker", "127.0.0.1")
	must(t, err)
	const oauth = "org.apache.kafka.common.security.oauthbearer."
	c := start(t, Options{
		TLS:   &TLS{Cert: cert, Key: key, ClientCA: authority.PEM},
		Users: []User{{Name: "alice", Password: "open-sesame"}},
		Config: map[string]string{
			"listener.name.sasl.sasl.enabled.mechanisms":                        "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
			"listener.name.sasl.oauthbearer.sasl.jaas.config":                   oauth + `OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`,
			"listener.name.sasl.oauthbearer.sasl.server.callback.handler.class": oauth + "internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler",
		},
	})
	client := connect(t, c)
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "orders", 2))
	must(t, client.Produce(ctx, "orders", 1, 5))
	must(t, client.Commit(ctx, "readers", map[Partition]int64{{"orders", 1}: 2})) // so that the group has a coordinator
	clientCert, clientKey, err := authority.Leaf("client")
	must(t, err)
	idp := tokens(t)
	saslSecret := func(mechanism, username, password string) map[string]string {
		return map[string]string{
			"sasl": mechanism, "username": username, "password": password, "ca.crt": authority.PEM,
			"oauthTokenEndpointUri": idp.URL, "oauthExtensions": "traceId=1",
		}
	}
	tests := []struct {
		name     string
		listener Listener
		secret   map[string]string
		wantErr  string
	}{
		{"plaintext", SASLListener, saslSecret("plaintext", "alice", "open-sesame"), ""},
		{"scram_sha256", SASLListener, saslSecret("scram_sha256", "alice", "open-sesame"), ""},
		{"scram_sha512", SASLListener, saslSecret("scram_sha512", "alice", "open-sesame"), ""},
		{"oauthbearer", SASLListener, saslSecret("oauthbearer", "alice", "open-sesame"), ""},
		{"client certificate", TLSListener, map[string]string{"ca": authority.PEM, "cert": clientCert, "key": clientKey}, ""},

		{"plaintext, wrong password", SASLListener, saslSecret("plaintext", "alice", "close-sesame"), "authenticate by PLAIN: [58] SASL Authentication Failed"},
		{"SCRAM, wrong password", SASLListener, saslSecret("scram_sha512", "alice", "close-sesame"), "authenticate by SCRAM-SHA-512: [58] SASL Authentication Failed"},
		{"a token whose time is over", SASLListener, saslSecret("oauthbearer", "late", "open-sesame"), `authenticate by OAUTHBEARER: the broker refuses the token: "{\"status\":\"invalid_token\"`},
		{"no token", SASLListener, saslSecret("oauthbearer", "alice", "close-sesame"), "(key oauthTokenEndpointUri): it answers with status 401 Unauthorized (invalid_client); check the keys username and password"},
		{"IAM", SASLListener, map[string]string{"sasl": "aws_msk_iam", "ca": authority.PEM, "awsRegion": "r", "awsAccessKeyID": "i", "awsSecretAccessKey": "open-sesame"}, "authenticate by AWS_MSK_IAM: [33] Unsupported SASL Mechanism"},
		{"no authority", SASLListener, map[string]string{"tls": "enable"}, "x509: certificate signed by unknown authority"},
		{"no client certificate", TLSListener, map[string]string{"ca": authority.PEM}, "remote error: tls: "},
		{"no TLS", SASLListener, map[string]string{"tls": "disable"}, ": it speaks TLS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := measureWith(t, c.Addresses(tt.listener), secretOf(tt.secret))
			if (err != nil) != (tt.wantErr != "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "-sesame")) {
				t.Errorf("it has several lines, or tells a secret: %v", err)
			}
		})
	}
}

func secretOf(data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "auth"}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

// measureWith measures once, and sees that all records are counted.
func measureWith(t *testing.T, servers []string, secret *corev1.Secret) error {
	t.Helper()
	secrets := providers.NewSecrets(providers.SecretsOptions{Client: fake.NewClientset(secret).CoreV1()})
	s, err := kafka.New(kafka.Options{Secrets: secrets, Allow: []string{"127.0.0.1"}, Interval: interval})
	must(t, err)
	defer s.Close()
	got, err := s.Measure(within(t, 5*time.Second), providers.Target{ // the machine may be busy
		Kind: providers.Lag, Function: types.NamespacedName{Namespace: "default", Name: "hello"},
		Consumer: providers.Consumer{
			Servers: strings.Join(servers, ","), Group: "readers", Topics: "orders", AuthSecret: secret.Name,
			Reset: v1alpha1.KafkaEarliest, Isolation: v1alpha1.KafkaReadUncommitted,
		},
	})
	if err == nil && got.Answers[0].Value != 3 {
		t.Errorf("got %+v, want a lag of 3", got.Answers[0])
	}
	return err
}
