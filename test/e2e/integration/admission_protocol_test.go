//go:build integration

package integration

import (
	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// overTCP edits a Function whose pods count their own connections.
func overTCP(edit func(*v1alpha1.Traffic)) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Traffic.Protocol = v1alpha1.ProtocolTCP
		fn.Spec.Traffic.PodMetrics = &v1alpha1.PodMetrics{Requests: "connections_total", InFlight: "connections", Port: 9100}
		edit(fn.Spec.Traffic)
	}
}

var acceptedProtocols = map[string]func(*v1alpha1.Function){
	"TCP, Direct": overTCP(func(*v1alpha1.Traffic) {}),
	"TLS at the shared door": func(fn *v1alpha1.Function) {
		fn.Spec.Traffic = &v1alpha1.Traffic{
			Mode: v1alpha1.Proxied, Hosts: []string{"a.example"}, TLS: &v1alpha1.TrafficTLS{SecretRef: v1alpha1.SecretRef{Name: "a-tls"}},
		}
	},
	"TCP, Proxied": overTCP(func(t *v1alpha1.Traffic) {
		t.Mode, t.PodMetrics = v1alpha1.Proxied, nil
	}),
}

var refusedProtocols = []refusal{
	{
		"TCP by Host", overTCP(func(t *v1alpha1.Traffic) {
			t.Mode, t.PodMetrics, t.Hosts = v1alpha1.Proxied, nil, []string{"a.example"}
		}),
		[]string{"spec.traffic.hosts", "protocol HTTP"},
	},
	{
		"TCP counted by a preset", overTCP(func(t *v1alpha1.Traffic) { t.PodMetrics = &v1alpha1.PodMetrics{Preset: v1alpha1.Kubeless} }),
		[]string{"spec.traffic.podMetrics", "inFlight", "no preset"},
	},
	{
		"TCP without a gauge", overTCP(func(t *v1alpha1.Traffic) { t.PodMetrics.InFlight = "" }),
		[]string{"spec.traffic.podMetrics", "inFlight"},
	},
	{
		"TCP counted at its own port", overTCP(func(t *v1alpha1.Traffic) { t.PodMetrics.Port = 0 }),
		[]string{"spec.traffic.podMetrics", "port"},
	},
	{
		"TLS without hosts", func(fn *v1alpha1.Function) {
			fn.Spec.Traffic.TLS = &v1alpha1.TrafficTLS{SecretRef: v1alpha1.SecretRef{Name: "a-tls"}}
		},
		[]string{"spec.traffic.tls", "spec.traffic.hosts"},
	},
	{
		"TLS from another namespace", func(fn *v1alpha1.Function) {
			fn.Spec.Traffic = &v1alpha1.Traffic{
				Mode: v1alpha1.Proxied, Hosts: []string{"a.example"}, TLS: &v1alpha1.TrafficTLS{SecretRef: v1alpha1.SecretRef{Name: "other/a-tls"}},
			}
		},
		[]string{"spec.traffic.tls.secretRef.name", "own namespace"},
	},
	{
		"another protocol", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Protocol = "UDP" },
		[]string{"spec.traffic.protocol", `"HTTP"`, `"TCP"`},
	},
}
