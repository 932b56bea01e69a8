package activator

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// metrics are the activator's own numbers. Those of functions are read from their stats by functionCollector.
type metrics struct {
	registry    *prometheus.Registry
	coldStart   *prometheus.HistogramVec
	patches     *prometheus.CounterVec
	unrouted    prometheus.Counter
	gateErrors  prometheus.Counter
	gatesFailed prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
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

// functionCollector exposes the counts of all functions. Each function's numbers are of one moment, so held never
// exceeds in flight; a function without a request so far has no series.
type functionCollector struct {
	table                                           *table
	started, inFlight, held, busy, waited, finished *prometheus.Desc
}

func newFunctionCollector(t *table) *functionCollector {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{v1alpha1.LabelNamespace, v1alpha1.LabelFunction}, more...), nil)
	}
	return &functionCollector{
		table:    t,
		started:  desc(v1alpha1.ActivatorStarted, "Requests by their first byte in."),
		inFlight: desc(v1alpha1.ActivatorInFlight, "Requests between first byte in and last byte out, held ones included."),
		held:     desc(v1alpha1.ActivatorHeld, "Requests that wait for a pod."),
		busy:     desc(v1alpha1.ActivatorBusySeconds, "Time integral of the requests in flight."),
		waited:   desc(v1alpha1.ActivatorHeldSeconds, "Time integral of the requests held."),
		finished: desc(v1alpha1.ActivatorFinished, "Requests by their last byte out.", v1alpha1.LabelOutcome),
	}
}

// Describe implements prometheus.Collector.
func (c *functionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.started, c.inFlight, c.held, c.busy, c.waited, c.finished} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *functionCollector) Collect(ch chan<- prometheus.Metric) {
	for _, fn := range c.table.all() {
		n := fn.stats.snapshot()
		if n.started == 0 {
			continue
		}
		send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, t, v, append([]string{fn.key.Namespace, fn.key.Name}, more...)...)
		}
		send(c.started, prometheus.CounterValue, float64(n.started))
		send(c.inFlight, prometheus.GaugeValue, float64(n.inFlight))
		send(c.held, prometheus.GaugeValue, float64(n.held))
		send(c.busy, prometheus.CounterValue, n.busy.seconds())
		send(c.waited, prometheus.CounterValue, n.waited.seconds())
		for o, count := range n.finished {
			if count > 0 {
				send(c.finished, prometheus.CounterValue, float64(count), outcomeNames[o])
			}
		}
	}
}

// newAdminServer serves /metrics, /healthz (the process answers) and /readyz (it serves requests and is not draining).
func newAdminServer(log logr.Logger, m *metrics, ready *atomic.Bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: netLog(log), Registry: m.registry, MaxRequestsInFlight: 10, Timeout: 10 * time.Second,
	}))
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
