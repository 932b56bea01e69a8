//go:build integration

package integration

import (
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func limited(mode v1alpha1.TrafficMode, target string, limit int32) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		if fn.Spec.Traffic.Mode = mode; mode == v1alpha1.Proxied {
			fn.Spec.Traffic.PodMetrics = nil
		} else {
			fn.Spec.Traffic.PodMetrics.InFlight = "requests_in_flight"
		}
		fn.Spec.Metrics = []v1alpha1.Metric{{Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse(target), Limit: limit}}}
	}
}

var acceptedLimits = map[string]func(*v1alpha1.Function){
	"a limit":                    limited(v1alpha1.Proxied, "10", 20),
	"a limit that is the target": limited(v1alpha1.Proxied, "1", 1),
	"a target below one":         limited(v1alpha1.Proxied, "800m", 1),
	"a limit of TCP": func(fn *v1alpha1.Function) {
		limited(v1alpha1.Proxied, "10", 20)(fn)
		fn.Spec.Traffic.Protocol = v1alpha1.ProtocolTCP
	},
	"no limit in mode Direct": limited(v1alpha1.Direct, "10", 0),
}

var refusedLimits = []refusal{
	{
		"a limit past the gate", limited(v1alpha1.Direct, "10", 20),
		[]string{"spec.metrics[].concurrency.limit", "spec.traffic.mode Proxied"},
	},
	{
		"a limit without traffic", func(fn *v1alpha1.Function) {
			limited(v1alpha1.Direct, "10", 20)(fn)
			fn.Spec.Traffic = nil
		},
		[]string{"spec.metrics[].concurrency.limit", "spec.traffic.mode Proxied"},
	},
	{"a limit below the target", limited(v1alpha1.Proxied, "10", 9), []string{"spec.metrics[].concurrency.limit", "below target", "raise limit"}},
	{"a limit just below the target", limited(v1alpha1.Proxied, "1001m", 1), []string{"spec.metrics[].concurrency.limit", "below target"}},
	{"a limit below none", limited(v1alpha1.Proxied, "10", -1), []string{"spec.metrics[0].concurrency.limit"}},
}
