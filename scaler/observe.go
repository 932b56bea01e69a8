package scaler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// world is what the cache holds about one function.
type world struct {
	fn *v1alpha1.Function
	// workload is nil when it does not exist, service when it does not or is not wanted.
	workload *workload
	service  *corev1.Service
	gatePort gatePort
	// pods behind the own Service.
	pods []v1alpha1.PodEndpoint
	// gateSlices lead the own Service to the gate, proxiedSlices the Service proxied of mode Proxied.
	gateSlices, proxiedSlices []*discoveryv1.EndpointSlice
	proxied                   *corev1.Service
	activators                []activator
	// hpa has our name; foreignHPA is the name of one that scales the same workload and is not ours.
	hpa        *autoscalingv2.HorizontalPodAutoscaler
	foreignHPA string
	// loses is true when an older Function has the same workload: this one does nothing.
	loses bool
	// noGate says why the gate can not join the own Service; empty when it can.
	noGate string
	// bounded is how many replicas have anything to do.
	bounded bound
	// missing is true when the workload, or a Service that is wanted, does not exist.
	missing bool
	// fallback is what spec.activation.fallback is resolved to, nil where it is not, for the reason of fallbackProblem.
	fallback        *v1alpha1.FallbackStatus
	fallbackProblem *problem
	// problems are what is wrong, the worst first.
	problems []problem
}

// gateable tells whether the gate can join the function's own Service.
func (w *world) gateable() bool { return w.service != nil && w.noGate == "" }

// replicas that the workload asks for.
func (w *world) replicas() int32 {
	if w.workload == nil {
		return 0
	}
	return w.workload.Replicas
}

// ready counts the function's ready pods, by its own Service where it has one.
func (w *world) ready() (count int, uids []types.UID) {
	if w.service == nil {
		if w.workload == nil {
			return 0, nil
		}
		return int(w.workload.Ready), nil
	}
	for _, p := range w.pods {
		if p.Ready {
			count++
			if p.UID != "" {
				uids = append(uids, p.UID)
			}
		}
	}
	return count, uids
}

// inPath tells whether the gate's endpoints stand in the own Service, at the present port.
func (w *world) inPath() bool {
	return slices.ContainsFunc(w.gateSlices, func(s *discoveryv1.EndpointSlice) bool {
		return s.Labels[discoveryv1.LabelServiceName] == w.fn.ServiceName() && len(s.Endpoints) > 0 &&
			len(s.Ports) == 1 && ptr.Deref(s.Ports[0].Port, 0) == w.gatePort.Gate
	})
}

