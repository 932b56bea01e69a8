package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The collector hears of every call with an id, once for each time that it comes, whatever it is answered.
func TestCollector(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer conn.Close()
		all, err := io.ReadAll(conn)
		if err != nil {
			all = append(all, err.Error()...)
		}
		heard <- string(all)
	}()
	srv, f := serve(t, Options{Name: "p1", IDsTo: ln.Addr().String()})
	for _, id := range []string{"a", "b", "", "a"} {
		send(t, srv, http.MethodPost, "/", id)
	}
	send(t, srv, http.MethodPost, "/?status=500", "c")
	f.collector.close()
	if got, want := <-heard, "p1 a\np1 b\np1 a\np1 c\n"; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// A call that nobody would count must not look like one that went well.
func TestNoCollector(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	srv, _ := serve(t, Options{Name: "p1", IDsTo: ln.Addr().String()})
	status, body := do(t, srv.Client(), srv.URL+"/", http.MethodPost, "a")
	if status != http.StatusInternalServerError || !strings.Contains(body, "connect to the collector of ids") {
		t.Errorf("answer %d %s", status, body)
	}
	if status, body := do(t, srv.Client(), srv.URL+"/", http.MethodPost, ""); status != http.StatusOK {
		t.Errorf("without an id: %d %s", status, body)
	}
}

func TestUnready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFunction(Options{Name: "p1"})
		ask := func(path string, want int) {
			t.Helper()
			w := httptest.NewRecorder()
			f.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			if w.Code != want {
				t.Errorf("%s: %d, want %d", path, w.Code, want)
			}
		}
		ask("/unready?for=10s", http.StatusOK)
		ask("/healthz", http.StatusServiceUnavailable)
		ask("/", http.StatusOK)
		<-time.After(10 * time.Second)
		ask("/healthz", http.StatusOK)
		ask("/unready?for=ever", http.StatusBadRequest)
	})
}
