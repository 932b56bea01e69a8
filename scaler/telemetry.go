package scaler

import (
	"github.com/prometheus/client_golang/prometheus"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
)

// telemetry is the scaler's own metrics, beside those that controller-runtime serves of its queues and clients.
type telemetry struct {
	decisions    *prometheus.CounterVec
	pollSeconds  prometheus.Histogram
	pollFailures *prometheus.CounterVec
	proofs       *prometheus.CounterVec
	// blindSleepers is set by the poller.
	blindSleepers prometheus.Gauge
}

func newTelemetry() *telemetry {
	return &telemetry{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scaler_transitions_total",
			Help: "Changes of scale or path that were decided and carried out, by reason.",
		}, []string{"reason"}),
		pollSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sluice_scaler_poll_seconds",
			Help:    "Time to read the metrics of all functions that are awake, or that a metric may wake.",
			Buckets: []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5},
		}),
		pollFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scaler_poll_failures_total",
			Help: "List calls to the custom metrics API that failed, by metric; external is all that are not of requests.",
		}, []string{"metric"}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scaler_proofs_total",
			Help: "Proofs that a data path reaches the gate, by result: proven or unproven.",
		}, []string{"result"}),
		blindSleepers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_scaler_blind_sleepers",
			Help: "Functions that sleep while a metric that would wake them is unknown.",
		}),
	}
}

// register adds the metrics to what the manager serves; the function that it returns takes them out again, so that
// Run can run again in the same process.
func (t *telemetry) register() (func(), error) {
	all := []prometheus.Collector{t.decisions, t.pollSeconds, t.pollFailures, t.proofs, t.blindSleepers}
	done := func() {
		for _, c := range all {
			crmetrics.Registry.Unregister(c)
		}
	}
	for _, c := range all {
		if err := crmetrics.Registry.Register(c); err != nil {
			done()
			return nil, err
		}
	}
	return done, nil
}
