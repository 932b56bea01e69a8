package prometheus

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// credentials are what a Secret says.
type credentials struct {
	authorization string            // value of the header; empty for none
	tls           *tls.Config       // nil for the system's authorities and no client certificate
	hide          *strings.Replacer // takes the credentials out of a text; nil where there is nothing to take out
}

// Keys of a Secret, each with the names that it may have: the first is that of Kubernetes' own types of Secrets or of
// KEDA's parameters, whichever there is.
var (
	keyUsername = []string{"username"}
	keyPassword = []string{"password"}
	keyToken    = []string{"bearerToken", "token"}
	keyCA       = []string{"ca.crt", "ca"}
	keyCert     = []string{"tls.crt", "cert"}
	keyKey      = []string{"tls.key", "key"}
)

const documentedKeys = "username and password; or bearerToken (or token); ca.crt (or ca); tls.crt and tls.key (or cert and key)"

// parseCredentials reads the content of a Secret; nil is no credentials at all. Other keys than the documented ones
// are left alone. The error names keys and never holds a value.
func parseCredentials(data map[string][]byte) (*credentials, error) {
	c := &credentials{}
	if data == nil {
		return c, nil
	}
	v, err := pickAll(data, keyUsername, keyPassword, keyToken, keyCA, keyCert, keyKey)
	if err != nil {
		return nil, err
	}
	username, password, token, ca, cert, key := v[0], v[1], v[2], v[3], v[4], v[5]
	switch {
	case username.name == "" && password.name == "" && token.name == "" && ca.name == "" && cert.name == "" && key.name == "":
		return nil, errors.New("it has none of the keys " + documentedKeys)
	case token.name != "" && (username.name != "" || password.name != ""):
		return nil, fmt.Errorf("it has %s and %s, which contradict each other; remove one", token.name, username.or(password).name)
	}
	if err := c.setAuthorization(username, password, token); err != nil {
		return nil, err
	}
	if err := c.setTLS(ca, cert, key); err != nil {
		return nil, err
	}
	return c, nil
}

// entry is a key of a Secret with its value.
type entry struct {
	name  string // empty when there is no such key
	value []byte
}

func (e entry) or(other entry) entry {
	if e.name == "" {
		return other
	}
	return e
}

// pickAll finds the entry for each list of names.
func pickAll(data map[string][]byte, keys ...[]string) ([]entry, error) {
	found := make([]entry, len(keys))
	for i, names := range keys {
		for _, name := range names {
			value, ok := data[name]
			switch {
			case !ok:
			case found[i].name == "":
				found[i] = entry{name, bytes.TrimRight(value, "\r\n")} // a file's last line end is no part of a password
			default:
				return nil, fmt.Errorf("it has %s and %s, which mean the same; remove one", found[i].name, name)
			}
		}
	}
	return found, nil
}

func (c *credentials) setAuthorization(username, password, token entry) error {
	switch {
	case token.name != "":
		value := string(bytes.TrimSpace(token.value))
		if value == "" {
			return fmt.Errorf("key %s is empty", token.name)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("key %s holds characters that no bearer token has", token.name)
		}
		c.authorization = "Bearer " + value
		c.hide = replacer(value)
	case username.name == "" && password.name == "":
	case username.name == "":
		return errors.New("it has password and no username; add the key username")
	case password.name == "":
		return errors.New("it has username and no password; add the key password")
	default:
		user, secret := string(username.value), string(password.value)
		if user == "" {
			return errors.New("key username is empty")
		}
		if strings.Contains(user, ":") {
			return errors.New("key username holds a colon, which basic authentication cannot transport")
		}
		encoded := base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))
		c.authorization = "Basic " + encoded
		c.hide = replacer(encoded, secret, user)
	}
	return nil
}

// replacer puts something else for each of the values that is not empty, also where it is in quotes and escaped.
func replacer(values ...string) *strings.Replacer {
	var pairs []string
	for _, v := range values {
		if v == "" {
			continue
		}
		quoted := strconv.Quote(v)
		pairs = append(pairs, v, "[hidden]", quoted[1:len(quoted)-1], "[hidden]")
	}
	return strings.NewReplacer(pairs...)
}

func (c *credentials) setTLS(ca, cert, key entry) error {
	if ca.name == "" && cert.name == "" && key.name == "" {
		return nil
	}
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if ca.name != "" {
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(ca.value) {
			return fmt.Errorf("key %s holds no certificate in PEM", ca.name)
		}
	}
	switch {
	case cert.name == "" && key.name == "":
		return nil
	case cert.name == "":
		return fmt.Errorf("it has %s and no tls.crt; add the certificate", key.name)
	case key.name == "":
		return fmt.Errorf("it has %s and no tls.key; add its key", cert.name)
	}
	pair, err := tls.X509KeyPair(cert.value, key.value)
	if err != nil { // whose text may repeat parts of what it read
		return fmt.Errorf("keys %s and %s do not make a certificate with its own key, both in PEM", cert.name, key.name)
	}
	c.tls.Certificates = []tls.Certificate{pair}
	return nil
}