// observe reads everything about fn from the cache.
func (r *Reconciler) observe(ctx context.Context, fn *v1alpha1.Function) (*world, error) {
	w := &world{fn: fn}
	if g := fn.Status.Gate; g != nil {
		w.gatePort.Gate = g.Port
	}
	for _, part := range []func(context.Context, *world) error{
		r.observeWorkload, r.observeHPAs, r.observeActivators, r.observeService, r.observeGate, r.observeFallback,
	} {
		if err := part(ctx, w); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (r *Reconciler) observeWorkload(ctx context.Context, w *world) error {
	kind, _ := w.fn.Workload()
	name := w.fn.WorkloadName()
	rival, err := r.olderRival(ctx, w.fn, indexWorkload, workloadIndexOf(w.fn))
	if err != nil {
		return err
	}
	if rival != "" {
		w.loses = true
		w.problem(v1alpha1.ConditionReady, v1alpha1.ReasonWorkloadConflict, "spec.workloadRef: %s is already scaled by the older Function %s; "+
			"name another workload or delete one of the two Functions", w.workloadWords(), rival)
	}
	obj := emptyWorkload(kind.Kind)
	err = r.Get(ctx, w.key(name), obj)
	switch {
	case apierrors.IsNotFound(err):
		w.missing = true
		w.problem(v1alpha1.ConditionReady, "WorkloadMissing",
			"spec.workloadRef: %s does not exist; create it or correct the name", w.workloadWords())
		return nil
	case err != nil:
		return fmt.Errorf("workload %s: %w", w.workloadWords(), err)
	}
	w.workload = newWorkload(obj)
	return nil
}

func (r *Reconciler) observeHPAs(ctx context.Context, w *world) error {
	var list autoscalingv2.HorizontalPodAutoscalerList
	if err := r.List(ctx, &list, client.InNamespace(w.fn.Namespace)); err != nil {
		return fmt.Errorf("HorizontalPodAutoscalers in namespace %s: %w", w.fn.Namespace, err)
	}
	kind, _ := w.fn.Workload()
	for i := range list.Items {
		hpa := &list.Items[i]
		if hpa.Name == w.fn.OwnedName() {
			w.hpa = hpa
		}
		ref := hpa.Spec.ScaleTargetRef
		if ref.Kind == kind.Kind && ref.Name == w.fn.WorkloadName() && !madeByFunction(hpa) && w.foreignHPA == "" {
			w.foreignHPA = hpa.Name
		}
	}
	if w.foreignHPA != "" {
		w.problem(v1alpha1.ConditionScalingActive, "ForeignHPA", "HorizontalPodAutoscaler %s scales %s already, and Sluice does not "+
			"touch it: it goes on scaling, and the function is not put to sleep; delete it to let Sluice scale",
			w.foreignHPA, w.workloadWords())
	} else if w.hpa != nil && !madeByFunction(w.hpa) {
		w.problem(v1alpha1.ConditionScalingActive, "NameTaken", "a HorizontalPodAutoscaler %s exists that Sluice did not make; "+
			"rename or delete it", w.fullName(w.hpa.Name))
	}
	return nil
}

// madeByFunction tells whether a Function, of whatever name, made obj.
func madeByFunction(obj metav1.Object) bool {
	owner := metav1.GetControllerOf(obj)
	return owner != nil && owner.Kind == "Function" && strings.HasPrefix(owner.APIVersion, v1alpha1.Group+"/")
}

func (r *Reconciler) observeActivators(ctx context.Context, w *world) error {
	found, err := r.slices(ctx, r.namespace, client.MatchingLabels{discoveryv1.LabelServiceName: v1alpha1.ActivatorService})
	if err != nil {
		return err
	}
	w.activators = readyActivators(found)
	return nil
}

// observeService reads the function's own Service and finds out why, if at all, the gate can not join it.
func (r *Reconciler) observeService(ctx context.Context, w *world) error {
	name := w.fn.ServiceName()
	if name == "" {
		w.noGate = "spec.traffic is not set"
		return nil
	}
	var service corev1.Service
	err := r.Get(ctx, w.key(name), &service)
	switch {
	case apierrors.IsNotFound(err):
		w.missing = true
		w.gateProblem("ServiceMissing",
			"spec.traffic.service: Service %s does not exist; create it or correct the name", w.fullName(name))
		return nil
	case err != nil:
		return fmt.Errorf("service %s: %w", w.fullName(name), err)
	}
	w.service = &service
	found, err := r.slices(ctx, w.fn.Namespace, client.MatchingLabels{discoveryv1.LabelServiceName: name})
	if err != nil {
		return err
	}
	port, reason, message := servicePort("spec.traffic.service", &service, w.fn.Spec.Traffic.Service.Port)
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		reason, message = "ServiceUnsupported", fmt.Sprintf("spec.traffic.service: Service %s is headless, so that clients go around the gate; "+
			"name a Service with a cluster IP", service.Name)
	}
	if reason != "" {
		w.gateProblem(reason, "%s", message)
		w.pods = v1alpha1.PodEndpoints(found, "")
		return nil
	}
	w.gatePort.Service = port
	w.pods = v1alpha1.PodEndpoints(found, port.Name)
	if app := ptr.Deref(port.AppProtocol, ""); !w.fn.IsTCP() && v1alpha1.PodProtocolOf(app) == v1alpha1.PodTLS {
		w.gateProblem("AppProtocolUnsupported", "spec.traffic.service.port: port %d of Service %s has the appProtocol %s, and the gate does not "+
			"speak TLS to pods; let the pods serve without TLS, and the Service port say kubernetes.io/h2c or nothing; or set "+
			"spec.traffic.protocol TCP, which passes TLS through", port.Port, name, app)
	}
	rival, err := r.olderRival(ctx, w.fn, indexService, name)
	if err != nil {
		return err
	}
	if rival != "" {
		w.gateProblem("ServiceConflict", "spec.traffic.service: Service %s belongs to the older Function %s already, and a gate can hold "+
			"for one function only; give this function a Service of its own", w.fullName(name), rival)
	}
	return nil
}

// servicePort resolves the port of a Service that field of the spec names.
func servicePort(field string, service *corev1.Service, want *intstr.IntOrString) (port corev1.ServicePort, reason, message string) {
	switch {
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return port, "ServiceUnsupported", fmt.Sprintf("%s: Service %s is of type ExternalName, which has no endpoints; "+
			"name a Service of type ClusterIP", field, service.Name)
	case want == nil && len(service.Spec.Ports) == 1:
		port = service.Spec.Ports[0]
	case want == nil:
		return port, "PortUnset", fmt.Sprintf("%s.port is not set and Service %s has %d ports (%s); name one of them",
			field, service.Name, len(service.Spec.Ports), portNames(service))
	default:
		i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool {
			return (want.Type == intstr.String && want.StrVal == p.Name) || (want.Type == intstr.Int && want.IntVal == p.Port)
		})
		if i < 0 {
			return port, "PortUnknown", fmt.Sprintf("%s.port: Service %s has no port %s; it has %s",
				field, service.Name, want, portNames(service))
		}
		port = service.Spec.Ports[i]
	}
	if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
		return port, "ServiceUnsupported", fmt.Sprintf("%s.port: port %d of Service %s is %s; name one of TCP",
			field, port.Port, service.Name, port.Protocol)
	}
	return port, "", ""
}

