package kafka

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/sluice-dev/sluice/providers"
)

// canary is what no error may show.
const canary = "c4n4ry-s3cr3t"

// certificate makes one for 127.0.0.1 that is its own authority, and its key, in PEM.
func certificate(t testing.TB) (cert, key string) {
	t.Helper()
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &made.PublicKey, made)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}

func block(kind string, content []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}))
}

func bytesOf(data map[string]string) map[string][]byte {
	made := map[string][]byte{}
	for k, v := range data {
		made[k] = []byte(v)
	}
	return made
}

// shape is what of a security can be told.
type shape struct {
	SASL       string // its name; empty for none
	TLS        bool
	CA         bool // other authorities than the system's
	Client     bool // a certificate of the client's
	ServerName string
}

func shapeOf(s security) (is shape) {
	if s.sasl != nil {
		is.SASL = s.sasl.Name()
	}
	if s.tls != nil {
		is.TLS, is.CA, is.Client, is.ServerName = true, s.tls.RootCAs != nil, len(s.tls.Certificates) > 0, s.tls.ServerName
	}
	return is
}

// Secrets that are taken. Those of KEDA's documentation are among them, as they are.
func TestCredentials(t *testing.T) {
	cert, key := certificate(t)
	login := map[string]string{"username": "u", "password": "p"}
	with := func(more map[string]string, parts ...map[string]string) map[string]string {
		all := map[string]string{}
		for _, p := range append(parts, more) {
			maps.Copy(all, p)
		}
		return all
	}
	iam := map[string]string{"awsRegion": "eu-west-1", "awsAccessKeyID": "id", "awsSecretAccessKey": "key"}
	tests := []struct {
		name string
		data map[string]string
		want shape
	}{
		{"plaintext", with(map[string]string{"sasl": "plaintext"}, login), shape{SASL: "PLAIN"}},
		{"plain, as Kafka calls it", with(map[string]string{"sasl": "PLAIN"}, login), shape{SASL: "PLAIN"}},
		{"from files, with spaces", map[string]string{"sasl": " plaintext\n", "username": "u\n", "password": "p\r\n", "tls": "enable\n"}, shape{SASL: "PLAIN", TLS: true}},
		{"scram_sha256", with(map[string]string{"sasl": "scram_sha256"}, login), shape{SASL: "SCRAM-SHA-256"}},
		{"scram_sha512", with(map[string]string{"sasl": "scram_sha512", "tls": "enable"}, login), shape{SASL: "SCRAM-SHA-512", TLS: true}},
		{"SCRAM, as Kafka calls it", with(map[string]string{"sasl": "SCRAM-SHA-512"}, login), shape{SASL: "SCRAM-SHA-512"}},
		{"oauthbearer", with(map[string]string{"sasl": "oauthbearer", "oauthTokenEndpointUri": "https://idp.example/token"}, login), shape{SASL: "OAUTHBEARER"}},
		{
			"oauthbearer, all of it",
			with(map[string]string{
				"sasl": "OAUTHBEARER", "saslTokenProvider": "bearer", "oauthTokenEndpointUri": "https://idp.example/token", "tls": "enable",
				"scopes": "a,b", "oauthExtensions": "logicalCluster=lkc-1, identityPoolId=pool-1",
			}, login),
			shape{SASL: "OAUTHBEARER", TLS: true},
		},
		{"aws_msk_iam has TLS", with(map[string]string{"sasl": "aws_msk_iam"}, iam), shape{SASL: "AWS_MSK_IAM", TLS: true}},
		{"AWS_MSK_IAM with a session", with(map[string]string{"sasl": "AWS_MSK_IAM", "tls": "enable", "awsSessionToken": "t"}, iam), shape{SASL: "AWS_MSK_IAM", TLS: true}},
		{"IAM, as KEDA's other scaler has it", with(map[string]string{"sasl": "oauthbearer", "saslTokenProvider": "aws_msk_iam", "tls": "enable"}, iam), shape{SASL: "AWS_MSK_IAM", TLS: true}},

		{"TLS", map[string]string{"tls": "enable"}, shape{TLS: true}},
		{"no TLS", map[string]string{"tls": "disable"}, shape{}},
		{"none", map[string]string{"sasl": "none"}, shape{}},
		{"KEDA's, none of it set", map[string]string{"sasl": "none", "tls": "disable", "username": "", "password": "", "keyPassword": "", "unsafeSsl": "false"}, shape{}},
		{"the authority alone", map[string]string{"ca.crt": cert}, shape{TLS: true, CA: true}},
		{"a client certificate", map[string]string{"tls.crt": cert, "tls.key": key}, shape{TLS: true, Client: true}},
		{"KEDA's names", map[string]string{"tls": "enable", "ca": cert, "cert": cert, "key": key}, shape{TLS: true, CA: true, Client: true}},
		{"another name", map[string]string{"tls": "enable", "serverName": "kafka.example\n"}, shape{TLS: true, ServerName: "kafka.example"}},
		{"all of KEDA's example", with(map[string]string{"sasl": "plaintext", "tls": "enable", "ca": cert, "cert": cert, "key": key}, login), shape{SASL: "PLAIN", TLS: true, CA: true, Client: true}},
		{"keys of others", with(map[string]string{"sasl": "plaintext", "namespace": "x", "realm": "x"}, login), shape{SASL: "PLAIN"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseCredentials(bytesOf(tt.data), providers.AllowList{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, shapeOf(got)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	if s, err := parseCredentials(nil, providers.AllowList{}); err != nil || s.sasl != nil || s.tls != nil {
		t.Errorf("no Secret: %+v, %v", shapeOf(s), err)
	}
}

// Mistakes, each with the key and the remedy.
func TestCredentialsRefused(t *testing.T) {
	cert, key := certificate(t)
	_, otherKey := certificate(t)
	const must = "plaintext, scram_sha256, scram_sha512, oauthbearer, aws_msk_iam or none"
	tests := []struct {
		name string
		data map[string]string
		want string
	}{
		{"nothing", map[string]string{}, "it has none of the keys " + documentedKeys},
		{"other keys", map[string]string{"user": canary}, "it has none of the keys " + documentedKeys},
		{"an unknown mechanism", map[string]string{"sasl": canary}, "key sasl must be " + must},
		{"Kerberos", map[string]string{"sasl": "gssapi", "username": canary, "keytab": canary}, "key sasl: Kerberos (gssapi) is not supported; it must be " + must},
		{"Kerberos, whose mechanism is in the ScaledObject", map[string]string{"tls": "enable", "keytab": canary}, "it has keytab and no mechanism; set the key sasl to " + must},
		{"a login, whose mechanism is in the ScaledObject", map[string]string{"username": canary, "password": canary}, "it has username and no mechanism; set the key sasl to " + must},
		{"a password alone", map[string]string{"password": canary}, "it has password and no mechanism; set the key sasl to " + must},
		{"IAM, whose mechanism is in the ScaledObject", map[string]string{"tls": "enable", "awsAccessKeyID": canary}, "it has awsAccessKeyID and no mechanism; set the key sasl to aws_msk_iam"},
		{"OAuth, whose mechanism is in the ScaledObject", map[string]string{"oauthTokenEndpointUri": canary}, "it has oauthTokenEndpointUri and no mechanism; set the key sasl to oauthbearer"},
		{"none and a login", map[string]string{"sasl": "none", "username": canary}, "it has username, and sasl is none; remove it, or set sasl to " + must},

		{"no login", map[string]string{"sasl": "plaintext"}, "sasl plaintext needs the keys username and password"},
		{"no login for SCRAM", map[string]string{"sasl": "scram_sha512"}, "sasl scram_sha512 needs the keys username and password"},
		{"no password", map[string]string{"sasl": "plaintext", "username": canary}, "it has username and no password; add the key password"},
		{"no username", map[string]string{"sasl": "plaintext", "password": canary}, "it has password and no username; add the key username"},
		{"an empty username", map[string]string{"sasl": "plaintext", "username": "\n", "password": canary}, "key username is empty"},
		{"an empty password", map[string]string{"sasl": "scram_sha256", "username": canary, "password": ""}, "key password is empty"},
		{"a NUL", map[string]string{"sasl": "plaintext", "username": canary, "password": canary + "\x00"}, "username or password hold a NUL, which sasl plaintext cannot transport"},
		{"a control character", map[string]string{"sasl": "scram_sha256", "username": canary, "password": canary + "\x07"}, "username or password hold characters that SCRAM cannot transport"},

		{"tls", map[string]string{"tls": canary}, "key tls must be enable or disable"},
		{"tls and not", map[string]string{"tls": "disable", "ca": cert}, "it has ca, and tls says that there is no TLS; set tls to enable, or remove it"},
		{"a name and no TLS", map[string]string{"serverName": canary}, "it has serverName and no TLS; set tls to enable"},
		{"unverified", map[string]string{"tls": "enable", "unsafeSsl": "true"}, "key unsafeSsl must be false, or not there: brokers' certificates are always verified; put their authority's into ca.crt, and the name that they are for into serverName if it is not the brokers'"},
		{"unverified, perhaps", map[string]string{"tls": "enable", "unsafeSsl": canary}, "key unsafeSsl must be false, or not there: brokers' certificates are always verified; put their authority's into ca.crt, and the name that they are for into serverName if it is not the brokers'"},
		{"no PEM", map[string]string{"ca": canary}, "key ca holds no certificate in PEM"},
		{"an empty authority", map[string]string{"tls": "enable", "ca": "\n"}, "key ca is empty; put the servers' authority in, or remove the key to trust the system's"},
		{"two authorities", map[string]string{"ca": cert, "ca.crt": cert}, "it has ca.crt and ca, which mean the same; remove one"},
		{"no key", map[string]string{"cert": cert}, "it has cert and no tls.key; add its key"},
		{"no certificate", map[string]string{"key": key}, "it has key and no tls.crt; add the certificate"},
		{"another's key", map[string]string{"tls.crt": cert, "tls.key": otherKey}, "keys tls.crt and tls.key do not make a certificate with its own key, both in PEM"},
		{"a key with a password", map[string]string{"cert": cert, "key": block("ENCRYPTED PRIVATE KEY", []byte(canary))}, "key key has a password, which is not taken; put it in without (openssl pkey -in FILE)"},
		{"a key's password", map[string]string{"cert": cert, "key": key, "keyPassword": canary}, "key keyPassword is not taken: put the client's key in without a password (openssl pkey -in FILE), and remove keyPassword"},

		{"no endpoint", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary}, "sasl oauthbearer needs the key oauthTokenEndpointUri, the http or https URL at which client credentials become tokens"},
		{"no URL", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "https://" + canary + "\x7f"}, "sasl oauthbearer needs the key oauthTokenEndpointUri, the http or https URL at which client credentials become tokens"},
		{"another scheme", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "file:///" + canary}, "sasl oauthbearer needs the key oauthTokenEndpointUri, the http or https URL at which client credentials become tokens"},
		{"a user in the URL", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "https://" + canary + ":" + canary + "@idp.example"}, "key oauthTokenEndpointUri holds a user; put the client's id and secret into username and password"},
		{"no client", map[string]string{"sasl": "oauthbearer", "oauthTokenEndpointUri": "https://idp.example"}, "sasl oauthbearer needs the keys username and password"},
		{"extensions", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "https://idp.example", "oauthExtensions": canary}, "key oauthExtensions must be NAME=VALUE pairs with a comma between them, where a NAME is of letters and not auth"},
		{"an extension that is the token", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "https://idp.example", "oauthExtensions": "auth=" + canary}, "key oauthExtensions must be NAME=VALUE pairs with a comma between them, where a NAME is of letters and not auth"},
		{"an extension that ends the message", map[string]string{"sasl": "oauthbearer", "username": canary, "password": canary, "oauthTokenEndpointUri": "https://idp.example", "oauthExtensions": "a=" + canary + "\x01"}, "key oauthExtensions must be NAME=VALUE pairs with a comma between them, where a NAME is of letters and not auth"},
		{"another provider", map[string]string{"sasl": "oauthbearer", "saslTokenProvider": canary}, "key saslTokenProvider must be bearer or aws_msk_iam"},

		{"IAM without a region", map[string]string{"sasl": "aws_msk_iam", "awsAccessKeyID": canary, "awsSecretAccessKey": canary}, "sasl aws_msk_iam needs the key awsRegion"},
		{"IAM without an id", map[string]string{"sasl": "aws_msk_iam", "awsRegion": canary, "awsSecretAccessKey": canary}, "sasl aws_msk_iam needs the key awsAccessKeyID"},
		{"IAM without a key", map[string]string{"sasl": "aws_msk_iam", "awsRegion": canary, "awsAccessKeyID": canary, "awsSecretAccessKey": " "}, "sasl aws_msk_iam needs the key awsSecretAccessKey"},
		{"IAM by a role", map[string]string{"sasl": "aws_msk_iam", "awsRegion": canary, "awsRoleArn": canary}, "key awsRoleArn is not taken: roles are not assumed; sasl aws_msk_iam needs the key awsAccessKeyID"},
		{"IAM by keys and a role", map[string]string{"sasl": "aws_msk_iam", "awsRegion": canary, "awsAccessKeyID": canary, "awsSecretAccessKey": canary, "awsRoleArn": canary}, "key awsRoleArn is not taken: roles are not assumed; put the keys of an identity in that may read the cluster itself, and remove awsRoleArn"},
		{"IAM without TLS", map[string]string{"sasl": "aws_msk_iam", "tls": "disable", "awsRegion": canary}, "sasl aws_msk_iam needs TLS; set tls to enable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseCredentials(bytesOf(tt.data), providers.AllowList{})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// FuzzCredentials: whatever is in a Secret, no error shows any of it, nor does how it is printed.
func FuzzCredentials(f *testing.F) {
	keys := []string{
		"sasl", "saslTokenProvider", "tls", "serverName", "username", "password", "oauthTokenEndpointUri", "scopes", "oauthExtensions",
		"awsRegion", "awsAccessKeyID", "awsSecretAccessKey", "awsSessionToken", "awsRoleArn", "keyPassword", "unsafeSsl", "keytab",
		"ca", "cert", "key", "ca.crt", "tls.crt", "tls.key",
	}
	values := []string{"plaintext", "scram_sha512", "oauthbearer", "aws_msk_iam", "enable", "disable", "https://"}
	for i := range keys {
		f.Add(uint32(1)<<i, uint8(0), "x")
		f.Add(uint32(0xffffff)&^(1<<i), uint8(i), "\x00\x01=,\n")
		f.Add(uint32(0x1f1|1<<i), uint8(i), "=")
	}
	f.Fuzz(func(t *testing.T, which uint32, mechanism uint8, secret string) {
		data := map[string][]byte{}
		for i, key := range keys {
			if which&(1<<i) != 0 {
				data[key] = []byte(canary + secret + canary)
			}
		}
		if mechanism%8 < 4 {
			data["sasl"] = []byte(values[mechanism%8])
		}
		if mechanism&8 != 0 {
			data["tls"] = []byte(values[4+mechanism&1])
		}
		if mechanism&16 != 0 {
			data["oauthTokenEndpointUri"] = []byte(values[6] + canary + secret)
		}
		got, err := parseCredentials(data, providers.AllowList{})
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("the error shows a value: %v", err)
		}
		if err == nil && got.sasl != nil && strings.Contains(got.sasl.Name(), canary) {
			t.Error("the name shows a value")
		}
	})
}

// What AWS is shown: who asks, and that it is for the broker whose connection this is.
func TestMSK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which begins at midnight, 2000-01-01
		s, err := parseCredentials(bytesOf(map[string]string{
			"sasl": "aws_msk_iam", "awsRegion": "eu-west-1\n", "awsAccessKeyID": "AKIA\n", "awsSecretAccessKey": canary + "\n", "awsSessionToken": "session",
		}), providers.AllowList{})
		if err != nil {
			t.Fatal(err)
		}
		sign := func(host string) map[string]string {
			session, say, err := s.sasl.Start(sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: host, Port: 9098}))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(say), canary) {
				t.Error("the secret key is sent")
			}
			if done, _, err := session.Next(t.Context(), []byte(`{"version":"2020_10_22"}`)); !done || err != nil {
				t.Errorf("after the answer: %t, %v", done, err)
			}
			var said map[string]string
			if err := json.Unmarshal(say, &said); err != nil {
				t.Fatal(err)
			}
			return said
		}
		one, two := sign("b-1.example"), sign("b-2.example")
		if len(one["x-amz-signature"]) != 64 || one["x-amz-signature"] == two["x-amz-signature"] {
			t.Errorf("signatures %q and %q, want different ones for different brokers", one["x-amz-signature"], two["x-amz-signature"])
		}
		delete(one, "x-amz-signature")
		delete(one, "user-agent")
		want := map[string]string{
			"version": "2020_10_22", "host": "b-1.example", "action": "kafka-cluster:Connect",
			"x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": "AKIA/20000101/eu-west-1/kafka-cluster/aws4_request",
			"x-amz-date": "20000101T000000Z", "x-amz-expires": "300", "x-amz-security-token": "session", "x-amz-signedheaders": "host",
		}
		if diff := cmp.Diff(want, one); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if two["host"] != "b-2.example" {
			t.Errorf("signed for %q", two["host"])
		}
	})
}

