// A stand-in for Istio's sidecar, whose build of Envoy with the istio.stats filter is in no package registry: a proxy
// before a function that writes Istio's metrics with Istio's labels, units and buckets through a real exposition
// writer. What is written of it is constructed, not captured.
//
// Of requests to the pod it says reporter="destination", of those that the pod sends reporter="source", both in the one
// exposition at 15090. Kubelet's probes do not come through the proxy: Istio rewrites them to its agent, which asks the
// function itself.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

var names = []string{
	"response_code", "reporter", "source_workload", "source_workload_namespace", "source_principal", "source_app",
	"source_version", "source_cluster", "destination_workload", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_service",
	"destination_service_name", "destination_service_namespace", "destination_cluster", "request_protocol",
	"response_flags", "grpc_response_status", "connection_security_policy", "source_canonical_service",
	"destination_canonical_service", "source_canonical_revision", "destination_canonical_revision",
}

type sidecar struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func (s *sidecar) count(reporter string, code int, began time.Time) {
	source, destination, security := "client", "function", "mutual_tls"
	if reporter == "source" {
		source, destination, security = "function", "elsewhere", "unknown"
	}
	principal := func(of string) string { return "spiffe://cluster.local/ns/default/sa/" + of }
	labels := []string{
		strconv.Itoa(code), reporter, source, "default", principal(source), source, "v1", "Kubernetes", destination,
		"default", principal(destination), destination, "v1", destination + ".default.svc.cluster.local", destination,
		"default", "Kubernetes", "http", "-", "", security, source, destination, "v1", "v1",
	}
	s.requests.WithLabelValues(labels...).Inc()
	s.duration.WithLabelValues(labels...).Observe(float64(time.Since(began).Milliseconds()))
}

func main() {
	registry := prometheus.NewRegistry()
	s := &sidecar{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_requests_total"}, names),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_request_duration_milliseconds",
			Buckets: []float64{
				0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
			},
		}, names),
	}
	registry.MustRegister(s.requests, s.duration)
	statistics := http.NewServeMux()
	statistics.Handle("/stats/prometheus", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	go serve(os.Getenv("METRICS_PORT"), statistics)

	inbound := http.NewServeMux()
	inbound.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "OK") })
	inbound.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		began, code := time.Now(), http.StatusOK
		ms, _ := strconv.Atoi(r.FormValue("sleep")) // nothing asked: 0
		<-time.After(time.Duration(ms) * time.Millisecond)
		if url := r.FormValue("call"); url != "" {
			s.call(r, url)
		}
		if r.FormValue("fail") != "" {
			code = http.StatusInternalServerError
		}
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, "hello")
		s.count("destination", code, began)
	})
	serve(os.Getenv("PORT"), inbound)
}

// call is a request that the function itself sends, which the same sidecar counts.
func (s *sidecar) call(r *http.Request, url string) {
	began, code := time.Now(), http.StatusServiceUnavailable
	if req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil); err == nil {
		if resp, err := http.DefaultClient.Do(req); err == nil {
			code = resp.StatusCode
			_ = resp.Body.Close()
		}
	}
	s.count("source", code, began)
}

func serve(port string, h http.Handler) {
	server := http.Server{Addr: "127.0.0.1:" + port, Handler: h, ReadHeaderTimeout: time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
