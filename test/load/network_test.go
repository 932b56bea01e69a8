package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestRequestsOnTheWire(t *testing.T) {
	type seen struct{ Method, Host, Fixed, ID, Body string }
	var mu sync.Mutex
	var got []seen
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, seen{r.Method, r.Host, r.Header.Get("X-Fixed"), r.Header.Get("X-Id"), string(body)})
	}))
	defer srv.Close()
	header := http.Header{"X-Fixed": {"f"}}
	result := run(t, Options{
		URL: srv.URL, Method: "POST", Host: "hello.example.com", Header: header, Body: []byte("payload"),
		Edit:  func(n int, r *http.Request) { r.Header.Set("X-Id", fmt.Sprint("id-", n)) },
		Steps: []Step{Constant(20, 150*time.Millisecond)},
	})
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b seen) int { return cmp.Compare(a.ID, b.ID) }) // each may come by a connection of its own
	want := []seen{
		{"POST", "hello.example.com", "f", "id-0", "payload"},
		{"POST", "hello.example.com", "f", "id-1", "payload"},
		{"POST", "hello.example.com", "f", "id-2", "payload"},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if len(header) != 1 {
		t.Errorf("Edit changed the caller's header: %v", header)
	}
}

func TestConnections(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprint("fresh=", fresh), func(t *testing.T) {
			var connections atomic.Int32
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					connections.Add(1)
				}
			}
			srv.Start()
			defer srv.Close()
			result := run(t, Options{URL: srv.URL, FreshConnections: fresh, Steps: []Step{Constant(20, time.Second)}})
			if err := result.Err(); err != nil {
				t.Fatal(err)
			}
			if n := int(connections.Load()); fresh && n != 20 || !fresh && n >= 20 {
				t.Errorf("%d connections for 20 requests", n)
			}
		})
	}
}

func TestFailuresOnTheWire(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    Failure
	}{
		{
			name: "status", want: Failure{Status: 503, Message: `{"reason":"queue full"}`},
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(503)
				fmt.Fprintln(w, `{"reason":"queue full"}`)
			},
		},
		{
			name: "a redirect is not followed", want: Failure{Status: 302},
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://192.0.2.1/")
				w.WriteHeader(302)
			},
		},
		{
			name: "an answer that breaks off", want: Failure{Kind: Cut, Message: "answer with status 200 broke off: unexpected EOF"},
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "10")
				fmt.Fprint(w, "half")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			},
		},
		{
			name: "a body that never ends", want: Failure{Kind: TimedOut, Message: "answer with status 200 broke off: context deadline exceeded"},
			handler: func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.handler)
			defer srv.Close()
			timeout := 30 * time.Second
			if tt.want.Kind == TimedOut {
				timeout = time.Second
			}
			got := run(t, Options{URL: srv.URL, Steps: []Step{Constant(1, time.Second)}, Timeout: timeout})
			if len(got.Failures) != 1 || got.Failed() != 1 {
				t.Fatalf("failures = %v, failed = %d", got.Failures, got.Failed())
			}
			f := got.Failures[0]
			f.Latency = 0
			if diff := gocmp.Diff(tt.want, f); diff != "" {
				t.Errorf("failure (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	// A client's address, which nobody else gets, as somebody might that of a listener that was closed.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := run(t, Options{URL: "http://" + conn.LocalAddr().String(), Steps: []Step{Constant(10, time.Second)}})
	if e := got.Errors[Refused]; e.Count != 10 || len(e.Messages) == 0 || len(e.Messages) > MaxMessages {
		t.Errorf("errors = %v, want 10 refused with at most %d messages", got.Errors, MaxMessages)
	}
}

// net/http sends a GET again by itself when the kept connection turns out to be closed. A count of failures alone would
// not show it.
func TestResentIsCounted(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for requests := 0; ; {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			// Each connection answers one request; it reads the next, if there is one, and closes without a word.
			buf := make([]byte, 4096)
			for i := range 2 {
				if _, err := conn.Read(buf); err != nil {
					break
				}
				requests++
				if i == 0 {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}
			_ = conn.Close()
		}
	}()
	got := run(t, Options{URL: "http://" + ln.Addr().String(), Steps: []Step{Constant(20, 150*time.Millisecond)}})
	_ = ln.Close()
	<-served
	if got.Sent != 3 || got.Statuses[200] != 3 || got.Resent == 0 {
		t.Errorf("sent %d, statuses %v, resent %d; want 3 answered and some resent", got.Sent, got.Statuses, got.Resent)
	}
}

func TestTargetsAreRefused(t *testing.T) {
	cluster := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	tests := []struct {
		name  string
		url   string
		allow []netip.Prefix
		want  string
	}{
		{name: "loopback", url: "http://127.0.0.1:1"},
		{name: "any loopback", url: "http://127.8.9.10:1"},
		{name: "loopback v6", url: "http://[::1]:1"},
		{name: "name of loopback", url: "http://localhost:1"},
		{name: "allowed", url: "http://10.96.3.4", allow: cluster},
		{name: "allowed, written as v6", url: "http://[::ffff:10.96.3.4]", allow: cluster},
		{
			name: "outside", url: "http://10.97.0.1", allow: cluster,
			want: "load: target 10.97.0.1: 10.97.0.1 is neither a loopback address nor allowed; name its network in Allow",
		},
		{
			name: "nothing allowed", url: "http://192.0.2.1:80",
			want: "load: target 192.0.2.1:80: 192.0.2.1 is neither a loopback address nor allowed; name its network in Allow",
		},
		{
			name: "unspecified", url: "http://0.0.0.0:80",
			want: "load: target 0.0.0.0:80: 0.0.0.0 is neither a loopback address nor allowed; name its network in Allow",
		},
		{
			name: "mapped", url: "http://[::ffff:192.0.2.1]:80", allow: cluster,
			want: "load: target [::ffff:192.0.2.1]:80: 192.0.2.1 is neither a loopback address nor allowed; name its network in Allow",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(t.Context(), Options{
				URL: tt.url, Allow: tt.allow, Steps: []Step{Constant(1, time.Second)}, MaxRequests: 1,
			})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrForbidden) || err.Error() != tt.want {
				t.Errorf("error = %v\nwant %s", err, tt.want)
			}
		})
	}
}

// The look at the target before the load is for clear words; this is what holds, whatever a name resolves to by then.
func TestTransportRefusesAtTheConnection(t *testing.T) {
	tr := NewTransport(nil, 1)
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://192.0.2.1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := tr.RoundTrip(r)
	if err == nil {
		_ = res.Body.Close()
	}
	if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("error = %v, want %v", err, ErrForbidden)
	}
}
