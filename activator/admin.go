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
	probes      *prometheus.CounterVec
	unrouted    prometheus.Counter
	misdirected prometheus.Counter
	statics     prometheus.Counter
	spans       *prometheus.CounterVec
	gateErrors  prometheus.Counter
	gatesFailed prometheus.Gauge
	limitWait   prometheus.Histogram
	handedOn    prometheus.Counter
	unconfirmed prometheus.Counter

	refusedHandshakes *prometheus.CounterVec
	badCertificates   prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), functions: newFunctionFigures(),
		coldStart: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_cold_start_seconds",
			Help: "Time of requests that found no ready pod, by phase: hold (waiting for a pod), patch (one write of the scale), " +
				"address (from that write to the address of a pod), probe (from the address until the pod was proven ahead of " +
				"Ready), first_byte (from sending the request to the pod's answer).",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60},
		}, []string{"phase"}),
		patches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_wake_patches_total",
			Help: "Patches of a workload's scale by outcome: woken, already_awake (it had replicas, nothing was written), error.",
		}, []string{"outcome"}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_pod_probes_total",
			Help: "Pods that were probed ahead of Ready by outcome: proven, unsupported (its probes cannot be run from here), " +
				"ended (it was ready first, or gone, or no request waited any more).",
		}, []string{"outcome"}),
		unrouted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_unrouted_requests_total",
			Help: "Requests at the shared door whose Host no Function declares.",
		}),
		misdirected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_misdirected_requests_total",
			Help: "Requests at the shared door over TLS whose Host is not one of the function that the connection was made to.",
		}),
		statics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_static_answers_total",
			Help: "Requests that were answered by spec.activation.static while their function had no ready pod; not traffic.",
		}),
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_trace_spans_total",
			Help: "Spans of requests by outcome: exported, dropped (the queue was full), failed (the receiver did not take them).",
		}, []string{"outcome"}),
		refusedHandshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_tls_handshakes_refused_total",
			Help: "Handshakes at the shared door that were refused by reason: unknown_host (no Function with a certificate declares " +
				"the name, or there was none), no_certificate (it cannot be read).",
		}, []string{"reason"}),
		badCertificates: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_tls_certificates_bad",
			Help: "Functions whose certificate cannot be read, is not valid now, or is not for all their hosts.",
		}),
		limitWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_limit_wait_seconds",
			Help:    "Time that requests waited because all pods that they might go to had as many as concurrency.limit allows.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		handedOn: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_handed_on_requests_total",
			Help: "Requests, and connections of TCP, of functions with a concurrency.limit that another activator sent to its pod.",
		}),
		unconfirmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_claims_unconfirmed_total",
			Help: "Pods of functions with a concurrency.limit that were taken over though an activator did not say what it has there.",
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
	for _, o := range []string{probeProven, probeUnsupported, probeEnded} {
		m.probes.WithLabelValues(o)
	}
	for _, o := range []string{handshakeUnknownHost, handshakeNoCertificate} {
		m.refusedHandshakes.WithLabelValues(o)
	}
	for _, o := range []string{spanExported, spanDropped, spanFailed} {
		m.spans.WithLabelValues(o)
	}
	m.registry.MustRegister(m.misdirected, m.statics, m.spans, m.refusedHandshakes, m.badCertificates, m.coldStart, m.patches, m.probes, m.unrouted,
		m.gateErrors, m.gatesFailed, m.limitWait, m.handedOn, m.unconfirmed,
		collectors.NewGoCollector(),
		// Its process_start_time_seconds tells the adapter that counters began anew.
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Outcomes of probing a pod.
const (
	probeProven      = "proven"
	probeUnsupported = "unsupported"
	probeEnded       = "ended"
)

func (m *metrics) probe(outcome string) { m.probes.WithLabelValues(outcome).Inc() }

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

// newAdminServer serves /metrics, /healthz (the process answers) and /readyz (it serves requests and is not draining), and
// what else is added.
func newAdminServer(log logr.Logger, m *metrics, ready *atomic.Bool, add ...func(*http.ServeMux)) *http.Server {
	mux := http.NewServeMux()
	for _, a := range add {
		a(mux)
	}
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
