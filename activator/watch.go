package activator

import (
	"context"
	"fmt"
	"net/http"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/api/watches"
)

// watcher feeds a table from the watches of Functions and EndpointSlices in all namespaces. It survives the API
// server being away: the table then stays as it was.
type watcher struct {
	cache  cache.Cache
	http   *http.Client
	synced []toolscache.InformerSynced
}

func newWatcher(ctx context.Context, cfg *rest.Config, t *table) (*watcher, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register the kinds to watch: %w", err)
		}
	}
	// Two kinds need no discovery, which would be one more thing to wait for at the start.
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{v1alpha1.GroupVersion, discoveryv1.SchemeGroupVersion})
	mapper.Add(v1alpha1.GroupVersion.WithKind("Function"), meta.RESTScopeNamespace)
	mapper.Add(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), meta.RESTScopeNamespace)

	cfg = watches.Config(ctx, cfg)
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make the client for watches: %w", err)
	}
	c, err := cache.New(cfg, cache.Options{
		HTTPClient: httpClient, Scheme: scheme, Mapper: mapper, DefaultTransform: cache.TransformStripManagedFields(),
	})
	if err != nil {
		return nil, fmt.Errorf("make the watches: %w", err)
	}
	w := &watcher{cache: c, http: httpClient}
	functions, err := c.GetInformer(ctx, &v1alpha1.Function{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch functions: %w", err)
	}
	endpoints, err := c.GetInformer(ctx, &discoveryv1.EndpointSlice{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch endpointslices: %w", err)
	}
	for _, h := range []struct {
		informer cache.Informer
		handler  toolscache.ResourceEventHandler
	}{{functions, functionHandler(t)}, {endpoints, sliceHandler(t)}} { //nolint:contextcheck // they outlive ctx
		registration, err := h.informer.AddEventHandler(h.handler)
		if err != nil {
			return nil, fmt.Errorf("handle events: %w", err)
		}
		w.synced = append(w.synced, registration.HasSynced)
	}
	return w, nil
}

func functionHandler(t *table) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { t.setFunction(obj.(*v1alpha1.Function)) },
		UpdateFunc: func(_, obj any) { t.setFunction(obj.(*v1alpha1.Function)) },
		DeleteFunc: func(obj any) {
			if fn, ok := lastKnown(obj).(*v1alpha1.Function); ok {
				t.removeFunction(fn.Key())
			}
		},
	}
}

func sliceHandler(t *table) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { t.setSlice(obj.(*discoveryv1.EndpointSlice)) },
		UpdateFunc: func(old, obj any) {
			from, to := old.(*discoveryv1.EndpointSlice), obj.(*discoveryv1.EndpointSlice)
			if serviceOfSlice(from) != serviceOfSlice(to) || v1alpha1.IsGateSlice(to) {
				t.removeSlice(from)
			}
			t.setSlice(to)
		},
		DeleteFunc: func(obj any) {
			if slice, ok := lastKnown(obj).(*discoveryv1.EndpointSlice); ok {
				t.removeSlice(slice)
			}
		},
	}
}

// lastKnown unwraps an object whose deletion the watch missed and the next list showed.
func lastKnown(obj any) any {
	if unknown, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		return unknown.Obj
	}
	return obj
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	if err := w.cache.Start(ctx); err != nil {
		return fmt.Errorf("watch functions and endpointslices: %w", err)
	}
	return nil
}

// waitSynced tells whether the table has taken in everything that existed at the start, false when ctx ends first.
func (w *watcher) waitSynced(ctx context.Context) bool {
	return toolscache.WaitForCacheSync(ctx.Done(), w.synced...)
}

func (w *watcher) close() { utilnet.CloseIdleConnectionsFor(w.http.Transport) }
