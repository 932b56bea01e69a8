package activator

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A pod is in an EndpointSlice only after a controller has seen its address and has written it down there. Whoever holds
// requests does not wait for that: while a function is being woken, its scout watches the pods that its Service selects,
// and its pods are those that the EndpointSlices tell of and those that they do not tell of yet. Once a pod was in an
// EndpointSlice, it is for the EndpointSlices alone to say what becomes of it.

// Functions that are woken beyond maxScouts learn of their pods from the EndpointSlices, and so do those whose pods have no
// address after scoutTime: there is no haste any more.
const (
	maxScouts = 64
	scoutTime = 10 * time.Second
)

// scout watches the pods of one function during one run of its waker.
type scout struct {
	proxy  *proxy
	fn     *function
	of     paths
	cancel context.CancelFunc
	done   chan struct{}
}

// newScout starts a scout; it returns nil where pods are not probed ahead, and so are of no use before Kubernetes calls
// them ready.
func newScout(p *proxy, fn *function) *scout {
	obj := fn.object.Load()
	if p.podReader == nil || !obj.ProbesAhead() {
		return nil
	}
	if p.scouts.Add(1) > maxScouts {
		p.scouts.Add(-1)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), scoutTime)
	s := &scout{proxy: p, fn: fn, of: pathsOf(obj), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer p.scouts.Add(-1)
		defer cancel()
		s.run(ctx)
		fn.endEarly() //nolint:contextcheck // claims outlive it
	}()
	return s
}

// stop ends the scout and waits for it. Pods that were proven stay until the EndpointSlices tell of them.
func (s *scout) stop() {
	if s != nil {
		s.cancel()
		<-s.done
	}
}

// run watches until ctx ends or there is nothing to see.
func (s *scout) run(ctx context.Context) {
	for delay := firstReread; ctx.Err() == nil; delay = min(2*delay, maxReread) {
		err := s.watch(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, errNoPods):
			return
		case apierrors.IsForbidden(err):
			s.proxy.mayNotScout.Do(func() {
				s.proxy.log.Info("pods are found by EndpointSlices alone, somewhat later: the ClusterRole of the activator lacks get on services or watch on pods",
					"namespace", s.fn.key.Namespace, "function", s.fn.key.Name, "err", err.Error())
			})
			return
		case err != nil:
			s.proxy.log.V(1).Info("cannot watch the pods of a function that wakes", "namespace", s.fn.key.Namespace, "function", s.fn.key.Name, "err", err.Error())
		}
		sleep(ctx, jitter(delay))
	}
}

// errNoPods is of a Service whose pods, if there are any, Kubernetes does not select.
var errNoPods = errors.New("the Service selects no pods")

// watch takes in what one watch tells, until that ends.
func (s *scout) watch(ctx context.Context) error {
	service, events, err := s.proxy.watchPods(ctx, s.of)
	if err != nil {
		return err
	}
	defer events.Stop()
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == s.of.port })
	if i < 0 {
		return errNoPods
	}
	s.fn.beginEarly() //nolint:contextcheck // as above
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		switch {
		case event.Type == watch.Error:
			return apierrors.FromObject(event.Object)
		case !ok:
			continue
		}
		e := earlyPod{of: s.of, object: pod}
		if event.Type != watch.Deleted {
			e.endpoint = endpointOf(pod, service, &service.Spec.Ports[i])
		}
		s.fn.setEarly(e) //nolint:contextcheck // as above
	}
	return nil
}

// watchPods watches the pods that the Service in of selects, first those that there are; errNoPods if it selects none.
func (p *proxy) watchPods(ctx context.Context, of paths) (*corev1.Service, watch.Interface, error) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	service, err := p.podReader.Service(reading, of.service)
	switch {
	case err != nil:
		return nil, nil, err
	case len(service.Spec.Selector) == 0 || service.Spec.Type == corev1.ServiceTypeExternalName:
		return nil, nil, errNoPods
	}
	events, err := p.podReader.WatchPods(ctx, service.Namespace, service.Spec.Selector)
	return service, events, err
}

