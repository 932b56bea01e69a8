package adapter

import "github.com/prometheus/client_golang/prometheus"

// adapterMetrics are the adapter's own.
type adapterMetrics struct {
	certExpiry prometheus.Gauge
	certErrors prometheus.Counter
	apiService *prometheus.GaugeVec
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
			Help: "1 for what each APIService of custom.metrics.k8s.io is: ours, foreign (left alone) or missing.",
		}, []string{"apiservice", "state"}),
	}
}

func (m *adapterMetrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.certExpiry, m.certErrors, m.apiService} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
