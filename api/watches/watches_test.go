package watches

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// server answers from a moment on, and until then with err.
type server struct {
	from  time.Time
	err   error
	asked int
}

func (s *server) RoundTrip(*http.Request) (*http.Response, error) {
	if s.asked++; time.Now().Before(s.from) {
		return nil, s.err
	}
	return &http.Response{StatusCode: http.StatusServiceUnavailable, Body: io.NopCloser(strings.NewReader("starting"))}, nil
}

func TestConfig(t *testing.T) {
	refused := errors.New("connection refused")
	tests := []struct {
		name    string
		method  string
		forever bool          // the request's context never ends
		limit   time.Duration // after which it ends, 0 for not
		away    time.Duration
		want    error
		atMost  time.Duration
	}{
		{name: "there", method: http.MethodGet},
		{name: "back after a minute", method: http.MethodGet, away: time.Minute, atMost: time.Minute + 3*pause/2},
		{name: "back after an hour", method: http.MethodGet, away: time.Hour, atMost: time.Hour + 3*pause/2},
		{name: "the caller leaves", method: http.MethodGet, limit: 5 * time.Second, away: time.Minute, want: refused, atMost: 5 * time.Second},
		{name: "a write", method: http.MethodPatch, away: time.Minute, want: refused},
		{name: "discovery", method: http.MethodGet, forever: true, away: time.Minute, want: refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := &server{from: began.Add(tt.away), err: refused}
				cfg := &rest.Config{Host: "http://api", Transport: s}
				client, err := rest.HTTPClientFor(Config(t.Context(), cfg))
				if err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				if tt.forever {
					ctx = context.Background()
				} else if tt.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.limit)
					defer cancel()
				}
				r, err := http.NewRequestWithContext(ctx, tt.method, "http://api/apis/apps/v1/deployments", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := client.Do(r)
				if !errors.Is(err, tt.want) {
					t.Errorf("error %v, want %v", err, tt.want)
				}
				if err == nil {
					defer res.Body.Close()
					if res.StatusCode != http.StatusServiceUnavailable {
						t.Errorf("status %d: what the server answers is the caller's", res.StatusCode)
					}
				}
				if took := time.Since(began); took > tt.atMost {
					t.Errorf("took %s, want %s at most", took, tt.atMost)
				}
				if most := int(tt.away/(pause/2)) + 2; s.asked > most {
					t.Errorf("asked %d times, want %d at most", s.asked, most)
				}
				if cfg.WrapTransport != nil {
					t.Error("the configuration that was given has changed")
				}
			})
		})
	}
}

// idler is a transport that knows when its idle connections are closed.
type idler struct {
	server
	closed bool
}

func (i *idler) CloseIdleConnections() { i.closed = true }

func TestIdleConnectionsAreClosed(t *testing.T) {
	i := &idler{}
	client, err := rest.HTTPClientFor(Config(t.Context(), &rest.Config{Host: "http://api", Transport: i}))
	if err != nil {
		t.Fatal(err)
	}
	if utilnet.CloseIdleConnectionsFor(client.Transport); !i.closed {
		t.Error("the idle connections of who has stopped watching stay")
	}
}