func TestWithoutSent(t *testing.T) {
	token := "eyJhbGciOiJub25lIn0." + strings.Repeat("x", 400) + "."
	signed := `{"host":"b-1.example","x-amz-credential":"AKIAIOSFODNN7EXAMPLE/20000101/eu","x-amz-signature":"` + strings.Repeat("f", 64) + `"}`
	tests := []struct {
		name, said, sent string
		want             string
	}{
		{"nothing sent", "no", "", `"no"`},
		{"a password", "wrong: open-sesame", "\x00alice\x00open-sesame", `"wrong: [hidden]"`},
		{"a password with spaces", "wrong: open sesame", "\x00alice\x00open sesame", `"wrong: [hidden]"`},
		{"a token", "bad " + token, "n,,\x01auth=Bearer " + token + "\x01\x01", `"bad [hidden]"`},
		{"all of it", "bad auth=Bearer " + token, "n,,\x01auth=Bearer " + token + "\x01\x01", `"bad [hidden]"`},
		{"a signature", "AKIAIOSFODNN7EXAMPLE/20000101/eu by " + strings.Repeat("f", 64), signed, `"[hidden] by [hidden]"`},
		{"its own words", "authentication of host failed, see action", signed, `"authentication of host failed, see action"`},
		{"too much", strings.Repeat("a", 1000), "", fmt.Sprintf("%q", strings.Repeat("a", 200))},
		{"control characters", "a\x1b[31mb\nc", "", `"a\x1b[31mb\nc"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := withoutSent(tt.said, []byte(tt.sent)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// What has to be there in documentedKeys is what can be read.
func TestDocumentedKeys(t *testing.T) {
	for _, names := range slices.Concat([][]string{
		keySASL, keyTLS, keyServerName, keyUsername, keyPassword, keyTokenURL, keyScopes, keyExtensions, keyRegion, keyAccessID, keyAccessKey, keySession,
	}) {
		if !strings.Contains(documentedKeys, names[0]) {
			t.Errorf("%s is not named", names[0])
		}
	}
}
