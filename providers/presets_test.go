package providers_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

func TestPresets(t *testing.T) {
	tests := []struct {
		preset            v1alpha1.PodMetricsPreset
		port              int32
		path              string
		gauge, durations  bool
		firstOfCandidates string
	}{
		{"", 0, "/metrics", false, false, ""},
		{v1alpha1.Kubeless, 8080, "/metrics", false, true, "function_calls_total"},
		{v1alpha1.OpenTelemetry, 9464, "/metrics", true, true, "http_server_request_duration_seconds_count"},
		{v1alpha1.Istio, 15090, "/stats/prometheus", false, true, "istio_requests_total"},
		{v1alpha1.Envoy, 0, "/stats/prometheus", true, true, "envoy_http_downstream_rq_total"},
		{v1alpha1.Generic, 0, "/metrics", false, true, "http_requests_total"},
	}
	for _, tt := range tests {
		t.Run(string(tt.preset), func(t *testing.T) {
			s := providers.Scrape{Preset: tt.preset}
			got := []any{s.PresetPort(), s.PresetPath(), s.HasInFlight(), s.HasDuration()}
			if diff := cmp.Diff([]any{tt.port, tt.path, tt.gauge, tt.durations}, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
			n := s.Names()
			if tt.firstOfCandidates != "" && n.Requests[0].Name != tt.firstOfCandidates {
				t.Errorf("requests are counted by %s first, want %s", n.Requests[0].Name, tt.firstOfCandidates)
			}
			if (len(n.InFlight) > 0) != tt.gauge || (len(n.Duration) > 0) != tt.durations {
				t.Errorf("names %+v do not agree with HasInFlight and HasDuration", n)
			}
		})
	}
}

// TestOwnNames wants a Function's own names in the place of the preset's, each for itself, and the preset as it was.
func TestOwnNames(t *testing.T) {
	s := providers.Scrape{Preset: v1alpha1.Envoy, InFlight: "now", Duration: "took_seconds"}
	n := s.Names()
	want := providers.Names{
		Requests: []providers.Series{{Name: "envoy_http_downstream_rq_total", Scale: 1}},
		InFlight: []providers.Series{{Name: "now", Scale: 1}},
		Duration: []providers.Distribution{{
			Sum: providers.Series{Name: "took_seconds_sum", Scale: 1}, Count: providers.Series{Name: "took_seconds_count", Scale: 1},
		}},
		Except: n.Except,
	}
	if diff := cmp.Diff(want, n); diff != "" || len(n.Except) == 0 {
		t.Errorf("except %v, -want +got:\n%s", n.Except, diff)
	}
	preset := providers.Scrape{Preset: v1alpha1.Envoy}.Names()
	if got := preset.Duration[0].Sum; got.Name != "envoy_http_downstream_rq_time_sum" || got.Scale != 1e-3 {
		t.Errorf("the preset's own sum is %+v, want milliseconds", got)
	}
}
