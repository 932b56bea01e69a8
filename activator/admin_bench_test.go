package activator

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"
)

// discard is an answer that nobody reads.
type discard struct {
	header http.Header
	code   int
	bytes  int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(code int)        { d.code = code }
func (d *discard) Write(b []byte) (int, error) { d.bytes += len(b); return io.Discard.Write(b) }

// BenchmarkMetrics10kFunctions is one answer to a scrape of an activator with 10,000 functions that have had requests:
// "full" where a figure has changed, "unchanged" where none has.
func BenchmarkMetrics10kFunctions(b *testing.B) {
	functions := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
	for i := range 10_000 {
		obj := newTestFunction(fmt.Sprintf("function-%05d", i))
		functions.setFunction(obj)
		fn := functions.functions[obj.Key()]
		fn.stats.start()
		fn.stats.finish(outcomeOK)
	}
	var ready atomic.Bool
	m := newMetrics()
	m.functions.table = functions
	handler := newAdminServer(logr.Discard(), m, &ready).Handler
	etag := ""
	serve := func(b *testing.B, want int) {
		b.ReportAllocs()
		size := 0
		for b.Loop() {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			if want == http.StatusNotModified {
				r.Header.Set("If-None-Match", etag)
			}
			w := &discard{header: http.Header{}, code: http.StatusOK}
			handler.ServeHTTP(w, r)
			if etag, size = w.header.Get("ETag"), w.bytes; w.code != want {
				b.Fatalf("status %d, want %d", w.code, want)
			}
		}
		b.ReportMetric(float64(size), "bytes")
	}
	b.Run("full", func(b *testing.B) { serve(b, http.StatusOK) })
	b.Run("unchanged", func(b *testing.B) { serve(b, http.StatusNotModified) })
}
