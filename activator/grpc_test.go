package activator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// text is the message of all methods of the test's service.
type text = wrapperspb.StringValue

// grpcService is written by hand, so that no code has to be generated.
var grpcService = grpc.ServiceDesc{
	ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: grpcUnary}},
	Streams: []grpc.StreamDesc{{StreamName: "Chat", Handler: grpcChat, ServerStreams: true, ClientStreams: true}},
}

// grpcUnary returns the message, and in header and trailer what the metadata holds under "tell". "fail" in the metadata
// makes it an error, which gRPC answers by trailers only; "hang" waits for the deadline.
func grpcUnary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's order
	in := &text{}
	if err := decode(in); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if md.Get("fail") != nil {
		return nil, status.Error(codes.AlreadyExists, "two\nlines, and ü")
	}
	if md.Get("hang") != nil {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs("told-bin", strings.Join(md.Get("tell"), "\x00")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("told-at-the-end", strings.Join(md.Get("tell"), ",")))
	return in, nil
}

// grpcChat answers each message with as many as it says, "2 word", and ends with an error if the last was "bye".
func grpcChat(_ any, s grpc.ServerStream) error {
	for last := ""; ; {
		in := &text{}
		switch err := s.RecvMsg(in); {
		case errors.Is(err, io.EOF) && last == "bye":
			s.SetTrailer(metadata.Pairs("parting", "word"))
			return status.Error(codes.FailedPrecondition, "bye")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		last = in.GetValue()
		n := 0
		_, _ = fmt.Sscan(last, &n)
		for i := range n {
			if err := s.SendMsg(&text{Value: fmt.Sprint(i, " ", last)}); err != nil {
				return err
			}
		}
	}
}

// newGRPCPod is a pod that serves gRPC with grpc-go's own HTTP/2.
func newGRPCPod(t *testing.T, opts ...grpc.ServerOption) string {
	t.Helper()
	srv := grpc.NewServer(opts...)
	srv.RegisterService(&grpcService, nil)
	ln := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return ln.Addr().String()
}

// grpcDial connects to a door, for authority where that is not its address.
func grpcDial(t *testing.T, address, authority string) *grpc.ClientConn {
	t.Helper()
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}),
	}
	if authority != "" {
		opts = append(opts, grpc.WithAuthority(authority))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// said is all that a client of gRPC sees of a call.
type said struct {
	Messages        []string
	Header, Trailer metadata.MD
	Code            codes.Code
	Message         string
}

func newSaid(messages []string, header, trailer metadata.MD, err error) said {
	for _, md := range []metadata.MD{header, trailer} {
		delete(md, "date")                           // a gate must add one
		delete(md, strings.ToLower(headerColdStart)) // of the gate's own
	}
	if announced := strings.Join(header["trailer"], ", "); announced != "" {
		header["trailer"] = slices.Sorted(slices.Values(strings.Split(announced, ", "))) // a list, on however many lines
	}
	s := status.Convert(err)
	return said{messages, header, trailer, s.Code(), s.Message()}
}

func unary(ctx context.Context, conn *grpc.ClientConn, word string) said {
	var out text
	var header, trailer metadata.MD
	err := conn.Invoke(ctx, "/test.Echo/Unary", &text{Value: word}, &out, grpc.Header(&header), grpc.Trailer(&trailer))
	return newSaid([]string{out.GetValue()}, header, trailer, err)
}

// chat sends the words, each after the answers to the one before it.
func chat(ctx context.Context, conn *grpc.ClientConn, words ...string) said {
	s, err := conn.NewStream(ctx, &grpcService.Streams[0], "/test.Echo/Chat")
	if err != nil {
		return newSaid(nil, nil, nil, err)
	}
	var got []string
	for _, word := range words {
		if err = s.SendMsg(&text{Value: word}); err != nil {
			break
		}
		n := 0
		_, _ = fmt.Sscan(word, &n)
		for range n {
			var out text
			if err = s.RecvMsg(&out); err != nil {
				break
			}
			got = append(got, out.GetValue())
		}
	}
	_ = s.CloseSend()
	if err = s.RecvMsg(&text{}); errors.Is(err, io.EOF) {
		err = nil
	}
	header, _ := s.Header()
	return newSaid(got, header, s.Trailer(), err)
}

func TestDeadlinesOfGRPC(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", h2cPort))
	conn := grpcDial(t, strings.TrimPrefix(p.gateURL(fn), "http://"), "")
	call := func() said {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return unary(metadata.AppendToOutgoingContext(ctx, "hang", ""), conn, "x")
	}
	if got := call(); got.Code != codes.DeadlineExceeded {
		t.Errorf("held: got %v %q, want DeadlineExceeded", got.Code, got.Message)
	}
	eventually(t, "its place is free", func() bool { return held(fn) == 0 })
	p.pods("hello", newGRPCPod(t))
	if got := call(); got.Code != codes.DeadlineExceeded {
		t.Errorf("at the pod: got %v %q, want DeadlineExceeded", got.Code, got.Message)
	}
	wantInFlight(t, fn, 0)
	if got := unary(t.Context(), conn, "x"); got.Code != codes.OK {
		t.Errorf("the next on the same connection: got %v %q, want OK", got.Code, got.Message)
	}
}

// A stream that a pod does not finish ends as one does whose server is gone: Unavailable, which clients may try again.
func TestAGRPCStreamThatBreaksOff(t *testing.T) {
	srv := grpc.NewServer()
	srv.RegisterService(&grpcService, nil)
	ln := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	_, fn, url := warmH2C(t, ln.Addr().String())
	s, err := grpcDial(t, strings.TrimPrefix(url, "http://"), "").NewStream(t.Context(), &grpcService.Streams[0], "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&text{Value: "1 word"}); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&text{}); err != nil {
		t.Fatal(err)
	}
	srv.Stop()
	<-done
	if got := newSaid(nil, nil, nil, s.RecvMsg(&text{})); got.Code != codes.Unavailable || !strings.Contains(got.Message, "broke off") {
		t.Errorf("got %v %q, want Unavailable", got.Code, got.Message)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeUpstreamError: 1})
}
