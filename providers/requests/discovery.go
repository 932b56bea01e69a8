package requests

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	metadataclient "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/api/watches"
	"github.com/sluice-dev/sluice/providers"
)

// slicesByService is the cache's index of EndpointSlices by the Service they belong to.
const slicesByService = "metadata.labels." + discoveryv1.LabelServiceName

// retryWatch is the pause after a watch could not be set up, for example because the Function kind is not installed.
const retryWatch = 2 * time.Second

// Kinds of the objects for which a function's values are served too. Only their metadata is watched.
var (
	podKind         = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	serviceKind     = schema.GroupVersionKind{Version: "v1", Kind: "Service"}
	deploymentKind  = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	statefulSetKind = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"}
)

var (
	podResource     = schema.GroupResource{Resource: "pods"}
	serviceResource = schema.GroupResource{Resource: "services"}
)

// Discovery finds functions, their pods, queries and objects, and the activators. It watches Functions and
// EndpointSlices, and the metadata of Pods, Services, Deployments and StatefulSets.
type Discovery struct {
	// Config of the Kubernetes API server. Required.
	Config *rest.Config
	// Namespace of the activators' Service. Default v1alpha1.SystemNamespace.
	Namespace string

	mapper meta.RESTMapper // of tests; nil asks the API server
}

var _ providers.Discovery = (*Discovery)(nil)

// Run implements providers.Discovery. While the API server cannot be reached it waits, and later it goes on from what
// it last saw.
func (d *Discovery) Run(ctx context.Context, sink providers.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	config := watches.Config(ctx, d.Config)
	watched, err := cache.New(config, cacheOptions(d.mapper))
	if err != nil {
		return fmt.Errorf("cache of functions and endpoint slices: %w", err)
	}
	objects, err := metadataclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("client for metadata: %w", err)
	}
	namespace := d.Namespace
	if namespace == "" {
		namespace = v1alpha1.SystemNamespace
	}
	w := newWatcher(watched, namespace, sink)
	running.Go(func() {
		if err := watched.Start(ctx); err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "cache of functions and endpoint slices ended")
		}
	})
	synced := w.watch(ctx, watched)
	for kind, m := range w.metadata {
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		running.Go(func() { m.follow(ctx, objects, resource, fieldsOf[kind]) })
		synced = append(synced, m.hasSynced)
	}
	if !watched.WaitForCacheSync(ctx) || !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx has ended
	}
	return w.run(ctx)
}

// fieldsOf select what is followed of a kind: of pods those that have not ended, since jobs leave many.
var fieldsOf = map[schema.GroupVersionKind]string{
	podKind: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
}

// cacheOptions say what is kept of Functions and EndpointSlices: what is read of them, for there may be tens of
// thousands.
func cacheOptions(mapper meta.RESTMapper) cache.Options {
	scheme := runtime.NewScheme()
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	notTheGates, err := labels.Parse(discoveryv1.LabelManagedBy + "!=" + v1alpha1.GateManager)
	utilruntime.Must(err)
	return cache.Options{
		Scheme: scheme,
		Mapper: mapper,
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Function{}: {Transform: stripFunction},
			// All gates' slices list every activator: where one rolls, each of them changes.
			&discoveryv1.EndpointSlice{}: {Transform: stripSlice, Label: notTheGates},
		},
	}
}

// stripped is what is kept of an object's metadata. The informer takes a change that leaves the resource version as it
// is for none, so that it must be kept too.
func stripped(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels,
	}
}

// stripFunction leaves out what an adapter never reads, above all the status, which changes often. It is a
// toolscache.TransformFunc, as is stripSlice: they are given objects that nobody else has yet.
func stripFunction(object any) (any, error) {
	if fn, ok := object.(*v1alpha1.Function); ok {
		var status v1alpha1.FunctionStatus
		if fn.Status.Gate != nil {
			status.Gate = &v1alpha1.GateStatus{ServicePort: fn.Status.Gate.ServicePort}
		}
		if fn.IsSuperseded() {
			status.Conditions = []metav1.Condition{{
				Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonWorkloadConflict,
			}}
		}
		fn.TypeMeta, fn.ObjectMeta, fn.Status = metav1.TypeMeta{}, stripped(&fn.ObjectMeta), status
		fn.Spec.Scale.Behavior = nil
	}
	return object, nil
}

// stripSlice keeps the owners, by which a gate's slice is known that has lost its label.
func stripSlice(object any) (any, error) {
	if slice, ok := object.(*discoveryv1.EndpointSlice); ok {
		owners := slice.OwnerReferences
		slice.TypeMeta, slice.ObjectMeta = metav1.TypeMeta{}, stripped(&slice.ObjectMeta)
		for _, o := range owners {
			if o.Kind == "Function" {
				slice.OwnerReferences = append(slice.OwnerReferences, o)
			}
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			e.NodeName, e.Zone, e.Hostname, e.Hints, e.DeprecatedTopology = nil, nil, nil, nil, nil
			if len(e.Addresses) > 1 {
				e.Addresses = e.Addresses[:1] // the others are the same endpoint
			}
		}
	}
	return object, nil
}
