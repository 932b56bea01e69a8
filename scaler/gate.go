package scaler

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// activator is one ready activator pod, at which every function has its gate port.
type activator struct {
	Address string
	Node    *string
	Zone    *string
}

// family is the address type of an EndpointSlice that the activator fits in.
func (a activator) family() discoveryv1.AddressType {
	if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Is6() && !ip.Is4In6() {
		return discoveryv1.AddressTypeIPv6
	}
	return discoveryv1.AddressTypeIPv4
}

// readyActivators reads the EndpointSlices of the activators' Service, sorted by address. The Service's ports do not
// matter: a gate port belongs to a function.
func readyActivators(all []*discoveryv1.EndpointSlice) []activator {
	var found []activator
	for _, slice := range all {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, ep := range slice.Endpoints {
			terminating := ptr.Deref(ep.Conditions.Terminating, false)
			if len(ep.Addresses) > 0 && ptr.Deref(ep.Conditions.Ready, true) && !terminating {
				found = append(found, activator{Address: ep.Addresses[0], Node: ep.NodeName, Zone: ep.Zone})
			}
		}
	}
	slices.SortFunc(found, func(a, b activator) int { return cmp.Compare(a.Address, b.Address) })
	// While slices are rebalanced, a pod may stand in two of them.
	return slices.CompactFunc(found, func(a, b activator) bool { return a.Address == b.Address })
}

// gatePort is where a function's Service port meets the gate.
type gatePort struct {
	Service corev1.ServicePort
	Gate    int32
}

// Names of EndpointSlices are OwnedName and these suffixes. Names of Functions have no dots, so that no slice of one
// has the name of another's.
const (
	gateSuffix = ".gate" // of those in the function's own Service
	ipv6Suffix = ".ipv6"
)

// renderSlices are the EndpointSlices that lead service, the name of a Service of fn, to the gate: one for each IP
// family in which activators are ready and that the Service has. name is that of the IPv4 slice.
func renderSlices(fn *v1alpha1.Function, name, service string, families []corev1.IPFamily, port gatePort,
	ready []activator,
) []*discoveryv1.EndpointSlice {
	var rendered []*discoveryv1.EndpointSlice
	for _, f := range []struct {
		family corev1.IPFamily
		kind   discoveryv1.AddressType
		name   string
	}{
		{corev1.IPv4Protocol, discoveryv1.AddressTypeIPv4, name},
		{corev1.IPv6Protocol, discoveryv1.AddressTypeIPv6, name + ipv6Suffix},
	} {
		if len(families) > 0 && !slices.Contains(families, f.family) {
			continue
		}
		var endpoints []discoveryv1.Endpoint
		for _, a := range ready {
			if a.family() == f.kind {
				endpoints = append(endpoints, discoveryv1.Endpoint{
					Addresses:  []string{a.Address},
					Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
					NodeName:   a.Node,
					Zone:       a.Zone,
				})
			}
		}
		if len(endpoints) == 0 {
			continue
		}
		meta := ownedMeta(fn, f.name)
		meta.Labels[discoveryv1.LabelServiceName] = service
		meta.Labels[discoveryv1.LabelManagedBy] = v1alpha1.GateManager
		rendered = append(rendered, &discoveryv1.EndpointSlice{
			ObjectMeta:  meta,
			AddressType: f.kind,
			Endpoints:   endpoints,
			Ports: []discoveryv1.EndpointPort{{
				Name:        new(port.Service.Name),
				Protocol:    new(corev1.ProtocolTCP),
				Port:        new(port.Gate),
				AppProtocol: port.Service.AppProtocol,
			}},
		})
	}
	return rendered
}

// sameSlice tells whether have is what want says.
func sameSlice(have, want *discoveryv1.EndpointSlice) bool {
	for key, value := range want.Labels {
		if have.Labels[key] != value {
			return false
		}
	}
	return have.AddressType == want.AddressType &&
		equality.Semantic.DeepEqual(have.Ports, want.Ports) &&
		equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints)
}

// ensureSlices makes have, the gate's slices of one Service, those of want. keep leaves in place those of which none
// is wanted, as while no activator is ready: a path to activators that may be back in a moment is better than none,
// which would refuse connections for certain.
func (r *Reconciler) ensureSlices(ctx context.Context, fn *v1alpha1.Function, have, want []*discoveryv1.EndpointSlice,
	keep bool,
) error {
	for _, h := range have {
		i := slices.IndexFunc(want, func(w *discoveryv1.EndpointSlice) bool { return w.Name == h.Name })
		if !metav1.IsControlledBy(h, fn) {
			continue
		}
		switch {
		case i < 0 && keep:
		case i < 0:
			if err := r.remove(ctx, h); err != nil {
				return err
			}
		case sameSlice(h, want[i]):
		case h.AddressType != want[i].AddressType,
			h.Labels[discoveryv1.LabelServiceName] != want[i].Labels[discoveryv1.LabelServiceName]:
			// The type can not be changed, and of a changed Service name kube-proxy would keep the old one as well.
			if err := r.remove(ctx, h); err != nil {
				return err
			}
			if err := r.create(ctx, want[i]); err != nil {
				return err
			}
		default:
			update := h.DeepCopy()
			update.Ports, update.Endpoints = want[i].Ports, want[i].Endpoints
			adoptMeta(update, want[i])
			if err := r.update(ctx, update); err != nil {
				return err
			}
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h *discoveryv1.EndpointSlice) bool { return h.Name == w.Name }) {
			if err := r.create(ctx, w); err != nil {
				return err
			}
		}
	}
	return nil
}

