package prometheus

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/providers"
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
)

const documentedKeys = "username and password; or bearerToken (or token); ca.crt (or ca); tls.crt and tls.key (or cert and key)"

// parseCredentials reads the content of a Secret; nil is no credentials at all. Other keys than the documented ones
// are left alone. The error names keys and never holds a value.
func parseCredentials(data map[string][]byte) (*credentials, error) {
	c := &credentials{}
	if data == nil {
		return c, nil
	}
	v, err := providers.PickSecret(data, keyUsername, keyPassword, keyToken, providers.KeyCA, providers.KeyCert, providers.KeyKey)
	if err != nil {
		return nil, err
	}
	username, password, token, ca, cert, key := v[0], v[1], v[2], v[3], v[4], v[5]
	switch {
	case username.Name == "" && password.Name == "" && token.Name == "" && ca.Name == "" && cert.Name == "" && key.Name == "":
		return nil, errors.New("it has none of the keys " + documentedKeys)
	case token.Name != "" && (username.Name != "" || password.Name != ""):
		return nil, fmt.Errorf("it has %s and %s, which contradict each other; remove one", token.Name, username.Or(password).Name)
	}
	if err := c.setAuthorization(username, password, token); err != nil {
		return nil, err
	}
	if c.tls, err = providers.ClientTLS(ca, cert, key); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *credentials) setAuthorization(username, password, token providers.SecretEntry) error {
	switch {
	case token.Name != "":
		value := string(bytes.TrimSpace(token.Value))
		if value == "" {
			return fmt.Errorf("key %s is empty", token.Name)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("key %s holds characters that no bearer token has", token.Name)
		}
		c.authorization = "Bearer " + value
		c.hide = replacer(value)
	default:
		ok, err := providers.PickLogin(username, password)
		if !ok {
			return err
		}
		user, secret := string(username.Value), string(password.Value)
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
