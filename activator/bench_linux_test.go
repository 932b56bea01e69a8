package activator

import (
	"context"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"github.com/go-logr/logr"
)

// BenchmarkWarm compares a warm request through the gate with one through the least that net/http/httputil needs, in
// the same run: go test -run - -bench Warm -benchmem ./activator. cpu-ns/op is of the whole process, of which the client
// and the pod are as little as can be; unlike ns/op it can be read on a busy machine. `make bench-gate PARTS=warm` measures
// the same between processes.
func BenchmarkWarm(b *testing.B) {
	pod := warmPod(b)
	gate, minimal := warmSubjects(b, pod)
	bound, _ := warmSubjects(b, pod, limited(1000))
	for _, bb := range []struct {
		name   string
		server func() *http.Server
	}{
		{"direct", nil},
		{"gate", func() *http.Server { return newServer(context.Background(), logr.Discard(), gate) }},
		{"gate with a limit", func() *http.Server { return newServer(context.Background(), logr.Discard(), bound) }},
		{"ReverseProxy", func() *http.Server { return &http.Server{Handler: minimal} }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			address := pod
			if bb.server != nil {
				front := httptest.NewUnstartedServer(nil)
				front.Config = bb.server()
				front.Start()
				defer front.Close()
				address = front.Listener.Addr().String()
			}
			b.ReportAllocs()
			b.SetParallelism(16)
			before := cpuTime(b)
			b.RunParallel(func(pb *testing.PB) {
				c, err := dialWarm(b.Context(), address)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.conn.Close()
				for request := []byte(warmRequest); pb.Next(); {
					if err := c.ask(request); err != nil {
						b.Error(err)
						return
					}
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
