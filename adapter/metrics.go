package adapter

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// adapterMetrics are the adapter's own.
type adapterMetrics struct {
	certExpiry prometheus.Gauge
	certErrors prometheus.Counter
	apiService *prometheus.GaugeVec
	upstream   *upstreamMetrics
}

// upstreamMetrics tell of forwarded reads, by the API group of the upstream.
type upstreamMetrics struct {
	requests        *prometheus.CounterVec
	duration        *prometheus.HistogramVec
	discoveryErrors *prometheus.CounterVec
}

func newUpstreamMetrics() *upstreamMetrics {
	return &upstreamMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_adapter_upstream_requests_total",
			Help: "Reads that are not Sluice's, by upstream and its HTTP status, or timeout, error, canceled; or why it was not asked: open, busy, version, loop.",
		}, []string{"upstream", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_adapter_upstream_request_duration_seconds",
			Help:    "Time that forwarded reads took, by upstream.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"upstream"}),
		discoveryErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_adapter_upstream_discovery_errors_total",
			Help: "Failed looks at what an upstream serves.",
		}, []string{"upstream"}),
	}
}

// breakerGauge shows whether u is asked.
func breakerGauge(u *upstream) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "sluice_adapter_upstream_open",
		Help:        "1 while an upstream is not asked because it failed several times in a row.",
		ConstLabels: prometheus.Labels{"upstream": u.group},
	}, func() float64 {
		if u.breaker.State() == gobreaker.StateOpen {
			return 1
		}
		return 0
	})
}

func newAdapterMetrics() *adapterMetrics {
	return &adapterMetrics{
		certExpiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_adapter_certificate_expiry_timestamp_seconds",
			Help: "When the serving certificate in use expires, in Unix seconds.",
		}),
		certErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_adapter_certificate_errors_total",
			Help: "Failed looks at the Secret of the serving certificate or at the APIServices' CA bundle.",
		}),
		apiService: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_adapter_apiservice",
			Help: "1 for what each APIService of the metrics APIs is: ours, foreign (left alone) or missing.",
		}, []string{"apiservice", "state"}),
		upstream: newUpstreamMetrics(),
	}
}

func (m *adapterMetrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		m.certExpiry, m.certErrors, m.apiService, m.upstream.requests, m.upstream.duration, m.upstream.discoveryErrors,
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
