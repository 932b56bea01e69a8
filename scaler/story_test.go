package scaler

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// story is a cluster in memory, with a reconciler and everything that acts on the cluster beside it: the test plays
// the Deployment and EndpointSlice controllers, the activator, and the user. It runs in a synctest bubble, so that
// nights pass in no time.
type story struct {
	*testing.T
	client.WithWatch
	r      *Reconciler
	proofs scripted
	events chan string
	// writes since the last call of wrote: "create *v1.EndpointSlice sluice-hello.gate", "scale hello 1 -> 0".
	writes []string
	// granted are the rights of the scaler's ClusterRole.
	granted []string
	// stale, if set, is the Deployment as the cache shows it.
	stale *appsv1.Deployment
	// refuse fails writes of objects.
	refuse func(verb string, obj client.Object) error
}

// inStory runs a story with the objects in the cluster.
func inStory(t *testing.T, objects []client.Object, tell func(s *story)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStory(t, objects)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error)
		go func() { stopped <- s.r.proofs.Start(ctx) }()
		defer func() {
			cancel()
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		}()
		tell(s)
	})
}

func newStory(t *testing.T, objects []client.Object) *story {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	s := &story{T: t, proofs: make(scripted), events: make(chan string, 1000), granted: rights(t, "ClusterRole")}
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.Function{})
	for name, values := range indexes {
		b = b.WithIndex(&v1alpha1.Function{}, name, asIndexer(values))
	}
	s.WithWatch = b.Build()
	s.restart()
	return s
}

// restart gives the story a new reconciler, which remembers nothing.
func (s *story) restart() {
	old := s.r
	s.r = &Reconciler{
		Client:    interceptor.NewClient(s.WithWatch, s.intercept()),
		namespace: v1alpha1.SystemNamespace,
		rules:     rules{Grace: time.Second},
		recorder:  &events.FakeRecorder{Events: s.events},
		poller:    newPoller(nil, time.Second, func(types.NamespacedName) {}, newTelemetry()),
		proofs:    newProofs(s.proofs, func(types.NamespacedName, bool) {}),
		ports:     newPorts(20000, 20009),
		ring:      func(types.NamespacedName) {},
		metrics:   newTelemetry(),
	}
	if old != nil {
		s.r.proofs = old.proofs // its goroutine runs on
	}
}

func (s *story) intercept() interceptor.Funcs {
	note := func(verb string, obj client.Object) error {
		if verb == "status" {
			s.authorize("patch", obj, "status")
		} else {
			s.authorize(verb, obj, "")
		}
		if s.refuse != nil {
			if err := s.refuse(verb, obj); err != nil {
				return err
			}
		}
		s.writes = append(s.writes, fmt.Sprintf("%s %T %s", verb, obj, obj.GetName()))
		return nil
	}
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if d, ok := obj.(*appsv1.Deployment); ok && s.stale != nil {
				s.stale.DeepCopyInto(d)
				return nil
			}
			return c.Get(ctx, key, obj, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if err := note("create", obj); err != nil {
				return err
			}
			return c.Create(ctx, obj, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			if err := note("update", obj); err != nil {
				return err
			}
			return c.Update(ctx, obj, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			if err := note("delete", obj); err != nil {
				return err
			}
			return c.Delete(ctx, obj) // the fake knows no preconditions
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := note("patch", obj); err != nil {
				return err
			}
			return c.Patch(ctx, obj, p, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, obj client.Object, p client.Patch,
			opts ...client.SubResourcePatchOption,
		) error {
			if sub == "scale" {
				return s.patchScale(ctx, obj, p, opts...)
			}
			if err := note(sub, obj); err != nil {
				return err
			}
			return c.SubResource(sub).Patch(ctx, obj, p, opts...)
		},
	}
}

// patchScale applies a JSON patch to the scale of a workload as the API server does: replicas is omitted at zero, and
// a test that does not hold is answered by 422.
func (s *story) patchScale(ctx context.Context, obj client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
	s.authorize("patch", obj, "scale")
	if s.refuse != nil {
		if err := s.refuse("scale", obj); err != nil {
			return err
		}
	}
	d := emptyWorkload(workloadKind(obj))
	if err := s.Get(ctx, client.ObjectKeyFromObject(obj), d); err != nil {
		return err
	}
	old := newWorkload(d).Replicas
	doc, err := json.Marshal(autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: old}})
	if err != nil {
		return err
	}
	data, err := p.Data(obj)
	if err != nil {
		return err
	}
	patch, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return err
	}
	if doc, err = patch.Apply(doc); err != nil {
		return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	o := client.SubResourcePatchOptions{}
	o.ApplyOptions(opts)
	scale := o.SubResourceBody.(*autoscalingv1.Scale)
	if err := json.Unmarshal(doc, scale); err != nil {
		return err
	}
	switch d := d.(type) {
	case *appsv1.Deployment:
		d.Spec.Replicas = new(scale.Spec.Replicas)
	case *appsv1.StatefulSet:
		d.Spec.Replicas = new(scale.Spec.Replicas)
	}
	if err := s.Update(ctx, d); err != nil {
		return err
	}
	scale.ResourceVersion = d.GetResourceVersion()
	s.writes = append(s.writes, fmt.Sprintf("scale %s %d -> %d", d.GetName(), old, scale.Spec.Replicas))
	return nil
}

