package kafka

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// oauth is SASL OAUTHBEARER (RFC 7628) with a token that client credentials are exchanged for (RFC 6749, section 4.4). A
// token is asked for with each connection. Safe for concurrent use.
type oauth struct {
	client, secret, url string
	scopes              []string
	extensions          [][2]string
}

// tokenTimeout bounds the exchange, besides the deadline of the connection.
const tokenTimeout = 5 * time.Second

// Name implements sasl.Mechanism.
func (*oauth) Name() string { return "OAUTHBEARER" }

// Start implements sasl.Mechanism.
func (o *oauth) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	config := clientcredentials.Config{ClientID: o.client, ClientSecret: o.secret, TokenURL: o.url, Scopes: o.scopes}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Timeout: tokenTimeout})
	token, err := config.Token(ctx)
	if err != nil {
		if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok { // whose text holds what the server said
			return nil, nil, fmt.Errorf("token of %s: %s %s", o.url, refused.Response.Status, refused.ErrorCode)
		}
		return nil, nil, fmt.Errorf("token of %s: %w", o.url, err)
	}
	if strings.Contains(token.AccessToken, "\x01") {
		return nil, nil, fmt.Errorf("token of %s: it holds a character that no token has", o.url)
	}
	var b strings.Builder
	b.WriteString("n,,\x01auth=Bearer " + token.AccessToken)
	for _, e := range o.extensions {
		b.WriteString("\x01" + e[0] + "=" + e[1])
	}
	b.WriteString("\x01\x01")
	return oauthSession{}, []byte(b.String()), nil
}

// oauthSession is the exchange after the token.
type oauthSession struct{}

// Next implements sasl.StateMachine. A challenge is a refusal, in JSON.
func (oauthSession) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	if len(challenge) > 0 {
		return false, nil, fmt.Errorf("the broker refuses the token: %.200q", challenge)
	}
	return true, nil, nil
}
