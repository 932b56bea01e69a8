package v1alpha1

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func slice(name string, family discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	http, port := "http", int32(8080)
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name},
		AddressType: family,
		Endpoints:   endpoints,
		Ports:       []discoveryv1.EndpointPort{{Name: &http, Port: &port}},
	}
}

func endpoint(uid types.UID, address string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if uid != "" {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: string(uid), UID: uid}
	}
	return e
}

func TestPodEndpoints(t *testing.T) {
	gate := slice("gate", discoveryv1.AddressTypeIPv4, endpoint("", "10.0.0.9", true))
	gate.Labels = map[string]string{discoveryv1.LabelManagedBy: GateManager}
	unlabelled := slice("unlabelled", discoveryv1.AddressTypeIPv4, endpoint("", "10.0.0.9", true))
	unlabelled.OwnerReferences = []metav1.OwnerReference{{APIVersion: "sluice.dev/v1alpha1", Kind: "Function", Name: "hello"}}
	yes := true
	leaving := endpoint("a", "10.0.0.1", true)
	leaving.Conditions.Terminating = &yes
	unknown := endpoint("a", "10.0.0.1", true)
	unknown.Conditions.Ready = nil

	type brief struct {
		UID     types.UID
		Address string
		Port    int32
		Ready   bool
	}
	for _, tt := range []struct {
		name string
		of   []*discoveryv1.EndpointSlice
		port string
		want []brief
	}{
		{
			name: "the gate is no pod",
			of:   []*discoveryv1.EndpointSlice{gate, unlabelled, slice("s", discoveryv1.AddressTypeIPv4, endpoint("a", "10.0.0.1", true))},
			port: "http", want: []brief{{"a", "10.0.0.1", 8080, true}},
		},
		{
			name: "a dual-stack pod is one pod, by its IPv4 address",
			of: []*discoveryv1.EndpointSlice{
				slice("6", discoveryv1.AddressTypeIPv6, endpoint("a", "fd00::1", true)),
				slice("4", discoveryv1.AddressTypeIPv4, endpoint("a", "10.0.0.1", true)),
			},
			port: "http", want: []brief{{"a", "10.0.0.1", 8080, true}},
		},
		{
			name: "in two slices while they are rebalanced: ready if either says so",
			of: []*discoveryv1.EndpointSlice{
				slice("1", discoveryv1.AddressTypeIPv4, endpoint("a", "10.0.0.1", false)),
				slice("2", discoveryv1.AddressTypeIPv4, endpoint("a", "10.0.0.1", true)),
			},
			port: "http", want: []brief{{"a", "10.0.0.1", 8080, true}},
		},
		{
			name: "endpoints without a pod are told apart by address",
			of: []*discoveryv1.EndpointSlice{
				slice("1", discoveryv1.AddressTypeIPv4, endpoint("", "10.0.0.1", true), endpoint("", "10.0.0.2", true)),
			},
			port: "http", want: []brief{{"", "10.0.0.1", 8080, true}, {"", "10.0.0.2", 8080, true}},
		},
		{
			name: "a terminating pod takes no new requests",
			of:   []*discoveryv1.EndpointSlice{slice("1", discoveryv1.AddressTypeIPv4, leaving)},
			port: "http", want: []brief{{"a", "10.0.0.1", 8080, false}},
		},
		{
			name: "readiness that nobody states is readiness",
			of:   []*discoveryv1.EndpointSlice{slice("1", discoveryv1.AddressTypeIPv4, unknown)},
			port: "http", want: []brief{{"a", "10.0.0.1", 8080, true}},
		},
		{
			name: "a port that the slice lacks",
			of:   []*discoveryv1.EndpointSlice{slice("1", discoveryv1.AddressTypeIPv4, endpoint("a", "10.0.0.1", true))},
			port: "grpc", want: []brief{{"a", "10.0.0.1", 0, true}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // whatever the order of the slices
				var got []brief
				for _, p := range PodEndpoints(tt.of, tt.port) {
					got = append(got, brief{p.UID, p.Address, p.Port, p.Ready})
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				slices.Reverse(tt.of)
			}
		})
	}
}
