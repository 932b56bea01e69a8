// A function measured by client_golang's promhttp under the names of the Prometheus guides.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func main() {
	requests := promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total", Help: "Requests by status code and method.",
	}, []string{"code", "method"})
	duration := promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds", Help: "Durations of requests.",
		NativeHistogramBucketFactor: 1.1, // beside the classic buckets; only protobuf shows it
		Buckets:                     prometheus.DefBuckets,
	}, []string{"code", "method"})
	inFlight := promauto.NewGauge(prometheus.GaugeOpts{
		Name: "http_requests_in_flight", Help: "Requests in flight.",
	})
	function := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("sleep")) // nothing asked: 0
		<-time.After(time.Duration(ms) * time.Millisecond)
		if r.FormValue("fail") != "" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = fmt.Fprint(w, "hello")
	})
	http.Handle("/", promhttp.InstrumentHandlerInFlight(inFlight,
		promhttp.InstrumentHandlerCounter(requests, promhttp.InstrumentHandlerDuration(duration, function))))
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "OK") })
	http.Handle("/metrics", promhttp.InstrumentMetricHandler(prometheus.DefaultRegisterer, promhttp.HandlerFor(
		prometheus.DefaultGatherer, promhttp.HandlerOpts{EnableOpenMetrics: true})))
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadHeaderTimeout: time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
