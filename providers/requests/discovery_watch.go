package requests

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// settled is the age from which a pod that is listed for the first time, and ready, is taken to have served before.
const settled = time.Minute

// watcher turns changes of objects into calls of its sink. One goroutine works through a queue of what has changed, so
// that a burst of events about one function is one look at it, and the sink is never called twice at a time. A change
// costs a look at the functions that name the changed object, whatever else there is.
type watcher struct {
	reader     client.Reader
	activators types.NamespacedName // their Service
	sink       providers.Sink
	metadata   map[schema.GroupVersionKind]*metadata // of the kinds that functions name
	queue      workqueue.TypedInterface[ref]

	// Of the goroutine that runs the queue alone:
	synced       bool
	activatorsAt sightings
	functions    map[types.NamespacedName]*known
	namedBy      map[ref][]types.NamespacedName // functions by the objects they name
}

// ref names an object: a Function, or one that Functions name. The slices of a Service are part of the Service.
type ref struct {
	kind schema.GroupVersionKind
	types.NamespacedName
}

// functionKind is that of a ref to a Function.
var functionKind = v1alpha1.GroupVersion.WithKind("Function")

// known is what the sink was last told of a function.
type known struct {
	rule  providers.Rule
	pods  sightings
	names []ref // what the function names
}

func newWatcher(reader client.Reader, namespace string, sink providers.Sink) *watcher {
	w := &watcher{
		reader: reader, activators: types.NamespacedName{Namespace: namespace, Name: v1alpha1.ActivatorService}, sink: sink,
		metadata:  map[schema.GroupVersionKind]*metadata{},
		queue:     workqueue.NewTyped[ref](),
		functions: map[types.NamespacedName]*known{},
		namedBy:   map[ref][]types.NamespacedName{},
	}
	for _, kind := range []schema.GroupVersionKind{podKind, serviceKind, deploymentKind, statefulSetKind} {
		w.metadata[kind] = &metadata{changed: func(name types.NamespacedName) { w.queue.Add(ref{kind, name}) }}
	}
	return w
}

// watch sets up the index and the event handlers, and returns what tells that the handlers have seen everything.
func (w *watcher) watch(ctx context.Context, watched cache.Cache) []toolscache.InformerSynced {
	var synced []toolscache.InformerSynced
	handle := func(kind schema.GroupVersionKind, object client.Object) error {
		informer, err := watched.GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		handle, err := informer.AddEventHandler(w.handler(kind))
		if err != nil {
			return err
		}
		synced = append(synced, handle.HasSynced)
		return nil
	}
	setUp := []func() error{
		func() error {
			return watched.IndexField(ctx, &discoveryv1.EndpointSlice{}, slicesByService, sliceService)
		},
		func() error { return handle(functionKind, &v1alpha1.Function{}) },
		func() error { return handle(serviceKind, &discoveryv1.EndpointSlice{}) },
	}
	for _, step := range setUp {
		for err := step(); err != nil; err = step() {
			logr.FromContextOrDiscard(ctx).Info("functions or endpoint slices cannot be watched yet", "err", err.Error())
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryWatch):
			}
		}
	}
	return synced
}

// handler queues what events are about: Functions, or Services whose slices changed. It does nothing else, for it holds
// up the informer.
func (w *watcher) handler(kind schema.GroupVersionKind) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(object any, first bool) {
			if !first { // run looks at all that is there at first
				w.changed(kind, object)
			}
		},
		UpdateFunc: func(was, now any) {
			if !alike(was, now) {
				w.changed(kind, was) // a slice may have been another Service's
				w.changed(kind, now)
			}
		},
		DeleteFunc: func(object any) { w.changed(kind, object) },
	}
}

func (w *watcher) changed(kind schema.GroupVersionKind, object any) {
	if gone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	o, ok := object.(client.Object)
	if !ok {
		return
	}
	name := o.GetName()
	if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
		if name = slice.Labels[discoveryv1.LabelServiceName]; name == "" {
			return
		}
	}
	w.queue.Add(ref{kind, types.NamespacedName{Namespace: o.GetNamespace(), Name: name}})
}

// alike tells that two versions of a Function, as they are cached, differ in nothing that is read. The scaler's writes of
// status are the most frequent events, and change nothing here.
func alike(was, now any) bool {
	a, ok := was.(*v1alpha1.Function)
	b, both := now.(*v1alpha1.Function)
	return ok && both && maps.Equal(a.Labels, b.Labels) &&
		reflect.DeepEqual(&a.Spec, &b.Spec) && reflect.DeepEqual(&a.Status, &b.Status)
}

func sliceService(o client.Object) []string {
	if name := o.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
		return []string{name}
	}
	return nil
}

// run tells the sink of everything there is, and then of every change until ctx ends. The caches must be synced.
func (w *watcher) run(ctx context.Context) error {
	var functions v1alpha1.FunctionList
	if err := w.reader.List(ctx, &functions, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list functions: %w", err)
	}
	if err := w.setActivators(ctx); err != nil {
		return err
	}
	for i := range functions.Items {
		if err := w.setFunction(ctx, functions.Items[i].Key()); err != nil {
			return err
		}
	}
	w.synced = true
	w.sink.Synced()

	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	for {
		changed, shutdown := w.queue.Get()
		if shutdown {
			return nil
		}
		err := w.apply(ctx, changed)
		w.queue.Done(changed)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("look at %s %s: %w", changed.kind.Kind, changed.NamespacedName, err) // reads of the cache do not fail
		}
	}
}

