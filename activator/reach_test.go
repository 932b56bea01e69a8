package activator

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// A pod is set aside when it cannot be connected to, and for nothing else: not for being slow, nor for what it answers, nor
// for breaking off, nor for clients that lose their patience.
func TestOnlyPodsThatRefuseAreSetAside(t *testing.T) {
	for _, tt := range []struct {
		name string
		pod  func(t *testing.T) string
		want bool
	}{
		{"slow", func(t *testing.T) string {
			t.Helper()
			return newPod(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		}, false},
		{"says 503", func(t *testing.T) string {
			t.Helper()
			return newPod(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		}, false},
		{"breaks off", func(t *testing.T) string {
			t.Helper()
			return newPod(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}, false},
		{"refuses", refusing, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var good atomic.Int64
			p, fn, url := warm(t, tt.pod(t), newPod(t, func(http.ResponseWriter, *http.Request) { good.Add(1) }))
			subject := fn.pods.Load().ready[0]
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				res, err := http.DefaultTransport.RoundTrip(newRequest(t, http.MethodGet, url, nil).WithContext(ctx))
				if err == nil {
					_ = res.Body.Close()
				}
				cancel()
			}
			eventually(t, "all are over", func() bool { return p.proxy.active.Load() == 0 })
			if got := subject.aside.Load() != nil; got != tt.want {
				t.Errorf("set aside: got %v, want %v", got, tt.want)
			}
			if n := good.Load(); !tt.want && n == 50 {
				t.Error("the other pod got all requests")
			}
			if subject.aside.Load() != nil {
				eventually(t, "it may be tried again", subject.usable)
			}
		})
	}
}
