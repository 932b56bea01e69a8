package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
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
	keyProvider   = []string{"saslTokenProvider"}
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

	mechanismMSK = "aws_msk_iam"
)

// loginKeys are those that mean nothing without a mechanism, with the mechanism that they are for; empty where there are
// several. KEDA takes the mechanism from its ScaledObject too, so that a Secret of KEDA's may have them alone.
var loginKeys = []struct{ key, mechanism string }{
	{"username", ""},
	{"password", ""},
	{"oauthTokenEndpointUri", "oauthbearer"},
	{"oauthExtensions", "oauthbearer"},
	{"saslTokenProvider", "oauthbearer"},
	{"awsRegion", mechanismMSK},
	{"awsAccessKeyID", mechanismMSK},
	{"awsSecretAccessKey", mechanismMSK},
	{"awsSessionToken", mechanismMSK},
	{"awsRoleArn", mechanismMSK},
	{"keytab", ""},
	{"kerberosConfig", ""},
}

// parseCredentials reads the content of a Secret; nil is no credentials at all. Other keys than the documented ones are
// left alone, but not those that KEDA takes and this does not. The error names keys and never holds a value, but hosts that
// allow does not have.
func parseCredentials(data map[string][]byte, allow providers.AllowList) (security, error) {
	if data == nil {
		return security{allow: allow}, nil
	}
	v, err := providers.PickSecret(data, keySASL, keyProvider, keyTLS, keyServerName, providers.KeyCA, providers.KeyCert, providers.KeyKey)
	if err != nil {
		return security{}, err
	}
	method, provider, wanted, serverName, ca, cert, key := v[0], v[1], v[2], v[3], v[4], v[5], v[6]
	if err := refuseKEDA(data); err != nil {
		return security{}, err
	}
	mechanism, err := mechanismOf(method, provider)
	if err != nil {
		return security{}, err
	}
	if mechanism == "" {
		if err := refuseLogin(data, method); err != nil {
			return security{}, err
		}
		if method.Or(wanted).Or(serverName).Or(ca).Or(cert).Or(key).Name == "" {
			return security{}, errors.New("it has none of the keys " + documentedKeys)
		}
	}
	s := security{allow: allow}
	if s.tls, err = parseTLS(mechanism, wanted, serverName, ca, cert, key); err != nil {
		return security{}, err
	}
	s.sasl, err = parseMechanism(mechanism, data, ca, allow)
	return s, err
}

// refuseKEDA refuses what KEDA's users may bring and would be missed if it were left alone.
func refuseKEDA(data map[string][]byte) error {
	if len(data["keyPassword"]) > 0 {
		return errors.New("key keyPassword is not taken: put the client's key in without a password (openssl pkey -in FILE), and remove keyPassword")
	}
	if raw, ok := data["unsafeSsl"]; ok && word(raw) != "" {
		if unsafe, err := strconv.ParseBool(word(raw)); err != nil || unsafe {
			return errors.New("key unsafeSsl must be false, or not there: brokers' certificates are always verified; " +
				"put their authority's into ca.crt, and the name that they are for into serverName if it is not the brokers'")
		}
	}
	return nil
}

// mechanismOf is one of mechanisms; empty for none.
func mechanismOf(method, provider providers.SecretEntry) (string, error) {
	name := strings.ReplaceAll(strings.ToLower(word(method.Value)), "-", "_")
	switch name {
	case "", "none":
		return "", nil
	case "plain", "plaintext":
		return "plaintext", nil
	case "scram_sha256", "scram_sha_256":
		return "scram_sha256", nil
	case "scram_sha512", "scram_sha_512":
		return "scram_sha512", nil
	case mechanismMSK:
		return name, nil
	case "oauthbearer":
		switch strings.ToLower(word(provider.Value)) {
		case "", "bearer":
			return name, nil
		case mechanismMSK: // whoever takes IAM's signatures as tokens takes them as what they are too
			return mechanismMSK, nil
		}
		return "", errors.New("key saslTokenProvider must be bearer or aws_msk_iam")
	case "gssapi":
		return "", errors.New("key sasl: Kerberos (gssapi) is not supported; it must be " + mechanisms)
	}
	return "", errors.New("key sasl must be " + mechanisms)
}

// refuseLogin refuses a Secret that has something to log in with and no mechanism.
func refuseLogin(data map[string][]byte, method providers.SecretEntry) error {
	for _, k := range loginKeys {
		switch {
		case word(data[k.key]) == "":
		case word(method.Value) != "":
			return fmt.Errorf("it has %s, and sasl is none; remove it, or set sasl to %s", k.key, cmp.Or(k.mechanism, mechanisms))
		default:
			return fmt.Errorf("it has %s and no mechanism; set the key sasl to %s", k.key, cmp.Or(k.mechanism, mechanisms))
		}
	}
	return nil
}

