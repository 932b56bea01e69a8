package providers

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collectorMetrics are the Collector's own.
type collectorMetrics struct {
	scrapes  *prometheus.CounterVec
	duration *prometheus.HistogramVec
	stats    *statsCollector
}

func newCollectorMetrics(store *Store) *collectorMetrics {
	m := &collectorMetrics{
		scrapes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_adapter_scrapes_total",
			Help: "Attempts to measure a target, by its kind and outcome: ok, timeout, refused, invalid, error.",
		}, []string{"kind", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_adapter_scrape_duration_seconds",
			Help:    "Duration of attempts to measure a target, by its kind.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}, []string{"kind"}),
		stats: &statsCollector{
			store:     store,
			functions: prometheus.NewDesc("sluice_adapter_functions", "Functions known.", nil, nil),
			targets:   prometheus.NewDesc("sluice_adapter_targets", "Targets that are measured, by kind.", []string{"kind"}, nil),
			series:    prometheus.NewDesc("sluice_adapter_series", "Series remembered: functions by the targets that count them.", nil, nil),
		},
	}
	for _, k := range []Kind{Activator, Pod, Query, Lag} { // so that an outcome reads 0 before it first happens
		for _, o := range []string{"ok", "timeout", "refused", "invalid", "error"} {
			m.scrapes.WithLabelValues(string(k), o)
		}
	}
	return m
}

func (m *collectorMetrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.scrapes, m.duration, m.stats} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *collectorMetrics) observe(k Kind, err error, took time.Duration) {
	m.scrapes.WithLabelValues(string(k), outcome(err)).Inc()
	m.duration.WithLabelValues(string(k)).Observe(took.Seconds())
}

// statsCollector reads the Store when it is asked.
type statsCollector struct {
	store                      *Store
	functions, targets, series *prometheus.Desc
}

func (c *statsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.functions
	ch <- c.targets
	ch <- c.series
}

func (c *statsCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	st := c.store.Stats()
	gauge(c.functions, st.Functions)
	gauge(c.targets, st.Activators, string(Activator))
	gauge(c.targets, st.Pods, string(Pod))
	gauge(c.targets, st.Queries, string(Query))
	gauge(c.series, st.Series)
}
