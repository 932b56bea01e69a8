package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/sluice-dev/sluice/providers"
)

// Keys of a Secret, as KEDA's parameters for Kafka are called; those for TLS as in Secrets of type kubernetes.io/tls too.
var (
	keySASL       = []string{"sasl"}
	keyTLS        = []string{"tls"}
	keyServerName = []string{"serverName"}
	keyUsername   = []string{"username"}
	keyPassword   = []string{"password"}
	keyTokenURL   = []string{"oauthTokenEndpointUri"}
	keyScopes     = []string{"scopes"}
	keyExtensions = []string{"oauthExtensions"}
	keyRegion     = []string{"awsRegion"}
	keyAccessID   = []string{"awsAccessKeyID"}
	keyAccessKey  = []string{"awsSecretAccessKey"}
	keySession    = []string{"awsSessionToken"}
)

const (
	documentedKeys = "sasl, username and password; tls; ca.crt (or ca); tls.crt and tls.key (or cert and key); serverName; " +
		"oauthTokenEndpointUri, scopes, oauthExtensions; awsRegion, awsAccessKeyID, awsSecretAccessKey, awsSessionToken"
	mechanisms = "plaintext, scram_sha256, scram_sha512, oauthbearer, aws_msk_iam or none"
)

// parseCredentials reads the content of a Secret; nil is no credentials at all. Other keys than the documented ones are
// left alone. The error names keys and never holds a value of one that is secret.
func parseCredentials(data map[string][]byte) (security, error) {
	if data == nil {
		return security{}, nil
	}
	v, err := providers.PickSecret(data, keySASL, keyTLS, keyServerName, providers.KeyCA, providers.KeyCert, providers.KeyKey)
	if err != nil {
		return security{}, err
	}
	method, wanted, serverName, ca, cert, key := v[0], v[1], v[2], v[3], v[4], v[5]
	mechanism := strings.NewReplacer("-", "_").Replace(strings.ToLower(string(method.Value)))
	if mechanism == "" && wanted.Name == "" && ca.Name == "" && cert.Name == "" && key.Name == "" && data["username"] == nil {
		return security{}, errors.New("it has none of the keys " + documentedKeys)
	}
	var s security
	if s.tls, err = providers.ClientTLS(ca, cert, key); err != nil {
		return security{}, err
	}
	switch strings.ToLower(string(wanted.Value)) {
	case "enable", "true":
		s.tls = cmp.Or(s.tls, &tls.Config{MinVersion: tls.VersionTLS12})
	case "disable", "false":
		if s.tls != nil {
			return security{}, fmt.Errorf("it has %s, and tls says that there is no TLS; set tls to enable or remove it", ca.Or(cert).Or(key).Name)
		}
	case "":
		if mechanism == "aws_msk_iam" { // there is no other way to it
			s.tls = cmp.Or(s.tls, &tls.Config{MinVersion: tls.VersionTLS12})
		}
	default:
		return security{}, errors.New("key tls must be enable or disable")
	}
	if serverName.Name != "" {
		if s.tls == nil {
			return security{}, errors.New("it has serverName and no TLS; set tls to enable")
		}
		s.tls.ServerName = string(serverName.Value)
	}
	s.sasl, err = parseMechanism(mechanism, data)
	return s, err
}

// parseMechanism reads what the mechanism needs.
func parseMechanism(mechanism string, data map[string][]byte) (sasl.Mechanism, error) {
	v, err := providers.PickSecret(data, keyUsername, keyPassword)
	if err != nil {
		return nil, err
	}
	login, err := providers.PickLogin(v[0], v[1])
	if err != nil {
		return nil, err
	}
	username, password := string(v[0].Value), string(v[1].Value)
	need := func() error {
		if !login {
			return fmt.Errorf("sasl %s needs the keys username and password", mechanism)
		}
		return nil
	}
	switch mechanism {
	case "", "none":
		if login {
			return nil, errors.New("it has username and no mechanism; set the key sasl to " + mechanisms)
		}
		return nil, nil
	case "plaintext", "plain":
		return plain.Mechanism{Username: username, Password: password}, need()
	case "scram_sha256", "scram_sha_256", "scram_sha512", "scram_sha_512":
		if err := need(); err != nil {
			return nil, err
		}
		algorithm := scram.SHA256
		if strings.HasSuffix(mechanism, "512") {
			algorithm = scram.SHA512
		}
		m, err := scram.Mechanism(algorithm, username, password)
		if err != nil { // whose text may hold what it was given
			return nil, errors.New("username or password hold characters that SCRAM cannot transport")
		}
		return m, nil
	case "oauthbearer":
		if err := need(); err != nil {
			return nil, err
		}
		return parseOAuth(username, password, data)
	case "aws_msk_iam":
		return parseMSK(data)
	default:
		return nil, errors.New("key sasl must be " + mechanisms)
	}
}

func parseOAuth(client, secret string, data map[string][]byte) (sasl.Mechanism, error) {
	v, err := providers.PickSecret(data, keyTokenURL, keyScopes, keyExtensions)
	if err != nil {
		return nil, err
	}
	o := &oauth{client: client, secret: secret, url: string(v[0].Value)}
	if u, err := url.Parse(o.url); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("sasl oauthbearer needs the key oauthTokenEndpointUri, the URL at which client credentials become tokens")
	}
	o.scopes = strings.FieldsFunc(string(v[1].Value), func(r rune) bool { return r == ',' || r == ' ' })
	for pair := range strings.SplitSeq(string(v[2].Value), ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" || name == "auth" || strings.Contains(value, "\x01") {
			return nil, errors.New("key oauthExtensions must be NAME=VALUE pairs with a comma between them")
		}
		o.extensions = append(o.extensions, [2]string{name, value})
	}
	return o, nil
}

func parseMSK(data map[string][]byte) (sasl.Mechanism, error) {
	v, err := providers.PickSecret(data, keyRegion, keyAccessID, keyAccessKey, keySession)
	if err != nil {
		return nil, err
	}
	for i, name := range []string{"awsRegion", "awsAccessKeyID", "awsSecretAccessKey"} {
		if len(v[i].Value) == 0 {
			return nil, fmt.Errorf("sasl aws_msk_iam needs the key %s", name)
		}
	}
	credentials := aws.Credentials{
		AccessKeyID: string(v[1].Value), SecretAccessKey: string(v[2].Value), SessionToken: string(v[3].Value),
	}
	return &aws_msk_iam_v2.Mechanism{
		Signer: signer.NewSigner(), Region: string(v[0].Value),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials, nil }),
	}, nil
}
