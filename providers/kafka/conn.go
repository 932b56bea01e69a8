package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/sluice-dev/sluice/providers"
)

// clientID is what brokers' logs and quotas see.
const clientID = "sluice-adapter"

// security is how the brokers of a cluster are talked to.
type security struct {
	// tls is nil for plain connections. Its ServerName may be empty: then it is the broker's host.
	tls *tls.Config
	// sasl is nil for none.
	sasl sasl.Mechanism
	// allow says which of them may be at any address.
	allow providers.AllowList
}

// conn is a connection to one broker, authenticated, with versions agreed upon. It takes one request at a time, and is of
// no use after an error: what arrives then may be the answer to the request before.
//
// The module's Transport is not used: it fetches the metadata of all topics at random times, hides that a refresh failed,
// sends a request per partition, and authenticates without a deadline.
type conn struct {
	raw      net.Conn
	versions map[protocol.ApiKey]int16
	ids      int32
	// sent counts requests.
	sent func(protocol.ApiKey)
}

// dial connects to address, until ctx ends.
func dial(ctx context.Context, address string, s security, sent func(protocol.ApiKey)) (*conn, error) {
	server, err := providers.ParseAddress(address)
	if err != nil {
		return nil, err
	}
	raw, err := s.allow.Dialer(server).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if s.tls != nil {
		config := s.tls.Clone()
		if config.ServerName == "" {
			config.ServerName = server.Host
		}
		raw = tls.Client(raw, config)
	}
	c := &conn{raw: raw, sent: sent}
	if err := c.negotiate(ctx); err != nil {
		c.close() // whose error would say the same again, in a second line
		return nil, fmt.Errorf("agree on versions: %w", err)
	}
	if s.sasl != nil {
		port, _ := strconv.Atoi(server.Port) // parsed once already
		metadata := &sasl.Metadata{Host: server.Host, Port: port}
		if err := c.authenticate(sasl.WithMetadata(ctx, metadata), s.sasl); err != nil {
			c.close()
			return nil, fmt.Errorf("authenticate by %s: %w", s.sasl.Name(), err)
		}
	}
	return c, nil
}

func (c *conn) close() { _ = c.raw.Close() }

// negotiate asks which versions the broker speaks. Version 0 is answered by every broker.
func (c *conn) negotiate(ctx context.Context) error {
	answer, err := exchange[*apiversions.Response](ctx, c, &apiversions.Request{})
	if err != nil {
		return err
	}
	if answer.ErrorCode != 0 {
		return codeError(answer.ErrorCode)
	}
	c.versions = make(map[protocol.ApiKey]int16, len(answer.ApiKeys))
	for _, k := range answer.ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		if key >= 0 && key <= protocol.AlterUserScramCredentials && key.MaxVersion() >= k.MinVersion && key.MinVersion() <= k.MaxVersion {
			c.versions[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
		}
	}
	return nil
}

// authenticate runs the mechanism. The deadline is ctx's, as for every exchange.
func (c *conn) authenticate(ctx context.Context, m sasl.Mechanism) error {
	shaken, err := exchange[*saslhandshake.Response](ctx, c, &saslhandshake.Request{Mechanism: m.Name()})
	if err != nil {
		return err
	}
	if shaken.ErrorCode != 0 {
		some := shaken.Mechanisms[:min(len(shaken.Mechanisms), 8)]
		return fmt.Errorf("%w; the broker knows %.40q", codeError(shaken.ErrorCode), some)
	}
	session, say, err := m.Start(ctx)
	if err != nil {
		return err
	}
	var sent []byte // which a refusal may repeat
	for done := false; !done; {
		sent = append(sent, say...)
		answer, err := exchange[*saslauthenticate.Response](ctx, c, &saslauthenticate.Request{AuthBytes: say})
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the broker closed the connection, as some do on wrong credentials")
		case err != nil:
			return err
		case answer.ErrorCode != 0 && answer.ErrorMessage != "":
			return fmt.Errorf("%w: %s", codeError(answer.ErrorCode), withoutSent(answer.ErrorMessage, sent))
		case answer.ErrorCode != 0:
			return codeError(answer.ErrorCode)
		}
		if strings.HasPrefix(m.Name(), "SCRAM-") {
			if err := bearable(answer.AuthBytes); err != nil {
				return err
			}
		}
		if done, say, err = session.Next(ctx, answer.AuthBytes); err != nil {
			return err
		}
	}
	return nil
}

// maxIterations is the most that Kafka lets a SCRAM credential have.
const maxIterations = 16384

// bearable refuses a challenge (RFC 5802: "r=...,s=...,i=4096") that would have this process hash for hours, which no deadline
// ends.
func bearable(challenge []byte) error {
	for attribute := range bytes.SplitSeq(challenge, []byte(",")) {
		text, ok := bytes.CutPrefix(attribute, []byte("i="))
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(string(text)); err != nil || n > maxIterations {
			return fmt.Errorf("%w: it asks for %.20q iterations; %d are the most that Kafka has", errFrame, text, maxIterations)
		}
	}
	return nil
}

// speaks returns the highest version of an API that both sides speak; false where there is none.
func (c *conn) speaks(key protocol.ApiKey) (int16, bool) {
	if key == protocol.ApiVersions {
		return 0, true
	}
	v, ok := c.versions[key]
	return v, ok
}

// exchange sends request and returns the answer, which is of type T. It ends with ctx, which has a deadline.
func exchange[T protocol.Message](ctx context.Context, c *conn, request protocol.Message) (T, error) {
	var none T
	key := request.ApiKey()
	version, ok := c.speaks(key)
	if !ok {
		return none, fmt.Errorf("the broker speaks no version of %s that is known here", key)
	}
	// A deadline in the past ends what is under way.
	deadline, _ := ctx.Deadline()
	if err := c.raw.SetDeadline(deadline); err != nil {
		return none, err
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.raw.SetDeadline(time.Unix(1, 0))
		close(expired)
	})
	defer func() {
		if !stop() {
			<-expired // else it might be the next request's deadline that is over
		}
	}()
	c.ids++
	c.sent(key)
	if err := protocol.WriteRequest(c.raw, version, c.ids, clientID, request); err != nil {
		return none, because(ctx, fmt.Errorf("send %s: %w", key, err))
	}
	frame, err := readFrame(c.raw, mostOf(request), none, version)
	if err != nil {
		return none, because(ctx, fmt.Errorf("answer to %s: %w", key, err))
	}
	id, message, err := protocol.ReadResponse(bytes.NewReader(frame), key, version)
	if err != nil {
		return none, fmt.Errorf("answer to %s: %w: %w", key, errFrame, err)
	}
	answer, ok := message.(T)
	if !ok || id != c.ids {
		return none, fmt.Errorf("answer to %s: %w: it belongs to another request", key, errFrame)
	}
	return answer, nil
}

// because says why ctx has ended, or will this moment, rather than that a deadline of the connection is over.
func because(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	default:
		return err
	}
}