func portNames(service *corev1.Service) string {
	var names []string
	for _, p := range service.Spec.Ports {
		if p.Name == "" {
			names = append(names, fmt.Sprint(p.Port))
		} else {
			names = append(names, fmt.Sprintf("%s %d", p.Name, p.Port))
		}
	}
	return strings.Join(names, ", ")
}

// observeGate reads what was made for the function: its slices, and the Service of mode Proxied.
func (r *Reconciler) observeGate(ctx context.Context, w *world) error {
	found, err := r.slices(ctx, w.fn.Namespace, client.MatchingLabels{
		v1alpha1.FunctionLabel: w.fn.Name, discoveryv1.LabelManagedBy: v1alpha1.GateManager,
	})
	if err != nil {
		return err
	}
	// By name as well: somebody may have taken the labels away, and the endpoints would stay where they are.
	for _, name := range []string{w.fn.OwnedName(), w.fn.OwnedName() + gateSuffix} {
		for _, name := range []string{name, name + ipv6Suffix} {
			var s discoveryv1.EndpointSlice
			err := r.Get(ctx, w.key(name), &s)
			switch {
			case apierrors.IsNotFound(err):
			case err != nil:
				return fmt.Errorf("EndpointSlice %s: %w", w.fullName(name), err)
			case metav1.IsControlledBy(&s, w.fn) && !slices.ContainsFunc(found, func(f *discoveryv1.EndpointSlice) bool { return f.Name == name }):
				found = append(found, &s)
			}
		}
	}
	for _, s := range found {
		if s.Name == w.fn.OwnedName() || s.Name == w.fn.OwnedName()+ipv6Suffix {
			w.proxiedSlices = append(w.proxiedSlices, s)
		} else {
			w.gateSlices = append(w.gateSlices, s)
		}
	}
	var proxied corev1.Service
	err = r.Get(ctx, w.key(w.fn.OwnedName()), &proxied)
	switch {
	case err == nil:
		w.proxied = &proxied
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("service %s: %w", w.fullName(w.fn.OwnedName()), err)
	}
	if w.proxied != nil && w.fn.IsProxied() && !metav1.IsControlledBy(w.proxied, w.fn) {
		w.problem(v1alpha1.ConditionReady, "NameTaken", "a Service %s exists that Sluice did not make for this Function, "+
			"and mode Proxied needs the name; rename or delete it", w.fullName(w.proxied.Name))
	}
	if w.gateable() && len(w.activators) == 0 {
		w.problem(v1alpha1.ConditionReady, "NoActivator", "no pod of Service %s/%s is ready, so that requests can not be held and the "+
			"function is not put to sleep; see to the activator's Deployment", r.namespace, v1alpha1.ActivatorService)
	}
	return nil
}