// reconcile runs one reconcile of default/name.
func (s *story) reconcile(name string) reconcile.Result {
	s.Helper()
	result, err := s.tryReconcile(name)
	if err != nil {
		s.Fatalf("reconcile %s: %v", name, err)
	}
	return result
}

func (s *story) tryReconcile(name string) (reconcile.Result, error) {
	synctest.Wait() // for proofs under way
	result, err := s.r.Reconcile(s.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "default", Name: name}})
	synctest.Wait()
	return result, err
}

// pass lets time go by.
func (s *story) pass(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // synctest

// wrote asserts the writes since the last call, status and finalizer of Functions aside.
func (s *story) wrote(want ...string) {
	s.Helper()
	got := slices.DeleteFunc(s.writes, func(w string) bool { return strings.Contains(w, "v1alpha1.Function") })
	s.writes = nil
	if !slices.Equal(got, want) {
		s.Errorf("writes: got %q, want %q", got, want)
	}
}

// wroteNothing asserts that there was no write at all.
func (s *story) wroteNothing() {
	s.Helper()
	if len(s.writes) > 0 {
		s.Errorf("writes: got %q, want none", s.writes)
	}
	s.writes = nil
}

// get reads an object of namespace default; nil when there is none.
func get[T any, P interface {
	*T
	client.Object
}](s *story, name string) P {
	s.Helper()
	obj := P(new(T))
	err := s.Get(s.Context(), types.NamespacedName{Namespace: "default", Name: name}, obj)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.Fatal(err)
	}
	return obj
}

func (s *story) function(name string) *v1alpha1.Function {
	s.Helper()
	return get[v1alpha1.Function](s, name)
}

func (s *story) condition(name, kind string) metav1.Condition {
	s.Helper()
	if c := meta.FindStatusCondition(s.function(name).Status.Conditions, kind); c != nil {
		return *c
	}
	s.Fatalf("function %s has no condition %s", name, kind)
	return metav1.Condition{}
}

// wantCondition asserts status and reason, and that the message has each of the words.
func (s *story) wantCondition(name, kind string, status metav1.ConditionStatus, reason string, words ...string) {
	s.Helper()
	c := s.condition(name, kind)
	if c.Status != status || c.Reason != reason {
		s.Errorf("%s of %s: got %s %s (%s), want %s %s", kind, name, c.Status, c.Reason, c.Message, status, reason)
	}
	for _, word := range words {
		if !strings.Contains(c.Message, word) {
			s.Errorf("%s of %s: message %q does not say %q", kind, name, c.Message, word)
		}
	}
}

// change updates an object as a user would.
func change[T any, P interface {
	*T
	client.Object
}](s *story, name string, mutate func(P)) {
	s.Helper()
	obj := get[T, P](s, name)
	if obj == nil {
		s.Fatalf("no %T %s", obj, name)
	}
	mutate(obj)
	if err := s.Update(s.Context(), obj); err != nil {
		s.Fatal(err)
	}
}

func (s *story) scale(name string, replicas int32) {
	s.Helper()
	change(s, name, func(d *appsv1.Deployment) { d.Spec.Replicas = &replicas })
}

func (s *story) replicas(name string) int32 {
	s.Helper()
	return *get[appsv1.Deployment](s, name).Spec.Replicas
}

// ready makes the pods behind Service name: those named are ready.
func (s *story) ready(name string, pods ...string) {
	s.Helper()
	change(s, name+"-abc", func(slice *discoveryv1.EndpointSlice) { slice.Endpoints = podEndpoints(pods...) })
}

