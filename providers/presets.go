package providers

import "github.com/sluice-dev/sluice/api/v1alpha1"

// Names are the names under which a process may expose its figures. Of each list the first of which the exposition
// has a sample is read, and no other: two of them often count the same requests.
type Names struct {
	// Requests are counters. Never empty for a Scrape of a Pod.
	Requests []Series
	// InFlight are gauges.
	InFlight []Series
	// Duration are histograms or summaries.
	Duration []Distribution
	// Except leaves out the series that have one of these labels. A series without the label counts.
	Except []Label
	// ExceptPaths leaves out the series that have a label, of whatever name, with one of these values.
	ExceptPaths []string
}

// Series is all series of one name, which are summed whatever their labels.
type Series struct {
	// Name of the samples, as the text formats write it: with _count or _sum where they are a histogram's.
	Name string
	// Scale makes requests or seconds of the samples.
	Scale float64
}

// Distribution is a histogram or a summary of durations, by its sum, which is in seconds once scaled, and its count.
type Distribution struct{ Sum, Count Series }

// Label is a label with its value.
type Label struct{ Name, Value string }

// preset is what is known of a runtime.
type preset struct {
	Names
	port int32 // 0: that of the function's Service
	path string
}

// probePaths are where kubelets probe the runtimes that say the path of a request in a label, as many as are customary.
// A function whose probes counted would never sleep.
var probePaths = []string{
	"/healthz", "/livez", "/readyz", "/health", "/live", "/ready", "/health/live", "/health/ready",
	"/actuator/health", "/actuator/health/liveness", "/actuator/health/readiness", // Spring Boot
	"/q/health", "/q/health/live", "/q/health/ready", // Quarkus
}

// presets is the whole table. It is tested against what the runtimes themselves expose; see test/runtimes. No gauge is
// read where our own scrape is one of the requests in flight, for then the function would never be idle.
var presets = map[v1alpha1.PodMetricsPreset]preset{
	v1alpha1.Kubeless: {
		port: 8080, path: "/metrics",
		Names: Names{
			Requests: counters("function_calls_total", "kubeless_calls_total"), // the latter by .NET
			Duration: []Distribution{seconds("function_duration_seconds"), seconds("kubeless_function_duration_seconds")},
		},
	},
	v1alpha1.OpenTelemetry: {
		port: 9464, path: "/metrics",
		// The stable semantic conventions; then those before them, by exporters that add units to names and by others.
		Names: Names{
			Requests: counters(
				"http_server_request_duration_seconds_count", "http_server_request_duration_count",
				"http_server_duration_milliseconds_count", "http_server_duration_count"),
			InFlight: counters("http_server_active_requests"),
			Duration: []Distribution{
				seconds("http_server_request_duration_seconds"), seconds("http_server_request_duration"),
				milliseconds("http_server_duration_milliseconds"), milliseconds("http_server_duration"),
			},
			ExceptPaths: probePaths,
		},
	},
	v1alpha1.Istio: {
		port: 15090, path: "/stats/prometheus",
		Names: Names{
			Requests: counters("istio_requests_total"),
			Duration: []Distribution{milliseconds("istio_request_duration_milliseconds")},
			Except:   []Label{{"reporter", "source"}}, // the requests that the pod itself sends
		},
	},
	v1alpha1.Envoy: {
		path: "/stats/prometheus",
		Names: Names{
			Requests: counters("envoy_http_downstream_rq_total"),
			InFlight: counters("envoy_http_downstream_rq_active"),
			Duration: []Distribution{milliseconds("envoy_http_downstream_rq_time")},
			// By the prefix that the configuration gives to statistics: what the admin port and the customary listeners
			// for scrapes are asked, and what the pod itself sends, as Envoy's examples name it.
			Except: []Label{
				{"envoy_http_conn_manager_prefix", "admin"},
				{"http_conn_manager_prefix", "admin"},
				{"envoy_http_conn_manager_prefix", "stats"},
				{"envoy_http_conn_manager_prefix", "envoy_prometheus_metrics"},
				{"envoy_http_conn_manager_prefix", "egress_http"},
				{"envoy_http_conn_manager_prefix", "egress"},
			},
		},
	},
	v1alpha1.Generic: {
		path: "/metrics",
		Names: Names{
			Requests: counters(
				// The guides of Prometheus, and whoever follows them; then where only the histogram is kept.
				"http_requests_total", "http_request_duration_seconds_count",
				// prometheus-net of ASP.NET Core; Micrometer of Spring Boot and Quarkus; Ruby's Rack collector.
				"http_requests_received_total", "http_server_requests_seconds_count", "http_server_requests_total",
				// OpenTelemetry at the application's own port; the last one by Node.
				"http_server_request_duration_seconds_count", "http_server_duration_milliseconds_count",
				"http_server_request_duration_count",
				// Flask's histogram has the path of a request, its counter has not.
				"flask_http_request_duration_seconds_count", "flask_http_request_total",
				"starlette_requests_total", "django_http_requests_before_middlewares_total",
			),
			Duration: []Distribution{
				seconds("http_request_duration_seconds"), seconds("http_server_requests_seconds"),
				seconds("http_server_request_duration_seconds"), milliseconds("http_server_duration_milliseconds"),
				seconds("http_server_request_duration"),
				seconds("flask_http_request_duration_seconds"), seconds("starlette_request_duration_seconds"),
			},
			ExceptPaths: probePaths,
		},
	},
}

func counters(names ...string) []Series {
	s := make([]Series, len(names))
	for i, name := range names {
		s[i] = Series{Name: name, Scale: 1}
	}
	return s
}

func seconds(name string) Distribution      { return distribution(name, 1) }
func milliseconds(name string) Distribution { return distribution(name, 1e-3) }

func distribution(name string, scale float64) Distribution {
	return Distribution{Sum: Series{Name: name + "_sum", Scale: scale}, Count: Series{Name: name + "_count", Scale: 1}}
}

// Names are those of the preset, with those that s names itself in their place. They are not to be written to.
func (s Scrape) Names() Names {
	n := presets[s.Preset].Names
	if s.Requests != "" {
		n.Requests = counters(s.Requests)
	}
	if s.InFlight != "" {
		n.InFlight = counters(s.InFlight)
	}
	if s.Duration != "" {
		n.Duration = []Distribution{seconds(s.Duration)}
	}
	return n
}

// HasInFlight tells whether a gauge of requests in flight is read.
func (s Scrape) HasInFlight() bool { return s.InFlight != "" || len(presets[s.Preset].InFlight) > 0 }

// HasDuration tells whether durations are read.
func (s Scrape) HasDuration() bool { return s.Duration != "" || len(presets[s.Preset].Duration) > 0 }

// PresetPort is the port at which the preset's runtime serves its metrics; 0 where that is the function's own.
func (s Scrape) PresetPort() int32 { return presets[s.Preset].port }

// PresetPath is the path at which the preset's runtime serves its metrics: "/metrics" unless it is known otherwise.
func (s Scrape) PresetPath() string {
	if path := presets[s.Preset].path; path != "" {
		return path
	}
	return "/metrics"
}
