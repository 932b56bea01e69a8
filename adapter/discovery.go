package adapter

import (
	"fmt"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var (
	// ofPods are the metrics that a pod may have.
	ofPods = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds}
	// sums are the metrics of which a sum over functions means something.
	sums = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight}
)

// ListAllMetrics is what discovery shows: a constant, whether there is a function or not. Discovery is asked for ten
// times a minute by each API server, and a group without resources breaks kubectl. Workloads of other kinds, and
// metrics of a function's own, are served without being listed: no client of the API looks them up first.
func (functionMetrics) ListAllMetrics() []provider.CustomMetricInfo {
	var infos []provider.CustomMetricInfo
	add := func(resource schema.GroupResource, namespaced bool, metrics []string) {
		for _, metric := range metrics {
			infos = append(infos, provider.CustomMetricInfo{GroupResource: resource, Namespaced: namespaced, Metric: metric})
		}
	}
	add(v1alpha1.FunctionResource, true, reserved)
	add(schema.GroupResource{Group: "apps", Resource: "deployments"}, true, reserved)
	add(schema.GroupResource{Group: "apps", Resource: "statefulsets"}, true, reserved)
	add(schema.GroupResource{Resource: "services"}, true, reserved)
	add(kubelessFunctions, true, reserved)
	add(pods, true, ofPods)
	add(namespaces, false, sums)
	return infos
}

// ListAllExternalMetrics is what discovery shows of external.metrics.k8s.io, a constant too.
func (functionMetrics) ListAllExternalMetrics() []provider.ExternalMetricInfo {
	infos := make([]provider.ExternalMetricInfo, len(reserved))
	for i, metric := range reserved {
		infos[i] = provider.ExternalMetricInfo{Metric: metric}
	}
	return infos
}

// installDiscovery makes the aggregated form of discovery list the metrics, which the library leaves out of it: the
// aggregation layer asks for that form first, and would show the groups without resources.
func installDiscovery(s *genericapiserver.GenericAPIServer, p functionMetrics) error {
	for group, resources := range map[string][]metav1.APIResource{
		custom_metrics.GroupName:   provider.NewCustomMetricResourceLister(p).ListAPIResources(),
		external_metrics.GroupName: provider.NewExternalMetricResourceLister(p).ListAPIResources(),
	} {
		discovered, err := endpoints.ConvertGroupVersionIntoToDiscovery(resources)
		if err != nil {
			return fmt.Errorf("aggregated discovery of %s: %w", group, err)
		}
		for _, version := range apiserver.Scheme.PrioritizedVersionsForGroup(group) {
			s.AggregatedDiscoveryGroupManager.AddGroupVersion(version.Group, apidiscoveryv2.APIVersionDiscovery{
				Version: version.Version, Resources: discovered, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
			})
		}
	}
	return nil
}