// endpointOf is the endpoint of pod at a port of service, as the EndpointSlices will have it; without an address while it
// has none, and for ever once it ends.
func endpointOf(pod *corev1.Pod, service *corev1.Service, port *corev1.ServicePort) v1alpha1.PodEndpoint {
	ep := v1alpha1.PodEndpoint{UID: pod.UID, Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}}
	ep.Terminating = pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if ep.Port = targetPort(pod, port); ep.Port == 0 || ep.Terminating {
		return ep
	}
	// Of a Service of both families the IPv4 addresses are used, as from EndpointSlices.
	v4 := slices.Contains(service.Spec.IPFamilies, corev1.IPv4Protocol) || len(service.Spec.IPFamilies) == 0
	for _, ip := range pod.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil && addr.Is4() == v4 {
			ep.Address = ip.IP
			break
		}
	}
	return ep
}

// targetPort is the port of pod that port leads to; 0 for none.
func targetPort(pod *corev1.Pod, port *corev1.ServicePort) int32 {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal
	}
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == port.TargetPort.StrVal && (p.Protocol == port.Protocol || p.Protocol == "" || port.Protocol == "") {
				return p.ContainerPort
			}
		}
	}
	return 0
}

// earlyPod is a pod that a scout has seen.
type earlyPod struct {
	of       paths
	object   *corev1.Pod // nil once the scout has ended
	endpoint v1alpha1.PodEndpoint
	// It was in an EndpointSlice, or it ends: the scout has nothing to say of it any more.
	settled bool
}

// endpointsLocked are the pods that the EndpointSlices tell of, and after them those that they do not tell of yet.
func (fn *function) endpointsLocked() []v1alpha1.PodEndpoint {
	if len(fn.early) == 0 {
		return fn.listed
	}
	for _, ep := range fn.listed {
		if e := fn.early[ep.UID]; e != nil {
			e.settled = true
		}
	}
	proven, of := fn.provenLocked(), pathsOf(fn.object.Load())
	maps.DeleteFunc(fn.early, func(uid types.UID, e *earlyPod) bool {
		return e.of != of || !fn.scouted && (e.settled || !proven[uid])
	})
	all := slices.Clip(fn.listed)
	for _, e := range fn.early {
		if !e.settled && e.endpoint.Address != "" {
			all = append(all, e.endpoint)
		}
	}
	slices.SortFunc(all[len(fn.listed):], func(a, b v1alpha1.PodEndpoint) int { return strings.Compare(a.Pod.Name, b.Pod.Name) })
	return all
}

// provenLocked are the pods that take requests.
func (fn *function) provenLocked() map[types.UID]bool {
	proven := map[types.UID]bool{}
	for _, p := range fn.pods.Load().ready {
		proven[p.uid] = !p.expired()
	}
	return proven
}

// beginEarly takes in that a watch begins, which will tell of all pods that there are. What another one has left unproven may
// be gone. What is settled stays so: the API server that is asked now may be behind.
func (fn *function) beginEarly() {
	fn.changeEarly(func() {
		fn.scouted = true
		proven := fn.provenLocked()
		maps.DeleteFunc(fn.early, func(uid types.UID, e *earlyPod) bool { return !e.settled && !proven[uid] })
	})
}

// setEarly takes in what the watch tells of a pod.
func (fn *function) setEarly(e earlyPod) {
	fn.changeEarly(func() {
		if known := fn.early[e.object.UID]; known != nil {
			e.settled = known.settled || known.endpoint.Address != "" && e.endpoint.Address == ""
		}
		if fn.early == nil {
			fn.early = map[types.UID]*earlyPod{}
		}
		fn.early[e.object.UID] = &e
	})
}

// endEarly takes in that nobody watches any more.
func (fn *function) endEarly() {
	fn.changeEarly(func() {
		fn.scouted = false
		for _, e := range fn.early {
			e.object = nil
		}
	})
}

// changeEarly makes the snapshot of pods anew after a change of what scouts have seen. Also where that has fewer pods who waits
// has to be told: those that are left may be others' now, under a limit.
func (fn *function) changeEarly(change func()) {
	fn.podsMu.Lock()
	change()
	changed := fn.restoreLocked()
	fn.podsMu.Unlock()
	if changed {
		fn.letGo()
		fn.queue.tell()
	}
}

// watched is the pod as a scout has seen it, nil where none has.
func (fn *function) watched(uid types.UID) *corev1.Pod {
	fn.podsMu.Lock()
	defer fn.podsMu.Unlock()
	if e := fn.early[uid]; e != nil {
		return e.object
	}
	return nil
}
