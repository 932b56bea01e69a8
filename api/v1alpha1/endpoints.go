package v1alpha1

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// PodEndpoint is one pod behind a function's own Service.
type PodEndpoint struct {
	// Pod names the pod; empty when the slice names no target.
	Pod types.NamespacedName
	// UID of the pod, by which a restarted pod of the same name is told from the old one.
	UID types.UID
	// Address is the pod's IP address.
	Address string
	// Port is the pod's port behind the Service port, 0 when the slice does not have it.
	Port int32
	// Ready is true while the pod takes new requests: ready and not terminating.
	Ready bool
	// Serving is true while the pod answers the requests that it has: ready, whether it is being deleted or not.
	Serving bool
	// Terminating is true once the pod is being deleted.
	Terminating bool
}

// IsGateSlice tells whether slice leads to the gate and not to the function's own pods.
func IsGateSlice(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == GateManager
}

// PodEndpoints lists the pods in slices of one Service, the gate's own left out. portName is the name of the Service
// port, "" for the nameless one. An address that stands in two slices, as it may while the slices are being
// rebalanced, is listed once, as ready if either says so.
func PodEndpoints(slices []*discoveryv1.EndpointSlice, portName string) []PodEndpoint {
	var pods []PodEndpoint
	index := map[string]int{}
	for _, slice := range slices {
		if IsGateSlice(slice) || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		port := slicePort(slice, portName)
		for _, ep := range slice.Endpoints {
			if len(ep.Addresses) == 0 {
				continue
			}
			pod := podEndpoint(&ep, port)
			if i, dup := index[pod.Address]; dup {
				if pod.Ready && !pods[i].Ready {
					pods[i] = pod
				}
				continue
			}
			index[pod.Address] = len(pods)
			pods = append(pods, pod)
		}
	}
	return pods
}

// podEndpoint reads the first address only: consumers of EndpointSlices must treat the others as the same endpoint.
func podEndpoint(ep *discoveryv1.Endpoint, port int32) PodEndpoint {
	pod := PodEndpoint{
		Address:     ep.Addresses[0],
		Port:        port,
		Terminating: ep.Conditions.Terminating != nil && *ep.Conditions.Terminating,
	}
	// A nil ready means unknown and is to be read as ready; see the type's own documentation.
	pod.Ready = (ep.Conditions.Ready == nil || *ep.Conditions.Ready) && !pod.Terminating
	pod.Serving = pod.Ready
	if ep.Conditions.Serving != nil {
		pod.Serving = *ep.Conditions.Serving
	}
	if ref := ep.TargetRef; ref != nil && ref.Kind == "Pod" {
		pod.Pod = types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
		pod.UID = ref.UID
	}
	return pod
}

func slicePort(slice *discoveryv1.EndpointSlice, name string) int32 {
	for _, p := range slice.Ports {
		n := ""
		if p.Name != nil {
			n = *p.Name
		}
		if n == name && p.Port != nil {
			return *p.Port
		}
	}
	return 0
}
