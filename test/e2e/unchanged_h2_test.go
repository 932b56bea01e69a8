//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// talkH2 speaks HTTP/2 without TLS, all on one connection: a HEAD, a body of which nobody says the length and that has
// trailers, and events that are let go by requests beside them.
func talkH2(ctx context.Context, p peer) ([]seen, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	dials := 0
	transport := &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, p.address)
		},
	}
	defer transport.CloseIdleConnections()
	send := func(method, target string, body io.Reader, trailer http.Header) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+p.address+target, body)
		if err != nil {
			return nil, err
		}
		req.Trailer = trailer
		if p.host != "" {
			req.Host = p.host
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, target, err)
		}
		return res, nil
	}
	whole := func(method, target string, body io.Reader, trailer http.Header) (seen, error) {
		res, err := send(method, target, body, trailer)
		if err != nil {
			return seen{}, err
		}
		return see(res)
	}
	head, err := whole(http.MethodHead, "/a%2Fb?x=1", nil, nil)
	if err != nil {
		return nil, err
	}
	long := io.MultiReader(strings.NewReader("hello"), strings.NewReader(strings.Repeat("frames of sixteen", 4<<10)))
	echo, err := whole(http.MethodPost, "/echo?x=1;y=%zz", long, http.Header{"X-In": {"all of it"}})
	if err != nil {
		return nil, err
	}
	res, err := send(http.MethodGet, "/events?count=3&on=next", nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	events, err := seeEvents(res, func() error {
		_, err := whole(http.MethodGet, "/next", nil, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	saw := []seen{head, echo, events}
	for _, a := range saw {
		if a.Status != http.StatusOK {
			return nil, fmt.Errorf("status %d: %.300s", a.Status, a.Body)
		}
	}
	if dials != 1 {
		return nil, fmt.Errorf("%d connections were made; want 1 for all", dials)
	}
	return saw, nil
}

// talkGRPC has a call of each kind: of one message, with an answer of many, of many both ways by turns, one that fails, and
// one whose time is over.
func talkGRPC(ctx context.Context, p peer) ([]seen, error) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithDisableServiceConfig()}
	if p.host != "" {
		options = append(options, grpc.WithAuthority(p.host))
	}
	conn, err := grpc.NewClient("passthrough:///"+p.address, options...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var saw []seen
	for _, c := range []struct {
		method   string
		sends    []string
		byTurns  bool // each message is sent when there is an answer to the one before
		metadata []string
		deadline time.Duration
		code     codes.Code
	}{
		{method: "Unary", sends: []string{"one"}, deadline: callLimit},
		{method: "Stream", sends: []string{"many"}, metadata: []string{"count", "4", "delay", "5ms"}, deadline: callLimit},
		{method: "Chat", sends: []string{"a", "", strings.Repeat("long ", 20<<10)}, byTurns: true, deadline: callLimit},
		{method: "Stream", sends: []string{"failing"}, metadata: []string{"count", "1", "code", "5"}, deadline: callLimit, code: codes.NotFound},
		{method: "Unary", sends: []string{"late"}, metadata: []string{"delay", "1m"}, deadline: time.Second, code: codes.DeadlineExceeded},
	} {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, c.metadata...), c.deadline)
		a, err := callGRPC(ctx, conn, "/function.Echo/"+c.method, c.sends, c.byTurns)
		cancel()
		if err != nil {
			return saw, fmt.Errorf("%s of %.20q: %w", c.method, c.sends, err)
		}
		if a.Status != int(c.code) {
			return saw, fmt.Errorf("%s of %.20q: status %d, want %d", c.method, c.sends, a.Status, c.code)
		}
		saw = append(saw, a)
	}
	return saw, nil
}

// callGRPC makes one call of gRPC, whose end, good or bad, is a part of what is seen.
func callGRPC(ctx context.Context, conn *grpc.ClientConn, method string, sends []string, byTurns bool) (seen, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return seen{}, err
	}
	a := seen{Proto: "gRPC"}
	receive := func() error {
		var m wrapperspb.StringValue
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		a.Body += m.GetValue() + "\n"
		return nil
	}
	for _, text := range sends {
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
			return a, err
		}
		if byTurns {
			if err := receive(); err != nil {
				return a, err
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return a, err
	}
	for err == nil {
		err = receive()
	}
	if !errors.Is(err, io.EOF) {
		a.Status = int(status.Code(err))
	}
	if a.Status == int(codes.DeadlineExceeded) {
		return a, nil // of all else only what came before the client gave up by itself
	}
	header, _ := stream.Header() // of a call that failed before there was one, none
	a.Header, a.Trailer, a.Agreed = headerOf(header), headerOf(stream.Trailer()), status.Convert(err).Message()
	return a, nil
}

// headerOf is md, with the names of trailers in order: they are a set, in however many lines it comes.
func headerOf(md metadata.MD) http.Header {
	h := http.Header{}
	for k, vv := range md {
		if k == "trailer" {
			vv = strings.Split(strings.Join(vv, ", "), ", ")
			slices.Sort(vv)
		}
		h[http.CanonicalHeaderKey(k)] = vv
	}
	return h
}