// renderService is the Service through the gate of a function in mode Proxied. It has no selector, so that only the
// scaler's EndpointSlice says where it leads, and the port of the function's own Service.
func renderService(fn *v1alpha1.Function, own *corev1.Service, port gatePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: ownedMeta(fn, fn.OwnedName()),
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeClusterIP,
			IPFamilies:     own.Spec.IPFamilies,
			IPFamilyPolicy: own.Spec.IPFamilyPolicy,
			Ports: []corev1.ServicePort{{
				Name:        port.Service.Name,
				Protocol:    corev1.ProtocolTCP,
				AppProtocol: port.Service.AppProtocol,
				Port:        port.Service.Port,
				TargetPort:  intstr.FromInt32(port.Gate),
			}},
		},
	}
}

// sameService tells whether have is what want says, defaults of the API server aside. IP families are chosen when the
// Service is made and not compared.
func sameService(have, want *corev1.Service) bool {
	return have.Labels[v1alpha1.FunctionLabel] == want.Labels[v1alpha1.FunctionLabel] &&
		len(have.Spec.Selector) == 0 &&
		have.Spec.Type == want.Spec.Type &&
		equality.Semantic.DeepEqual(withoutNodePorts(have.Spec.Ports), want.Spec.Ports)
}

func withoutNodePorts(ports []corev1.ServicePort) []corev1.ServicePort {
	ports = slices.Clone(ports)
	for i := range ports {
		ports[i].NodePort = 0
	}
	return ports
}

// keepsProxied tells whether the Service through the gate stays though the mode is Direct: clients may have its address,
// and the gate serves them in both modes. It is not made again once somebody has deleted it.
func (w *world) keepsProxied() bool {
	return w.fn.Spec.Traffic != nil && !w.fn.IsProxied() && w.proxied != nil && metav1.IsControlledBy(w.proxied, w.fn)
}

// proxiedPort is the port of the Service through the gate: that of the own Service, but for its name once there is one.
// kube-proxy finds endpoints by the name, and of a Service and its EndpointSlice that change it one is always first: for
// about a second there would be no endpoint.
func (w *world) proxiedPort() gatePort {
	port := w.gatePort
	if w.proxied != nil {
		for _, have := range w.proxied.Spec.Ports {
			if have.TargetPort.IntVal == port.Gate {
				port.Service.Name = have.Name
			}
		}
	}
	return port
}

// ensureProxied makes the Service through the gate and its slices what they should be: there in mode Proxied, there as long
// as nobody deletes it in mode Direct, gone otherwise. A Service of that name which is not ours is left alone; a problem
// says so.
func (r *Reconciler) ensureProxied(ctx context.Context, w *world) error {
	fn := w.fn
	want := (fn.IsProxied() || w.keepsProxied()) && !w.loses && fn.DeletionTimestamp == nil
	if want && (!w.gateable() || w.gatePort.Gate == 0) {
		return nil // what stands may still serve; a problem says what is wrong
	}
	if !want {
		if err := r.ensureSlices(ctx, fn, w.proxiedSlices, nil, false); err != nil {
			return err
		}
		if w.proxied != nil && metav1.IsControlledBy(w.proxied, fn) {
			return r.remove(ctx, w.proxied)
		}
		return nil
	}
	port := w.proxiedPort()
	service := renderService(fn, w.service, port)
	switch {
	case w.proxied == nil:
		if err := r.create(ctx, service); err != nil {
			return err
		}
	case !metav1.IsControlledBy(w.proxied, fn):
		return nil
	case !sameService(w.proxied, service):
		update := w.proxied.DeepCopy()
		update.Spec.Selector, update.Spec.Type, update.Spec.Ports = nil, service.Spec.Type, service.Spec.Ports
		adoptMeta(update, service)
		if err := r.update(ctx, update); err != nil {
			return err
		}
	}
	rendered := renderSlices(fn, fn.OwnedName(), fn.OwnedName(), w.service.Spec.IPFamilies, port, w.activators)
	return r.ensureSlices(ctx, fn, w.proxiedSlices, rendered, len(w.activators) == 0)
}