// apply looks at a function that has changed, or queues the functions that name what has changed: a thousand pods of
// one function that change together are one look at it.
func (w *watcher) apply(ctx context.Context, changed ref) error {
	if changed.kind == functionKind {
		return w.setFunction(ctx, changed.NamespacedName)
	}
	for _, fn := range w.namedBy[changed] {
		w.queue.Add(ref{functionKind, fn})
	}
	if changed.kind == serviceKind && changed.NamespacedName == w.activators {
		return w.setActivators(ctx)
	}
	return nil
}

func (w *watcher) setActivators(ctx context.Context) error {
	slices, err := w.slices(ctx, w.activators)
	if err != nil {
		return err
	}
	endpoints := activatorEndpoints(slices)
	w.activatorsAt = markNew(endpoints, w.activatorsAt, w.synced, w.servedBefore)
	w.sink.SetActivators(endpoints)
	return nil
}

func (w *watcher) setFunction(ctx context.Context, name types.NamespacedName) error {
	last := w.functions[name]
	var fn v1alpha1.Function
	// The cache's own object: it is only read.
	err := w.reader.Get(ctx, name, &fn, &client.GetOptions{UnsafeDisableDeepCopy: new(true)})
	if apierrors.IsNotFound(err) {
		if last != nil {
			w.name(name, last.names, nil)
			delete(w.functions, name)
			w.sink.DeleteFunction(name)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("get function: %w", err)
	}
	var slices []*discoveryv1.EndpointSlice
	if service := fn.ServiceName(); service != "" {
		if slices, err = w.slices(ctx, types.NamespacedName{Namespace: name.Namespace, Name: service}); err != nil {
			return err
		}
	}
	function := providers.NewFunction(&fn)
	pods := podEndpoints(&fn, function, slices)
	// A function that was not there before, or counted otherwise, may have had its pods for long.
	looking := last != nil && last.rule == function.Rule
	now := &known{rule: function.Rule}
	if looking {
		now.pods = last.pods
	}
	now.pods = markNew(pods, now.pods, looking, w.servedBefore)
	now.names = w.describe(&fn, &function, pods)
	var before []ref
	if last != nil {
		before = last.names
	}
	w.name(name, before, now.names)
	w.functions[name] = now
	w.sink.SetFunction(function, append(pods, queryEndpoints(&fn)...))
	return nil
}

// servedBefore tells whether a process that is listed for the first time is a pod that has been there for long and takes
// requests already: a Service that is led to other pods, as where two versions take turns, gets those. A pod that only
// was slow to begin is listed before it is ready.
func (w *watcher) servedBefore(e *providers.Endpoint) bool {
	return e.Ready && e.Pod.Name != "" &&
		w.metadata[podKind].age(types.NamespacedName{Namespace: e.Function.Namespace, Name: e.Pod.Name}, e.UID) > settled
}

// describe fills in the objects of the function and of its pods, and returns all that it names, whether it exists or
// not.
func (w *watcher) describe(fn *v1alpha1.Function, function *providers.Function, pods []providers.Endpoint) []ref {
	var names []ref
	describe := func(o *providers.Object, uid types.UID) {
		if m := w.metadata[o.Kind]; m != nil {
			at := ref{o.Kind, types.NamespacedName{Namespace: fn.Namespace, Name: o.Name}}
			names = append(names, at)
			m.find(at.NamespacedName, uid, o)
		}
	}
	workload, service := objectsOf(fn)
	describe(&workload, "")
	describe(&service, "")
	for i := range pods {
		describe(&pods[i].Pod, pods[i].UID)
	}
	if fn.IsSuperseded() {
		// The values of these objects are those of the older function. What this one names is followed all the same: it is
		// not superseded for ever.
		workload, service = providers.Object{}, providers.Object{}
		for i := range pods {
			pods[i].Pod = providers.Object{}
		}
	}
	function.Workload, function.Service = workload, service
	return names
}

// name keeps namedBy as function's names change.
func (w *watcher) name(function types.NamespacedName, before, now []ref) {
	if slices.Equal(before, now) {
		return
	}
	for _, r := range before {
		all := slices.DeleteFunc(w.namedBy[r], func(n types.NamespacedName) bool { return n == function })
		if w.namedBy[r] = all; len(all) == 0 {
			delete(w.namedBy, r)
		}
	}
	for _, r := range now {
		if !slices.Contains(w.namedBy[r], function) {
			w.namedBy[r] = append(w.namedBy[r], function)
		}
	}
}

func (w *watcher) slices(ctx context.Context, service types.NamespacedName) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := w.reader.List(ctx, &list, client.InNamespace(service.Namespace),
		client.MatchingFields{slicesByService: service.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices of service %s: %w", service, err)
	}
	slices := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		slices[i] = &list.Items[i]
	}
	return slices, nil
}