// parseTLS is nil for plain connections.
func parseTLS(mechanism string, wanted, serverName, ca, cert, key providers.SecretEntry) (*tls.Config, error) {
	config, err := providers.ClientTLS(ca, cert, key)
	if err != nil {
		return nil, err
	}
	switch strings.ToLower(word(wanted.Value)) {
	case "enable", "true":
		config = cmp.Or(config, &tls.Config{MinVersion: tls.VersionTLS12})
	case "disable", "false":
		switch {
		case config != nil:
			return nil, fmt.Errorf("it has %s, and tls says that there is no TLS; set tls to enable, or remove it", ca.Or(cert).Or(key).Name)
		case mechanism == mechanismMSK:
			return nil, errors.New("sasl aws_msk_iam needs TLS; set tls to enable")
		}
	case "":
		if mechanism == mechanismMSK { // there is no other way to it
			config = cmp.Or(config, &tls.Config{MinVersion: tls.VersionTLS12})
		}
	default:
		return nil, errors.New("key tls must be enable or disable")
	}
	if name := word(serverName.Value); name != "" {
		if config == nil {
			return nil, errors.New("it has serverName and no TLS; set tls to enable")
		}
		config.ServerName = name
	}
	return config, nil
}

// parseMechanism reads what the mechanism needs. It is nil for none.
func parseMechanism(mechanism string, data map[string][]byte, ca providers.SecretEntry, allow providers.AllowList) (sasl.Mechanism, error) {
	switch mechanism {
	case "":
		return nil, nil
	case mechanismMSK:
		return parseMSK(data)
	}
	username, password, err := parseLogin(mechanism, data)
	if err != nil {
		return nil, err
	}
	algorithm := scram.SHA256
	switch mechanism {
	case "plaintext":
		if strings.Contains(username+password, "\x00") { // which stands between them
			return nil, errors.New("username or password hold a NUL, which sasl plaintext cannot transport")
		}
		return plain.Mechanism{Username: username, Password: password}, nil
	case "oauthbearer":
		return parseOAuth(username, password, data, ca, allow)
	case "scram_sha512":
		algorithm = scram.SHA512
	}
	m, err := scram.Mechanism(algorithm, username, password)
	if err != nil { // whose text may hold what it was given
		return nil, errors.New("username or password hold characters that SCRAM cannot transport")
	}
	return m, nil
}

// parseLogin returns username and password, which the mechanism needs.
func parseLogin(mechanism string, data map[string][]byte) (username, password string, err error) {
	v, err := providers.PickSecret(data, keyUsername, keyPassword)
	if err != nil {
		return "", "", err
	}
	login, err := providers.PickLogin(v[0], v[1])
	switch {
	case err != nil:
		return "", "", err
	case !login:
		return "", "", fmt.Errorf("sasl %s needs the keys username and password", mechanism)
	case len(v[1].Value) == 0:
		return "", "", errors.New("key password is empty")
	}
	return string(v[0].Value), string(v[1].Value), nil
}

func parseMSK(data map[string][]byte) (sasl.Mechanism, error) {
	v, err := providers.PickSecret(data, keyRegion, keyAccessID, keyAccessKey, keySession)
	if err != nil {
		return nil, err
	}
	words := make([]string, len(v))
	for i := range v {
		words[i] = word(v[i].Value) // none of them has spaces
	}
	for i, name := range []string{"awsRegion", "awsAccessKeyID", "awsSecretAccessKey"} {
		switch {
		case words[i] != "":
		case i > 0 && word(data["awsRoleArn"]) != "":
			return nil, fmt.Errorf("key awsRoleArn is not taken: roles are not assumed; sasl aws_msk_iam needs the key %s", name)
		default:
			return nil, fmt.Errorf("sasl aws_msk_iam needs the key %s", name)
		}
	}
	if word(data["awsRoleArn"]) != "" { // KEDA would have the keys assume it
		return nil, errors.New("key awsRoleArn is not taken: roles are not assumed; " +
			"put the keys of an identity in that may read the cluster itself, and remove awsRoleArn")
	}
	credentials := aws.Credentials{AccessKeyID: words[1], SecretAccessKey: words[2], SessionToken: words[3]}
	return &aws_msk_iam_v2.Mechanism{
		Signer: signer.NewSigner(), Region: words[0],
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return credentials, nil }),
	}, nil
}

// word is a value that has no spaces around it, whoever has put them there.
func word(value []byte) string { return strings.TrimSpace(string(value)) }

// withoutSent is what a broker says, in quotes and bounded, without what it was sent, which it may repeat: a password or a
// token.
func withoutSent(said string, sent []byte) string {
	hide := func(separators string, longerThan int) {
		for _, part := range strings.FieldsFunc(string(sent), func(r rune) bool { return strings.ContainsRune(separators, r) }) {
			if len(part) > longerThan {
				said = strings.ReplaceAll(said, part, "[hidden]")
			}
		}
	}
	hide("\x00\x01", 3)       // between the fields of PLAIN and of OAUTHBEARER
	hide("\x00\x01 \":,", 16) // around a token, and around the values of a signature, but no words of English
	return fmt.Sprintf("%.200q", said)
}
