// A function measured by otelhttp, with the Prometheus exporter of OpenTelemetry's Go SDK at a port of its own.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
)

func main() {
	exporter, err := prometheus.New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(exporter)))
	go serve(os.Getenv("METRICS_PORT"), promhttp.Handler())

	client := http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport), Timeout: 5 * time.Second}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "OK") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("sleep")) // nothing asked: 0
		<-time.After(time.Duration(ms) * time.Millisecond)
		if url := r.FormValue("call"); url != "" {
			req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
			if err == nil {
				if resp, err := client.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			}
		}
		if r.FormValue("fail") != "" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = fmt.Fprint(w, "hello")
	})
	serve(os.Getenv("PORT"), otelhttp.NewHandler(mux, "function"))
}

func serve(port string, h http.Handler) {
	server := http.Server{Addr: "127.0.0.1:" + port, Handler: h, ReadHeaderTimeout: time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}
