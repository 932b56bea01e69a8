package activator

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// metrics are the activator's own numbers. Those of functions are read from their stats when they are asked for.
type metrics struct {
	registry    *prometheus.Registry
	functions   functionFigures
	coldStart   *prometheus.HistogramVec
	patches     *prometheus.CounterVec
	unrouted    prometheus.Counter
	gateErrors  prometheus.Counter
	gatesFailed prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), functions: newFunctionFigures(),
		coldStart: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_cold_start_seconds",
			Help: "Time of requests that found no ready pod, by phase: hold (waiting for a pod), patch (one write of the scale), " +
				"first_byte (from sending the request to the pod's answer).",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60},
		}, []string{"phase"}),
		patches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_wake_patches_total",
			Help: "Patches of a workload's scale by outcome: woken, already_awake (it had replicas, nothing was written), error.",
		}, []string{"outcome"}),
		unrouted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_unrouted_requests_total",
			Help: "Requests at the shared door whose Host no Function declares.",
		}),
		gateErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_gate_open_errors_total",
			Help: "Attempts to open a function's gate port that failed.",
		}),
		gatesFailed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_gate_ports_failed",
			Help: "Gate ports that should be open and are not.",
		}),
	}
	for _, o := range []string{"woken", "already_awake", "error"} {
		m.patches.WithLabelValues(o)
	}
	m.registry.MustRegister(m.coldStart, m.patches, m.unrouted, m.gateErrors, m.gatesFailed,
		collectors.NewGoCollector(),
		// Its process_start_time_seconds tells the adapter that counters began anew.
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gather implements prometheus.Gatherer: all families, in the order of their names.
func (m *metrics) Gather() ([]*dto.MetricFamily, error) {
	families, err := m.registry.Gather()
	families = append(families, m.functions.families()...)
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, err
}

// serve answers scrapes. Whoever sends the entity tag of its last answer learns by a 304 that the figures of functions
// are still the same; those of the process are then not told. Prometheus sends none.
func (m *metrics) serve(log logr.Logger) http.Handler {
	// A slow reader is bounded by the server's WriteTimeout; gathering waits for nothing.
	exposition := promhttp.HandlerFor(m, promhttp.HandlerOpts{
		ErrorLog: netLog(log), Registry: m.registry, MaxRequestsInFlight: 10,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The tag is older than the figures: if one changes in between, it is told now and, as the tag is not that of
		// then, told again.
		tag := m.functions.tag()
		w.Header().Set("ETag", tag)
		w.Header().Set("Cache-Control", "no-store")
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		exposition.ServeHTTP(w, r)
	})
}

// newAdminServer serves /metrics, /healthz (the process answers) and /readyz (it serves requests and is not draining).
func newAdminServer(log logr.Logger, m *metrics, ready *atomic.Bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.serve(log))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "not serving: the watches have not synced, or the activator is draining", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return &http.Server{
		Handler: mux, ErrorLog: netLog(log),
		ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute,
	}
}