// metrics sets what the poller knows, as of now.
func (s *story) metrics(name string, idle time.Duration, rps float64) {
	p := s.r.poller
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.values[types.NamespacedName{Namespace: "default", Name: name}] = map[string]sample{
		v1alpha1.IdleSeconds:       {Value: idle.Seconds(), Time: now, Polled: now},
		v1alpha1.RequestsPerSecond: {Value: rps, Time: now, Polled: now},
		v1alpha1.RequestsInFlight:  {Value: 0, Time: now, Polled: now},
	}
}

// poll lets the poller read one external metric of the function, and nothing else. The function must be tracked.
func (s *story) poll(name, metric string, value float64) {
	p := s.r.poller
	key := types.NamespacedName{Namespace: "default", Name: name}
	p.remember(time.Now(), map[listed]*answer{
		{"default", metric}: {samples: map[types.NamespacedName]sample{key: {Value: value, Time: time.Now()}}},
	})
}

// unknown lets the metrics API say that it has no value of the function, and why.
func (s *story) unknown(name, why string) {
	p := s.r.poller
	p.mu.Lock()
	defer p.mu.Unlock()
	values := map[string]sample{}
	for _, metric := range requestMetrics {
		values[metric] = sample{Unknown: why}
	}
	p.values[types.NamespacedName{Namespace: "default", Name: name}] = values
}

// gated tells which endpoints the gate's slice in the own Service has; nil when there is none.
func (s *story) gated(name string) []string {
	s.Helper()
	return addresses(get[discoveryv1.EndpointSlice](s, "sluice-"+name+".gate"))
}

func addresses(slice *discoveryv1.EndpointSlice) []string {
	if slice == nil {
		return nil
	}
	var all []string
	for _, ep := range slice.Endpoints {
		all = append(all, ep.Addresses...)
	}
	return all
}

// newEvents are the Events since the last call.
func (s *story) newEvents() []string {
	var all []string
	for {
		select {
		case e := <-s.events:
			kindAndReason := strings.SplitN(e, " ", 3)
			all = append(all, kindAndReason[1])
		default:
			return all
		}
	}
}

// Objects of stories.

func newFunction(name string, change ...func(*v1alpha1.Function)) *v1alpha1.Function {
	fn := &v1alpha1.Function{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID("uid-" + name), Generation: 1,
			CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
		},
		Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{Mode: v1alpha1.Direct, PodMetrics: &v1alpha1.PodMetrics{Requests: "requests_total"}},
			Scale:   v1alpha1.Scale{MaxReplicas: 10, IdleAfter: &metav1.Duration{Duration: 10 * time.Second}},
			Metrics: []v1alpha1.Metric{{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("50")}}},
		},
	}
	for _, c := range change {
		c(fn)
	}
	return fn
}

func newDeployment(name string, replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("deployment-" + name)},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas},
	}
}

func newService(name string, ports ...corev1.ServicePort) *corev1.Service {
	if len(ports) == 0 {
		ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, AppProtocol: new("http")}}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("service-" + name)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", Selector: map[string]string{"app": name}, Ports: ports,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		},
	}
}

func newSlice(namespace, service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: service + "-abc", Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: ptr.To[int32](8080)}},
		Endpoints:   endpoints,
	}
}

func podEndpoints(pods ...string) []discoveryv1.Endpoint {
	var all []discoveryv1.Endpoint
	for i, pod := range pods {
		all = append(all, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.244.0.%d", 20+i)},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod, UID: types.UID(pod)},
		})
	}
	return all
}

// activators is the slice of the activators' Service with as many ready pods.
func activators(n int) *discoveryv1.EndpointSlice {
	slice := newSlice(v1alpha1.SystemNamespace, v1alpha1.ActivatorService)
	for i := range n {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.244.0.%d", 5+i)}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return slice
}

// awakeWorld is a function with one ready pod, everything set up for it, and two activators.
func awakeWorld(fn *v1alpha1.Function, more ...client.Object) []client.Object {
	return append([]client.Object{
		fn, newDeployment(fn.Name, 1), newService(fn.Name), newSlice("default", fn.Name, podEndpoints(fn.Name+"-1")...), activators(2),
	}, more...)
}

// sleepingWorld is one that sleeps.
func sleepingWorld(fn *v1alpha1.Function, more ...client.Object) []client.Object {
	return append([]client.Object{
		fn, newDeployment(fn.Name, 0), newService(fn.Name), newSlice("default", fn.Name), activators(2),
	}, more...)
}
