package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// running starts the function; its address.
func running(t *testing.T) string {
	t.Helper()
	return runningWith(t, Options{Name: "p1", Drain: 10 * time.Second})
}

func runningWith(t *testing.T, opts Options) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, ln, opts) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return ln.Addr().String()
}

func TestGRPC(t *testing.T) {
	address := running(t)
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-id", "7", "count", "2")
	var out text
	var header metadata.MD
	err = conn.Invoke(ctx, "/function.Echo/Unary", &text{Value: "hello"}, &out, grpc.Header(&header))
	if err != nil || out.GetValue() != "hello" || header.Get("pod")[0] != "p1" {
		t.Errorf("unary: got %q from %v, %v", out.GetValue(), header.Get("pod"), err)
	}
	err = conn.Invoke(metadata.AppendToOutgoingContext(ctx, "code", "6"), "/function.Echo/Unary", &text{}, &out)
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("code 6: got %v", err)
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/function.Echo/Stream")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SendMsg(&text{Value: "word"}), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for err = s.RecvMsg(&out); err == nil; err = s.RecvMsg(&out) {
		got = append(got, out.GetValue())
	}
	if diff := cmp.Diff([]string{"0 word", "1 word"}, got); diff != "" || !errors.Is(err, io.EOF) {
		t.Errorf("stream: %v (-want +got):\n%s", err, diff)
	}
	res, err := http.Get("http://" + address + "/ids")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ids, _ := io.ReadAll(res.Body); !strings.Contains(string(ids), `"duplicates":2`) {
		t.Errorf("ids %s, want one that came three times", ids)
	}
}

func TestWebSocketAndEvents(t *testing.T) {
	address := running(t)
	ws, err := websocket.Dial("ws://"+address+"/ws", "", "http://elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		var back string
		if err := errors.Join(websocket.Message.Send(ws, word), websocket.Message.Receive(ws, &back)); err != nil || back != word {
			t.Errorf("got %q, %v, want %q", back, err, word)
		}
	}
	_ = ws.Close()
	res, err := http.Get("http://" + address + "/events?count=2&delay=1ms")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got []string
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		got = append(got, lines.Text())
	}
	if diff := cmp.Diff([]string{"id: 0", "data: p1", "", "id: 1", "data: p1", ""}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// No event comes before it was let go, and each comes then, though the answer goes on.
func TestEventsOnNext(t *testing.T) {
	address := running(t)
	res, err := http.Get("http://" + address + "/events?count=3&on=next")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for i := range 3 {
		if i > 0 {
			next, err := http.Get("http://" + address + "/next")
			if err != nil {
				t.Fatal(err)
			}
			next.Body.Close()
		}
		for _, want := range []string{fmt.Sprint("id: ", i), "data: p1", ""} {
			if !lines.Scan() || lines.Text() != want {
				t.Fatalf("event %d: got %q, %v, want %q", i, lines.Text(), lines.Err(), want)
			}
		}
	}
	if lines.Scan() {
		t.Errorf("after the last event: %q", lines.Text())
	}
}
