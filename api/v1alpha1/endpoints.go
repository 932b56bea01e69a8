package v1alpha1

import (
	"cmp"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// IsGateSlice tells whether slice leads to the gate and not to the function's own pods: by its label, or, should
// somebody have taken that away, by the Function that owns it.
func IsGateSlice(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == GateManager || slices.ContainsFunc(slice.OwnerReferences,
		func(o metav1.OwnerReference) bool {
			return o.Kind == "Function" && o.APIVersion == GroupVersion.String()
		})
}

// PodEndpoints lists the pods in the EndpointSlices of one Service, the gate's own left out. portName is the name of
// the Service port, "" for the nameless one. A pod is listed once: as ready if any slice says so, as may differ while
// slices are being rebalanced; and a dual-stack pod with its IPv4 address, whatever the order of the slices.
func PodEndpoints(of []*discoveryv1.EndpointSlice, portName string) []PodEndpoint {
	type identity struct {
		uid     types.UID
		address string // where there is no uid
	}
	ordered := slices.SortedFunc(slices.Values(of), func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.AddressType, b.AddressType), cmp.Compare(a.Name, b.Name))
	})
	var pods []PodEndpoint
	index := map[identity]int{}
	for _, slice := range ordered {
		if IsGateSlice(slice) || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		port := slicePort(slice, portName)
		for _, ep := range slice.Endpoints {
			if len(ep.Addresses) == 0 {
				continue
			}
			pod := podEndpoint(&ep, port)
			id := identity{uid: pod.UID}
			if pod.UID == "" {
				id.address = pod.Address
			}
			i, dup := index[id]
			switch {
			case !dup:
				index[id] = len(pods)
				pods = append(pods, pod)
			case pod.Ready && !pods[i].Ready:
				pods[i] = pod
			}
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