// olderRival names the oldest of the Functions that share the value of an index with fn and are older; empty when fn
// is the oldest. Gate ports are shared by all namespaces, workloads and Services by one.
func (r *Reconciler) olderRival(ctx context.Context, fn *v1alpha1.Function, index, value string) (string, error) {
	opts := []client.ListOption{client.MatchingFields{index: value}}
	if index != indexGatePort {
		opts = append(opts, client.InNamespace(fn.Namespace))
	}
	var list v1alpha1.FunctionList
	if err := r.List(ctx, &list, opts...); err != nil {
		return "", fmt.Errorf("functions with %s %q: %w", index, value, err)
	}
	oldest := fn
	for i := range list.Items {
		f := &list.Items[i]
		if older(f.Key(), f.CreationTimestamp.Time, oldest.Key(), oldest.CreationTimestamp.Time) {
			oldest = f
		}
	}
	if oldest.Key() == fn.Key() {
		return "", nil
	}
	return oldest.Key().String(), nil
}

func (r *Reconciler) slices(ctx context.Context, namespace string, labels client.MatchingLabels) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	if err := r.List(ctx, &list, client.InNamespace(namespace), labels); err != nil {
		return nil, fmt.Errorf("EndpointSlices in namespace %s: %w", namespace, err)
	}
	found := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		found[i] = &list.Items[i]
	}
	return found, nil
}

// observed is the part of the world that decide looks at. The bound is left in w too, for the HorizontalPodAutoscaler.
func (r *Reconciler) observed(w *world, mem memory) observed {
	key := w.fn.Key()
	samples := r.poller.samples(key)
	w.bounded = w.bound(time.Now(), samples)
	seen := observed{
		Replicas:   w.replicas(),
		HasGate:    w.gateable() && w.gatePort.Gate != 0,
		InPath:     w.inPath(),
		Activators: len(w.activators),
		Samples:    samples,
		ForeignHPA: w.foreignHPA != "",
		Bound:      w.bounded,
		Recorded:   w.fn.Status.Phase,
	}
	if last := w.fn.Status.LastDecision; last != nil {
		seen.Slept = last.Reason == reasonSleeping
	}
	seen.Ready, seen.ReadyPods = w.ready()
	seen.ProvenAt, seen.ProofErr = r.proofs.result(key, mem.joined)
	switch {
	case w.foreignHPA != "":
		seen.Held = fmt.Sprintf("HorizontalPodAutoscaler %s is not Sluice's", w.foreignHPA)
	case w.fn.Spec.Traffic == nil:
		// Nothing can be lost without a gate.
	case w.noGate != "":
		seen.Held = w.noGate
	case w.gatePort.Gate == 0:
		seen.Held = "the function has no gate port"
	}
	return seen
}

func (w *world) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: w.fn.Namespace, Name: name}
}

func (w *world) fullName(name string) string { return w.fn.Namespace + "/" + name }
