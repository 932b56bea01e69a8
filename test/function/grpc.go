package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// text is the message of all methods.
type text = wrapperspb.StringValue

// isGRPC tells whether r is a call of gRPC.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// newGRPC serves function.Echo, described by hand so that no code has to be generated. It is served by net/http's HTTP/2,
// on the one port, and waits for its calls as for all others.
func (f *function) newGRPC() *grpc.Server {
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "function.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: f.unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Stream", Handler: f.stream, ServerStreams: true},
			{StreamName: "Chat", Handler: f.chat, ServerStreams: true, ClientStreams: true},
		},
	}, nil)
	return srv
}

// wish is what the metadata of a call asks for.
type wish struct {
	delay time.Duration
	count int
	code  codes.Code
}

// greet tells the pod's name in the header, and reads what the call asks for.
func (f *function) greet(ctx context.Context) (wish, error) {
	w := wish{delay: f.opts.Delay, count: 3}
	_ = grpc.SetHeader(ctx, metadata.Pairs("pod", f.opts.Name)) // fails only where one was sent
	if !f.ready() {
		return w, status.Error(codes.Unavailable, "not ready: the start delay is not over")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	var err error
	if v := md.Get("delay"); len(v) > 0 {
		if w.delay, err = time.ParseDuration(v[0]); err != nil || w.delay < 0 || w.delay > MaxDelay {
			return w, status.Errorf(codes.InvalidArgument, "delay %q: give a duration between 0 and %s", v[0], MaxDelay)
		}
	}
	if v := md.Get("count"); len(v) > 0 {
		if w.count, err = strconv.Atoi(v[0]); err != nil || w.count < 0 || w.count > maxEvents {
			return w, status.Errorf(codes.InvalidArgument, "count %q: give a number between 0 and %d", v[0], maxEvents)
		}
	}
	if v := md.Get("code"); len(v) > 0 {
		n, err := strconv.ParseUint(v[0], 10, 8)
		if err != nil || n > uint64(codes.Unauthenticated) {
			return w, status.Errorf(codes.InvalidArgument, "code %q: give a number between 0 and 16", v[0])
		}
		w.code = codes.Code(n)
	}
	return w, nil
}

func (f *function) unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's order
	in := &text{}
	if err := decode(in); err != nil {
		return nil, err
	}
	w, err := f.greet(ctx)
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, w.delay); err != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if w.code != codes.OK {
		return nil, status.Error(w.code, "as was asked for")
	}
	return in, nil
}

func (f *function) stream(_ any, s grpc.ServerStream) error {
	in := &text{}
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	w, err := f.greet(s.Context())
	if err != nil {
		return err
	}
	for i := range w.count {
		if i > 0 {
			if err := sleep(s.Context(), w.delay); err != nil {
				return status.FromContextError(s.Context().Err()).Err()
			}
		}
		if err := s.SendMsg(&text{Value: fmt.Sprint(i, " ", in.GetValue())}); err != nil {
			return err
		}
	}
	return status.Error(w.code, "as was asked for")
}

func (f *function) chat(_ any, s grpc.ServerStream) error {
	w, err := f.greet(s.Context())
	if err != nil {
		return err
	}
	for {
		in := &text{}
		if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
			return status.Error(w.code, "as was asked for")
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
}
