package providers

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// SecretEntry is a key of a Secret with its value.
type SecretEntry struct {
	Name  string // empty when there is no such key
	Value []byte
}

// Or is e, or other where there is no e.
func (e SecretEntry) Or(other SecretEntry) SecretEntry {
	if e.Name == "" {
		return other
	}
	return e
}

// PickSecret finds the entry for each list of names that a key may have. Values are without the line ends behind them. The
// error names keys.
func PickSecret(data map[string][]byte, keys ...[]string) ([]SecretEntry, error) {
	found := make([]SecretEntry, len(keys))
	for i, names := range keys {
		for _, name := range names {
			value, ok := data[name]
			switch {
			case !ok:
			case found[i].Name == "":
				found[i] = SecretEntry{name, bytes.TrimRight(value, "\r\n")} // a file's last line end is no part of a password
			default:
				return nil, fmt.Errorf("it has %s and %s, which mean the same; remove one", found[i].Name, name)
			}
		}
	}
	return found, nil
}

// Names that the keys for TLS may have: those of Kubernetes' own types of Secrets, and those of KEDA's parameters.
var (
	KeyCA   = []string{"ca.crt", "ca"}
	KeyCert = []string{"tls.crt", "cert"}
	KeyKey  = []string{"tls.key", "key"}
)

// ClientTLS is how a client verifies servers, by ca, and says who it is, by cert and key; nil where there is none of them.
// The error names keys and never holds a value.
func ClientTLS(ca, cert, key SecretEntry) (*tls.Config, error) {
	if ca.Name == "" && cert.Name == "" && key.Name == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca.Name != "" {
		if len(bytes.TrimSpace(ca.Value)) == 0 {
			return nil, fmt.Errorf("key %s is empty; put the servers' authority in, or remove the key to trust the system's", ca.Name)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca.Value) {
			return nil, fmt.Errorf("key %s holds no certificate in PEM", ca.Name)
		}
	}
	switch {
	case cert.Name == "" && key.Name == "":
		return config, nil
	case cert.Name == "":
		return nil, fmt.Errorf("it has %s and no tls.crt; add the certificate", key.Name)
	case key.Name == "":
		return nil, fmt.Errorf("it has %s and no tls.key; add its key", cert.Name)
	}
	if block, _ := pem.Decode(key.Value); block != nil && (block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "") {
		return nil, fmt.Errorf("key %s has a password, which is not taken; put it in without (openssl pkey -in FILE)", key.Name)
	}
	pair, err := tls.X509KeyPair(cert.Value, key.Value)
	if err != nil { // whose text may repeat parts of what it read
		return nil, fmt.Errorf("keys %s and %s do not make a certificate with its own key, both in PEM", cert.Name, key.Name)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// PickLogin checks that a username and a password come together. ok is false where there is neither.
func PickLogin(username, password SecretEntry) (ok bool, err error) {
	switch {
	case username.Name == "" && password.Name == "":
		return false, nil
	case username.Name == "":
		return false, errors.New("it has password and no username; add the key username")
	case password.Name == "":
		return false, errors.New("it has username and no password; add the key password")
	case len(username.Value) == 0:
		return false, errors.New("key username is empty")
	}
	return true, nil
}
