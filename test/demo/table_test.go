package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestTable(t *testing.T) {
	value := func(v float64) reading { return reading{value: v} }
	stale := errors.New("the server is currently unable to handle the request:\n no sample of hello for 12s")
	rows := []row{
		{at: 0, offered: 5, rate: value(0.0333), inFlight: value(0), replicas: 1, ready: 1, hpa: "unknown/50 (avg)"},
		{
			at: 62400 * time.Millisecond, offered: 199.96, rate: value(151.25), inFlight: value(3.5), replicas: 4, ready: 3,
			hpa: "37.8/50 (avg)",
		},
		{at: 65 * time.Second, offered: 200, rate: reading{err: stale}, inFlight: reading{err: stale}, replicas: 4, ready: 4, hpa: "37.8/50 (avg)"},
		{at: 68 * time.Second, offered: 200, rate: value(200), inFlight: reading{err: stale}, hpa: "unknown", failed: 12, err: errors.New("get Deployment: gone")},
	}
	got := []string{tableHeader()}
	for _, r := range rows {
		got = append(got, strings.Split(r.String(), "\n")...)
	}
	want := []string{
		"  TIME OFFERED/S REQUESTS_PER_SECOND IN_FLIGHT REPLICAS READY        HPA TARGET FAILED",
		"  0:00         5                   0         0        1     1  unknown/50 (avg)      0",
		"  1:02       200               151.2       3.5        4     3     37.8/50 (avg)      0",
		"  1:05       200             unknown   unknown        4     4     37.8/50 (avg)      0",
		"       requests_per_second is unknown: the server is currently unable to handle the request: no sample of hello for 12s",
		"  1:08       200                 200   unknown        ?     ?           unknown     12",
		"       requests_in_flight is unknown: the server is currently unable to handle the request: no sample of hello for 12s",
		"       get Deployment: gone",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestHPACell(t *testing.T) {
	q := func(s string) *resource.Quantity { v := resource.MustParse(s); return &v }
	hpa := func(target string, current ...string) *autoscalingv2.HorizontalPodAutoscaler {
		metric := autoscalingv2.MetricIdentifier{Name: "requests_per_second"}
		h := &autoscalingv2.HorizontalPodAutoscaler{}
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{Object: &autoscalingv2.ObjectMetricSource{
			Metric: metric, Target: autoscalingv2.MetricTarget{AverageValue: q(target)},
		}}}
		// What comes first is not necessarily ours, nor an Object metric.
		h.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{}, {Object: &autoscalingv2.ObjectMetricStatus{
			Metric: autoscalingv2.MetricIdentifier{Name: "requests_in_flight"}, Current: autoscalingv2.MetricValueStatus{AverageValue: q("7")},
		}}}
		for _, c := range current {
			h.Status.CurrentMetrics = append(h.Status.CurrentMetrics, autoscalingv2.MetricStatus{
				Object: &autoscalingv2.ObjectMetricStatus{Metric: metric, Current: autoscalingv2.MetricValueStatus{AverageValue: q(c)}},
			})
		}
		return h
	}
	tests := []struct {
		name string
		hpa  *autoscalingv2.HorizontalPodAutoscaler
		want string
	}{
		{"before its first look", hpa("50"), "unknown/50 (avg)"},
		{"milli", hpa("50", "12500m"), "12.5/50 (avg)"},
		{"small target", hpa("500m", "49966m"), "50/0.5 (avg)"},
		{"another autoscaler", &autoscalingv2.HorizontalPodAutoscaler{}, "unknown/unknown (avg)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := hpaCell(tt.hpa, "requests_per_second"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
