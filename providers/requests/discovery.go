package requests

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// Names of the cache's indexes: Functions and EndpointSlices by the Service they belong to.
const (
	functionsByService = "spec.traffic.service.name"
	slicesByService    = "metadata.labels." + discoveryv1.LabelServiceName
)

// retryWatch is the pause after a watch could not be set up, for example because the Function kind is not installed.
const retryWatch = 2 * time.Second

// Discovery finds functions, their pods and the activators, by watching Functions and EndpointSlices.
type Discovery struct {
	// Config of the Kubernetes API server. Required.
	Config *rest.Config
	// Namespace of the activators' Service. Default v1alpha1.SystemNamespace.
	Namespace string
}

var _ providers.Discovery = (*Discovery)(nil)

// Run implements providers.Discovery. While the API server cannot be reached it waits, and later it goes on from what
// it last saw.
func (d *Discovery) Run(ctx context.Context, sink providers.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	scheme := runtime.NewScheme()
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	watched, err := cache.New(d.Config, cache.Options{
		Scheme:           scheme,
		DefaultTransform: cache.TransformStripManagedFields(),
	})
	if err != nil {
		cancel()
		return fmt.Errorf("cache of functions and endpoint slices: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := watched.Start(ctx); err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "cache of functions and endpoint slices ended")
		}
	})

	namespace := d.Namespace
	if namespace == "" {
		namespace = v1alpha1.SystemNamespace
	}
	w := newWatcher(watched, namespace, sink)
	handlers := w.watch(ctx, watched)
	if !watched.WaitForCacheSync(ctx) || !toolscache.WaitForCacheSync(ctx.Done(), handlers...) {
		return nil // ctx has ended
	}
	return w.run(ctx)
}

// watcher turns changes of objects into calls of its sink. One goroutine works through a queue of what has changed, so
// that a burst of events for one Service is one look at it, and the sink is never called twice at a time.
type watcher struct {
	reader    client.Reader
	namespace string
	sink      providers.Sink
	queue     workqueue.TypedInterface[change]

	// Of the goroutine that runs the queue alone:
	synced     bool
	activators map[providers.Target]bool // true for those that were new when they were found
	functions  map[types.NamespacedName]*known
}

// known is what the sink was last told of a function.
type known struct {
	rule providers.Rule
	pods map[providers.Target]bool // true for those that were new when they were found
}

// change names an object to look at again: a Function, or a Service whose slices changed.
type change struct {
	service bool
	name    types.NamespacedName
}

func newWatcher(reader client.Reader, namespace string, sink providers.Sink) *watcher {
	return &watcher{
		reader: reader, namespace: namespace, sink: sink,
		queue:     workqueue.NewTyped[change](),
		functions: map[types.NamespacedName]*known{},
	}
}

// watch sets up the indexes and the event handlers, and returns what tells that the handlers have seen everything.
func (w *watcher) watch(ctx context.Context, watched cache.Cache) []toolscache.InformerSynced {
	setUp := []func() error{
		func() error {
			return watched.IndexField(ctx, &v1alpha1.Function{}, functionsByService, functionService)
		},
		func() error {
			return watched.IndexField(ctx, &discoveryv1.EndpointSlice{}, slicesByService, sliceService)
		},
	}
	var synced []toolscache.InformerSynced
	for _, object := range []client.Object{&v1alpha1.Function{}, &discoveryv1.EndpointSlice{}} {
		setUp = append(setUp, func() error {
			informer, err := watched.GetInformer(ctx, object, cache.BlockUntilSynced(false))
			if err != nil {
				return err
			}
			handle, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
				AddFunc:    w.changed,
				UpdateFunc: func(_, now any) { w.changed(now) },
				DeleteFunc: w.changed,
			})
			if err != nil {
				return err
			}
			synced = append(synced, handle.HasSynced)
			return nil
		})
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

func functionService(o client.Object) []string {
	if fn, ok := o.(*v1alpha1.Function); ok && fn.ServiceName() != "" {
		return []string{fn.ServiceName()}
	}
	return nil
}

func sliceService(o client.Object) []string {
	if name := o.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
		return []string{name}
	}
	return nil
}

// changed queues what an event is about. It runs inside the informer and does nothing else.
func (w *watcher) changed(object any) {
	if gone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	switch o := object.(type) {
	case *v1alpha1.Function:
		w.queue.Add(change{name: o.Key()})
	case *discoveryv1.EndpointSlice:
		for _, service := range sliceService(o) {
			w.queue.Add(change{service: true, name: types.NamespacedName{Namespace: o.Namespace, Name: service}})
		}
	}
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
		c, shutdown := w.queue.Get()
		if shutdown {
			return nil
		}
		err := w.apply(ctx, c)
		w.queue.Done(c)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("look at %v: %w", c.name, err) // reads of the cache do not fail
		}
	}
}

func (w *watcher) apply(ctx context.Context, c change) error {
	if !c.service {
		return w.setFunction(ctx, c.name)
	}
	if c.name == (types.NamespacedName{Namespace: w.namespace, Name: v1alpha1.ActivatorService}) {
		if err := w.setActivators(ctx); err != nil {
			return err
		}
	}
	var functions v1alpha1.FunctionList
	err := w.reader.List(ctx, &functions, client.InNamespace(c.name.Namespace),
		client.MatchingFields{functionsByService: c.name.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return fmt.Errorf("list functions of service: %w", err)
	}
	for i := range functions.Items {
		if err := w.setFunction(ctx, functions.Items[i].Key()); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) setActivators(ctx context.Context) error {
	slices, err := w.slices(ctx, types.NamespacedName{Namespace: w.namespace, Name: v1alpha1.ActivatorService})
	if err != nil {
		return err
	}
	endpoints := activatorEndpoints(slices)
	w.activators = markNew(endpoints, w.activators, w.synced)
	w.sink.SetActivators(endpoints)
	return nil
}

func (w *watcher) setFunction(ctx context.Context, name types.NamespacedName) error {
	var fn v1alpha1.Function
	// The cache's own object: it is only read.
	err := w.reader.Get(ctx, name, &fn, &client.GetOptions{UnsafeDisableDeepCopy: new(true)})
	if apierrors.IsNotFound(err) {
		if w.functions[name] != nil {
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
	function, endpoints := providers.NewFunction(&fn), podEndpoints(&fn, slices)
	// A function that was not there before, or counted otherwise, may have had its pods for long.
	last := w.functions[name]
	looking := last != nil && last.rule == function.Rule
	if !looking {
		last = &known{rule: function.Rule}
		w.functions[name] = last
	}
	last.pods = markNew(endpoints, last.pods, looking)
	w.sink.SetFunction(function, endpoints)
	return nil
}

// markNew marks the endpoints that appeared while discovery was looking, and returns the marks for the next time. A
// known pod that is measured in another way than before is not new: it may have counted for long.
func markNew(endpoints []providers.Endpoint, before map[providers.Target]bool, looking bool) map[providers.Target]bool {
	listed := make(map[instance]bool, len(before))
	for t := range before {
		listed[instanceOf(t)] = true
	}
	now := make(map[providers.Target]bool, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		e.New = before[e.Target] || looking && !listed[instanceOf(e.Target)]
		now[e.Target] = e.New
	}
	return now
}

// instance is a pod, however it is measured.
type instance struct {
	uid  types.UID
	host string
}

func instanceOf(t providers.Target) instance {
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		host = t.Address
	}
	return instance{uid: t.UID, host: host}
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
