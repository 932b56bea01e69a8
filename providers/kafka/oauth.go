package kafka

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// tokenTimeout bounds the exchange, besides the deadline of the connection.
	tokenTimeout = 5 * time.Second
	// tokenShare is how long what the endpoint has said serves further connections: those to all brokers are made at the
	// same time, and a client that is refused would be locked out by some endpoints if it came back with every round.
	tokenShare = 10 * time.Second
)

// oauth is SASL OAUTHBEARER (RFC 7628) with a token that client credentials are exchanged for (RFC 6749, section 4.4).
// Safe for concurrent use.
type oauth struct {
	config     clientcredentials.Config
	client     *http.Client
	endpoint   *url.URL
	extensions string // as they are sent

	turn  chan struct{} // holds one: whoever has put it there may ask, and use the following
	token string
	err   error     // why there is none
	until time.Time // when the two are good for nothing any more
}

// What brokers take as the extensions and the token of a client; another would make nonsense of the message.
var (
	extensionName  = regexp.MustCompile(`^[A-Za-z]+$`)
	extensionValue = regexp.MustCompile(`^[\x21-\x7e \t\r\n]+$`)
	bearerToken    = regexp.MustCompile(`^[-._~+/A-Za-z0-9]+=*$`)
)

// parseOAuth reads the keys of OAUTHBEARER. ca is the Secret's. The endpoint is one that allow lets Secrets name.
func parseOAuth(id, secret string, data map[string][]byte, ca providers.SecretEntry, allow providers.AllowList) (sasl.Mechanism, error) {
	v, err := providers.PickSecret(data, keyTokenURL, keyScopes, keyExtensions)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(word(v[0].Value)) // whose error repeats it whole
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, errors.New("sasl oauthbearer needs the key oauthTokenEndpointUri, the http or https URL at which client credentials become tokens")
	}
	if u.User != nil {
		return nil, errors.New("key oauthTokenEndpointUri holds a user; put the client's id and secret into username and password")
	}
	server, err := providers.ParseAddress(net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])))
	if err == nil {
		err = allow.Check(server)
	}
	if err != nil {
		return nil, fmt.Errorf("key oauthTokenEndpointUri: %w", err)
	}
	o := &oauth{endpoint: u, client: tokenClient(ca, allow.Dialer(server)), turn: make(chan struct{}, 1)}
	o.config = clientcredentials.Config{
		ClientID: id, ClientSecret: secret, TokenURL: u.String(),
		Scopes: strings.FieldsFunc(string(v[1].Value), func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }),
	}
	for pair := range strings.SplitSeq(string(v[2].Value), ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		if !extensionName.MatchString(name) || name == "auth" || !extensionValue.MatchString(value) {
			return nil, errors.New("key oauthExtensions must be NAME=VALUE pairs with a comma between them, where a NAME is of letters and not auth")
		}
		o.extensions += "\x01" + name + "=" + value
	}
	return o, nil
}

// tokenClient asks token endpoints: those that the system's authorities or ca vouch for. Its dialer is kept from
// addresses that are not a server's: whoever may write a Secret could else read there through the adapter's errors. It
// follows no redirect, which would take the client's secret with it, and uses no proxy.
func tokenClient(ca providers.SecretEntry, dialer *net.Dialer) *http.Client {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	roots.AppendCertsFromPEM(ca.Value) // parseTLS has seen that it holds some
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			Protocols: protocols, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Name implements sasl.Mechanism.
func (*oauth) Name() string { return "OAUTHBEARER" }

// Start implements sasl.Mechanism.
func (o *oauth) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	token, err := o.get(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("token of %s (key oauthTokenEndpointUri): %w", o.endpoint.Host, err)
	}
	say := []byte("n,,\x01auth=Bearer " + token + o.extensions + "\x01\x01")
	return oauthSession{sent: say}, say, nil
}

// get returns a token, of the endpoint or of lately. One caller asks at a time.
func (o *oauth) get(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return "", fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
	defer func() { <-o.turn }()
	if time.Now().Before(o.until) {
		return o.token, o.err
	}
	token, err := o.config.Token(context.WithValue(ctx, oauth2.HTTPClient, o.client))
	if err != nil {
		_, refused := errors.AsType[*oauth2.RetrieveError](err)
		err = o.explain(ctx, err)
		if refused {
			o.token, o.err, o.until = "", err, time.Now().Add(tokenShare)
		}
		return "", err
	}
	if !bearerToken.MatchString(token.AccessToken) {
		return "", errors.New("what it gives holds characters that no bearer token has")
	}
	share := tokenShare
	if !token.Expiry.IsZero() {
		share = min(share, time.Until(token.Expiry)/2)
	}
	o.token, o.err, o.until = token.AccessToken, nil, time.Now().Add(share)
	return o.token, nil
}

// remedies for the codes of RFC 6749, section 5.2. An answer may hold anything, so that no other code is repeated.
var remedies = map[string]string{
	"invalid_client":         "; check the keys username and password, which are the client's id and secret",
	"unauthorized_client":    "; the client must be allowed the grant client_credentials",
	"unsupported_grant_type": "; the endpoint must support the grant client_credentials",
	"invalid_scope":          "; check the key scopes",
	"invalid_request":        "; check the key scopes",
	"invalid_grant":          "",
}

// explain says what went wrong, in words that are not the endpoint's: whatever it has answered is not for those who read
// the status of a Function.
func (o *oauth) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		status := refused.Response.StatusCode
		text := strings.TrimSpace(fmt.Sprintf("it answers with status %d %s", status, http.StatusText(status)))
		if remedy, ok := remedies[refused.ErrorCode]; ok {
			return fmt.Errorf("%s (%s)%s", text, refused.ErrorCode, remedy)
		}
		if status/100 == 3 {
			return errors.New(text + "; redirects are not followed, so that the key must be the URL that it leads to")
		}
		return errors.New(text)
	}
	failed, ok := errors.AsType[*url.Error](err)
	if !ok {
		return errors.New("its answer is not a token in JSON")
	}
	// Its own text would hold the URL, and that of most errors in it what the other side has sent.
	opErr, isOp := errors.AsType[*net.OpError](failed.Err)
	certErr, isCert := errors.AsType[*tls.CertificateVerificationError](failed.Err)
	switch {
	case isOp:
		return opErr
	case isCert:
		return fmt.Errorf("%w; the Secret's ca.crt is trusted besides the system's authorities", certErr)
	}
	return fmt.Errorf("it does not answer as a server of %s does", o.endpoint.Scheme)
}

// oauthSession is the exchange after the token.
type oauthSession struct{ sent []byte }

// Next implements sasl.StateMachine. A challenge is a refusal, in JSON. Kafka's own clients say something to it, to be told
// the same as an error.
func (s oauthSession) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	if len(bytes.TrimSpace(challenge)) > 0 {
		return false, nil, fmt.Errorf("the broker refuses the token: %s", withoutSent(string(challenge), s.sent))
	}
	return true, nil, nil
}
