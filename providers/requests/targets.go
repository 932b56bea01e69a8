package requests

import (
	"net"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// activatorPath is where an activator serves its metrics.
const activatorPath = "/metrics"

// activatorEndpoints are all activators that the Service's slices list, ready or not: one that is being started or
// drained may hold requests.
func activatorEndpoints(slices []*discoveryv1.EndpointSlice) []providers.Endpoint {
	var endpoints []providers.Endpoint
	for _, p := range v1alpha1.PodEndpoints(slices, v1alpha1.ActivatorMetricsPort) {
		if p.Port == 0 {
			continue
		}
		endpoints = append(endpoints, providers.Endpoint{
			Target: providers.Target{
				Kind: providers.Activator, UID: p.UID, Address: address(p.Address, p.Port), Scrape: providers.Scrape{Path: activatorPath},
			},
			Ready:    p.Ready,
			Expected: true,
		})
	}
	return endpoints
}

// podEndpoints are the pods of a function that count its requests; none where activators count. A pod that is not
// ready is no loss, and one that serves on while it terminates is.
func podEndpoints(fn *v1alpha1.Function, slices []*discoveryv1.EndpointSlice) []providers.Endpoint {
	function := providers.NewFunction(fn)
	if !function.Rule.ByPods {
		return nil
	}
	rule := function.Rule
	var endpoints []providers.Endpoint
	for _, p := range v1alpha1.PodEndpoints(slices, servicePort(fn, slices)) {
		port := rule.Port
		if port == 0 {
			port = p.Port
		}
		if port == 0 {
			continue // nothing is known to listen there yet
		}
		endpoints = append(endpoints, providers.Endpoint{
			Target: providers.Target{
				Kind: providers.Pod, Function: function.Name, UID: p.UID, Address: address(p.Address, port),
				Scrape: rule.Scrape,
			},
			Ready:    p.Ready,
			Expected: p.Ready || p.Terminating && p.Serving,
		})
	}
	return endpoints
}

// servicePort is the name of the function's Service port: as the Function names it, else as the scaler has resolved
// it, else the only one there is.
func servicePort(fn *v1alpha1.Function, slices []*discoveryv1.EndpointSlice) string {
	if port := fn.Spec.Traffic.Service.Port; port != nil && port.Type == intstr.String {
		return port.StrVal
	}
	if gate := fn.Status.Gate; gate != nil {
		return gate.ServicePort
	}
	for _, slice := range slices {
		if !v1alpha1.IsGateSlice(slice) && len(slice.Ports) == 1 && slice.Ports[0].Name != nil {
			return *slice.Ports[0].Name
		}
	}
	return ""
}

func address(host string, port int32) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
