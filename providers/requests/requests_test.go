package requests

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

func TestMeasure(t *testing.T) {
	exposes := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_, _ = io.WriteString(w, body)
		}
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    *providers.Reading
		is      error
		says    string
	}{
		{name: "counts", handler: exposes("calls_total 5\n"), want: &providers.Reading{Started: 5}},
		{
			name: "hangs before the answer",
			handler: func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
			},
			is: context.DeadlineExceeded,
		},
		{
			name: "hangs inside the answer",
			handler: func(w http.ResponseWriter, r *http.Request) {
				exposes("calls_total 5\n")(w, r)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			},
			is: context.DeadlineExceeded,
		},
		{
			name: "floods",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("calls_total 5\n", 1000)); err != nil {
						return
					}
				}
			},
			is: providers.ErrInvalid, says: "too large",
		},
		{
			name: "floods in one line",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("x", 10000)); err != nil {
						return
					}
				}
			},
			is: providers.ErrInvalid, says: "too long",
		},
		{
			name: "invokes the function instead",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				_, _ = io.WriteString(w, "calls_total 5\n")
			},
			is: providers.ErrInvalid, says: "content type",
		},
		{
			name:    "has no metrics",
			handler: http.NotFound,
			is:      providers.ErrInvalid, says: "404",
		},
		{
			name: "sends elsewhere",
			handler: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
			},
			is: providers.ErrInvalid, says: "302",
		},
		{
			name: "drips",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				for drop := time.Tick(time.Millisecond); r.Context().Err() == nil; <-drop {
					_, _ = io.WriteString(w, "c")
					w.(http.Flusher).Flush()
				}
			},
			is: context.DeadlineExceeded,
		},
		{
			name: "floods in its header",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				for range 200 {
					w.Header().Add("X", strings.Repeat("x", 1000))
				}
				exposes("calls_total 5\n")(w, nil)
			},
			says: "header",
		},
		{
			name: "floods, packed",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				for range 100 {
					_, _ = z.Write(bytes.Repeat([]byte("# nothing\n"), 10_000))
				}
				_ = z.Close()
			},
			is: providers.ErrInvalid, says: "too large",
		},
		{
			name: "packs unasked",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0")
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				_, _ = io.WriteString(z, "calls_total 5\n# EOF\n")
				_ = z.Close()
			},
			want: &providers.Reading{Started: 5},
		},
		{
			name: "breaks off, packed",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				var packed bytes.Buffer
				z := gzip.NewWriter(&packed)
				_, _ = io.WriteString(z, "calls_total 5\n")
				_ = z.Close()
				w.Header().Set("Content-Length", "1000")
				w.Header().Set("Content-Encoding", "gzip")
				exposes(packed.String()[:packed.Len()-1])(w, nil)
			},
			is: io.ErrUnexpectedEOF,
		},
		{
			name: "breaks off",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				exposes("calls_total 5\n")(w, r)
			},
			is: io.ErrUnexpectedEOF,
		},
		{name: "lies", handler: exposes("calls_total -5\n"), is: providers.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			scraper := NewScraper()
			defer scraper.Close()
			deadline := 10 * time.Second
			if errors.Is(tt.is, context.DeadlineExceeded) {
				deadline = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			m, err := scraper.Measure(ctx, podTarget(server))
			if tt.is != nil && !errors.Is(err, tt.is) || (err == nil) != (tt.want != nil) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error = %v, want %v that says %q", err, tt.is, tt.says)
			}
			if tt.want != nil && m.Functions[hello] != *tt.want {
				t.Errorf("reading = %+v, want %+v", m.Functions[hello], *tt.want)
			}
		})
	}
}

func podTarget(server *httptest.Server) providers.Target {
	return providers.Target{
		Kind: providers.Pod, Function: hello, Address: strings.TrimPrefix(server.URL, "http://"),
		Scrape: providers.Scrape{Path: "/metrics", Requests: "calls_total"},
	}
}

func TestMeasureRefused(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	target := podTarget(server)
	server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	if _, err := scraper.Measure(t.Context(), target); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error = %v, want %v", err, syscall.ECONNREFUSED)
	}
}

func TestConnectionIsKept(t *testing.T) {
	addresses := map[string]bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addresses[r.RemoteAddr] = true
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "calls_total 5\n")
	}))
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	for range 5 {
		if _, err := scraper.Measure(t.Context(), podTarget(server)); err != nil {
			t.Fatal(err)
		}
	}
	if len(addresses) != 1 {
		t.Errorf("5 measurements took %d connections", len(addresses))
	}
}
