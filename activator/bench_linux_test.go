package activator

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
)

// BenchmarkWarm compares a warm request through the gate with one through the least that net/http/httputil needs, in
// the same run: go test -run - -bench Warm -benchmem ./activator. cpu-ns/op is of the whole process, the client and the
// pod included; unlike ns/op it can be read on a busy machine.
func BenchmarkWarm(b *testing.B) {
	pod := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer pod.Close()
	target, err := url.Parse(pod.URL)
	if err != nil {
		b.Fatal(err)
	}

	tb := newTable(func(int32, *function) {})
	tb.setFunction(newTestFunction("hello"))
	tb.setSlice(newSlice("hello", 0, target.Host, true))
	p := newProxy(logr.Discard(), newMetrics(), nil, DefaultOptions())
	defer p.transport.CloseIdleConnections()

	for _, bb := range []struct {
		name    string
		handler http.Handler
	}{
		{"gate", gateHandler(tb.functions[newTestFunction("hello").Key()], p)},
		{"ReverseProxy", &httputil.ReverseProxy{
			Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(target) },
			Transport: p.transport,
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			front := httptest.NewServer(bb.handler)
			defer front.Close()
			client := &http.Transport{MaxIdleConnsPerHost: 64}
			defer client.CloseIdleConnections()
			b.ReportAllocs()
			b.SetParallelism(16)
			before := cpuTime(b)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, front.URL, nil)
					if err != nil {
						b.Error(err)
						return
					}
					res, err := client.RoundTrip(req)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			})
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
