package activator

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// leaver is a client that has sent a request, and what it does to leave.
type leaver func(t *testing.T, address string) (leave func())

// leaves1 is a client of HTTP/1.1 that says these words and closes its connection.
func leaves1(request string) leaver {
	return func(t *testing.T, address string) func() {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, request)
		return func() { _ = conn.Close() }
	}
}

// stuffs is a client whose body fills what the sockets buffer, and that resets its connection.
func stuffs(t *testing.T, address string) func() {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
	for buf := make([]byte, 1<<20); err == nil; {
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = conn.Write(buf)
	}
	return func() {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

// leaves2 is a client of HTTP/2 that leaves by giving up its request, or by closing its connection.
func leaves2(body func() io.Reader, closes bool) leaver {
	return func(t *testing.T, address string) func() {
		t.Helper()
		tr := client(t, onlyH2C)
		var conn net.Conn
		tr.DialContext = func(ctx context.Context, network, address string) (c net.Conn, err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return conn, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		req := newRequest(t, http.MethodPost, "http://"+address, body()).WithContext(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if res, err := tr.RoundTrip(req); err == nil {
				t.Errorf("an answer: %s", res.Status)
				_ = res.Body.Close()
			}
		}()
		return func() {
			if closes {
				_ = conn.Close()
				<-done
			}
			cancel()
			<-done
		}
	}
}

// The place of a client that leaves is free at once where HTTP or the server tells, and else when it was looked for.
func TestClientThatLeavesFreesItsPlace(t *testing.T) {
	// More than the server buffers, less than the sockets do: a client that cannot get rid of its data cannot say that it
	// leaves either.
	big := strings.Repeat("x", 32<<10)
	large := func() io.Reader { return strings.NewReader(strings.Repeat("x", 4<<20)) } // more than a window
	none := func() io.Reader { return nil }
	for _, tt := range []struct {
		name   string
		client leaver
		atOnce bool
	}{
		{"no body", leaves1("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), true},
		{"small body", leaves1("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"), false},
		{"large body", leaves1(fmt.Sprintf("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(big), big)), false},
		{"half a body", leaves1("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc"), false},
		{"body to come", leaves1("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"), false},
		{"reset, with the buffers full", stuffs, false},
		{"HTTP/2 given up, no body", leaves2(none, false), true},
		{"HTTP/2 given up, small body", leaves2(words, false), true},
		{"HTTP/2 given up, large body", leaves2(large, false), true},
		{"HTTP/2 closed, no body", leaves2(none, true), true},
		{"HTTP/2 closed, small body", leaves2(words, true), true},
		{"HTTP/2 closed, large body", leaves2(large, true), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", maxHeld(1)))
			address := strings.TrimPrefix(p.gateURL(fn), "http://")
			// Who is looked for is found a whole interval after it came.
			const promised = 250 * time.Millisecond
			limit := promised + promised/2
			if tt.atOnce {
				limit = promised / 2
			}
			// As often as it takes to catch the machine when it is not busy. Of a place that is free at once the time counts
			// from before its client came, when the first interval cannot have begun.
			times, fastest := 0, time.Hour
			for begin := time.Now(); times == 0 || fastest > limit && time.Since(begin) < 10*time.Second; times++ {
				began := time.Now()
				leave := tt.client(t, address)
				eventually(t, "it is held", func() bool { return held(fn) == 1 })
				if !tt.atOnce {
					began = time.Now()
				}
				leave()
				eventually(t, "its place is free", func() bool { return held(fn) == 0 && p.proxy.held.Load() == 0 })
				fastest = min(fastest, time.Since(began))
			}
			if fastest > limit {
				t.Errorf("its place is free after %s, want %s at most", fastest, limit)
			}
			wantFinished(t, fn, map[outcome]uint64{outcomeClientGone: uint64(times)})
		})
	}
}
