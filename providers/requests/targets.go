package requests

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
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
func podEndpoints(fn *v1alpha1.Function, function providers.Function, slices []*discoveryv1.EndpointSlice) []providers.Endpoint {
	rule := function.Rule
	if !rule.ByPods {
		return nil
	}
	var endpoints []providers.Endpoint
	for _, p := range v1alpha1.PodEndpoints(slices, servicePort(fn, slices)) {
		port := cmp.Or(rule.Port, p.Port)
		if port == 0 {
			continue // nothing is known to listen there yet
		}
		e := providers.Endpoint{
			Target: providers.Target{
				Kind: providers.Pod, Function: function.Name, UID: p.UID, Address: address(p.Address, port),
				Scrape: rule.Scrape,
			},
			Ready:    p.Ready,
			Expected: p.Ready || p.Terminating && p.Serving,
		}
		if p.Pod.Name != "" {
			e.Pod = providers.Object{Kind: podKind, Resource: podResource, Name: p.Pod.Name}
		}
		endpoints = append(endpoints, e)
	}
	return endpoints
}

// queryEndpoints are the function's queries and consumer groups. There is always a value to wait for.
func queryEndpoints(fn *v1alpha1.Function) []providers.Endpoint {
	var endpoints []providers.Endpoint
	for _, m := range fn.Spec.Metrics {
		if m.KafkaLag != nil {
			endpoints = append(endpoints, providers.Endpoint{
				Target:   providers.Target{Kind: providers.Lag, Function: fn.Key(), Consumer: consumer(m.KafkaLag)},
				Ready:    true,
				Expected: true,
			})
		}
		q := m.Prometheus
		if q == nil {
			continue
		}
		ask := providers.Ask{
			Metric: q.Name, Server: q.Server, Expr: q.Expand(fn.Key()), EmptyIsZero: q.EmptyIs == "Zero",
		}
		if q.AuthRef != nil {
			ask.AuthSecret = q.AuthRef.Name
		}
		endpoints = append(endpoints, providers.Endpoint{
			Target:   providers.Target{Kind: providers.Query, Function: fn.Key(), Ask: ask},
			Ready:    true,
			Expected: true,
		})
	}
	return endpoints
}

func consumer(m *v1alpha1.KafkaLagMetric) providers.Consumer {
	c := providers.Consumer{
		Name: m.Name, Group: m.Group, Topics: strings.Join(m.AllTopics(), ","),
		// In order, so that functions that name the same servers share connections.
		Servers:   strings.Join(slices.Sorted(slices.Values(m.BootstrapServers)), ","),
		Reset:     cmp.Or(m.OffsetReset, v1alpha1.KafkaLatest),
		Isolation: cmp.Or(m.Isolation, v1alpha1.KafkaReadUncommitted),
	}
	var partitions []string
	for _, p := range slices.Sorted(slices.Values(m.Partitions)) {
		partitions = append(partitions, strconv.Itoa(int(p)))
	}
	c.Partitions = strings.Join(partitions, ",")
	if m.AuthRef != nil {
		c.AuthSecret = m.AuthRef.Name
	}
	return c
}

// objectsOf are the workload and the Service that fn names; the Service is zero where it names none.
func objectsOf(fn *v1alpha1.Function) (workload, service providers.Object) {
	workload.Kind, workload.Resource = fn.Workload()
	workload.Name = fn.WorkloadName()
	if name := fn.ServiceName(); name != "" {
		service = providers.Object{Kind: serviceKind, Resource: serviceResource, Name: name}
	}
	return workload, service
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

// sightings are the processes that were last seen, and of each at which address, and whether it was new there.
type sightings map[instance]sighting

// instance is a process, however it is measured.
type instance struct {
	uid  types.UID
	host string
}

type sighting struct {
	address string
	isNew   bool
}

// markNew marks the endpoints that appeared while discovery was looking, except those that had served before, and returns
// the sightings for the next time. A known pod that is measured in another way than before is not new: it may have
// counted for long.
func markNew(
	endpoints []providers.Endpoint, before sightings, looking bool, servedBefore func(*providers.Endpoint) bool,
) sightings {
	if len(endpoints) == 0 {
		return nil
	}
	now := make(sightings, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		host, _, err := net.SplitHostPort(e.Address)
		if err != nil {
			host = e.Address
		}
		at := instance{uid: e.UID, host: host}
		last, seen := before[at]
		e.New = looking && !seen && !servedBefore(e) || last.isNew && last.address == e.Address
		now[at] = sighting{address: e.Address, isNew: e.New}
	}
	return now
}
