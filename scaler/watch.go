package scaler

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Indexes of Functions in the cache.
const (
	indexWorkload = "workload" // workloadIndex of the workload
	indexService  = "service"  // name of the own Service
	indexFallback = "fallback" // name of the Service of spec.activation.fallback
	indexHost     = "host"     // each of spec.traffic.hosts and status.gate.hosts
	indexGatePort = "gatePort" // status.gate.port
)

// indexes says under which values a Function is found.
var indexes = map[string]func(*v1alpha1.Function) []string{
	indexWorkload: func(fn *v1alpha1.Function) []string { return []string{workloadIndexOf(fn)} },
	indexService: func(fn *v1alpha1.Function) []string {
		if name := fn.ServiceName(); name != "" {
			return []string{name}
		}
		return nil
	},
	indexFallback: func(fn *v1alpha1.Function) []string {
		if f := fn.Spec.Activation.Fallback; f != nil {
			return []string{f.Name}
		}
		return nil
	},
	indexHost: hostsConcerned,
	indexGatePort: func(fn *v1alpha1.Function) []string {
		if fn.Status.Gate == nil {
			return nil
		}
		return []string{fmt.Sprint(fn.Status.Gate.Port)}
	},
}

// asIndexer fits one of indexes to the cache.
func asIndexer(values func(*v1alpha1.Function) []string) client.IndexerFunc {
	return func(obj client.Object) []string {
		if fn, ok := obj.(*v1alpha1.Function); ok {
			return values(fn)
		}
		return nil
	}
}

// doorbell puts functions into the reconciler's queue from outside of any watch. Ringing never blocks, and is lost
// before the queue exists, when everything is reconciled soon anyway.
type doorbell struct {
	queue atomic.Pointer[workqueue.TypedRateLimitingInterface[reconcile.Request]]
}

func (b *doorbell) ring(fn types.NamespacedName) {
	if q := b.queue.Load(); q != nil {
		(*q).Add(reconcile.Request{NamespacedName: fn})
	}
}

func (b *doorbell) source() source.Source {
	return source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		b.queue.Store(&q)
		return nil
	})
}

// setUp makes the controller: what it indexes, watches, and how many functions it reconciles at a time.
func (r *Reconciler) setUp(ctx context.Context, mgr manager.Manager, bell *doorbell) error {
	for name, values := range indexes {
		if err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.Function{}, name, asIndexer(values)); err != nil {
			return fmt.Errorf("index %s: %w", name, err)
		}
	}
	// Status updates of HorizontalPodAutoscalers come every 15 s each and concern nobody here.
	specOnly := builder.WithPredicates(predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		a, okA := e.ObjectOld.(*autoscalingv2.HorizontalPodAutoscaler)
		b, okB := e.ObjectNew.(*autoscalingv2.HorizontalPodAutoscaler)
		return !okA || !okB || !reflect.DeepEqual(a.Spec, b.Spec) || !reflect.DeepEqual(a.Labels, b.Labels) ||
			!reflect.DeepEqual(a.OwnerReferences, b.OwnerReferences) || !reflect.DeepEqual(a.Annotations, b.Annotations)
	}})
	// Our own status writes must not call us again.
	changed := builder.WithPredicates(predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() ||
			(e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil) ||
			!slices.Equal(e.ObjectOld.GetFinalizers(), e.ObjectNew.GetFinalizers())
	}})
	log := mgr.GetLogger()
	// Each kind is mapped to the functions that it concerns; a name in use by none costs one look into an index.
	b := ctrl.NewControllerManagedBy(mgr).
		Named("function").
		For(&v1alpha1.Function{}, changed).
		Watches(&v1alpha1.Function{}, handler.EnqueueRequestsFromMapFunc(r.rivals), changed).
		Watches(&autoscalingv2.HorizontalPodAutoscaler{}, handler.EnqueueRequestsFromMapFunc(r.ofHPA), specOnly).
		Watches(&corev1.Service{}, handler.EnqueueRequestsFromMapFunc(r.ofService)).
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(r.ofSlice)).
		WatchesRawSource(bell.source()).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 8,
			ReconciliationTimeout:   30 * time.Second,
			LogConstructor: func(req *reconcile.Request) logr.Logger {
				if req == nil {
					return log
				}
				return log.WithValues("function", req.String())
			},
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, time.Minute),
		})
	for _, kind := range workloadKinds() {
		b = b.Watches(kind, handler.EnqueueRequestsFromMapFunc(r.ofWorkload))
	}
	return b.Complete(r)
}

// rivals are the other Functions that share the workload, the Service or a host with one that came, changed or went.
func (r *Reconciler) rivals(ctx context.Context, obj client.Object) []reconcile.Request {
	fn, ok := obj.(*v1alpha1.Function)
	if !ok {
		return nil
	}
	found := r.withIndex(ctx, fn.Namespace, indexWorkload, workloadIndexOf(fn))
	if name := fn.ServiceName(); name != "" {
		found = append(found, r.withIndex(ctx, fn.Namespace, indexService, name)...)
	}
	for _, host := range hostsConcerned(fn) {
		found = append(found, r.withIndex(ctx, "", indexHost, host)...)
	}
	return slices.DeleteFunc(found, func(q reconcile.Request) bool { return q.NamespacedName == fn.Key() })
}

func (r *Reconciler) ofWorkload(ctx context.Context, obj client.Object) []reconcile.Request {
	return r.withIndex(ctx, obj.GetNamespace(), indexWorkload, workloadIndex(workloadKind(obj), obj.GetName()))
}

func (r *Reconciler) ofHPA(ctx context.Context, obj client.Object) []reconcile.Request {
	found := labelled(obj)
	if hpa, ok := obj.(*autoscalingv2.HorizontalPodAutoscaler); ok {
		ref := hpa.Spec.ScaleTargetRef
		found = append(found, r.withIndex(ctx, hpa.Namespace, indexWorkload, workloadIndex(ref.Kind, ref.Name))...)
	}
	return found
}

func (r *Reconciler) ofService(ctx context.Context, obj client.Object) []reconcile.Request {
	found := append(labelled(obj), r.withIndex(ctx, obj.GetNamespace(), indexService, obj.GetName())...)
	found = append(found, r.withIndex(ctx, obj.GetNamespace(), indexFallback, obj.GetName())...)
	// One that stands in the way of sluice-<function> carries no label of ours.
	if name := obj.GetName(); len(name) > len("sluice-") && name[:len("sluice-")] == "sluice-" {
		found = append(found, reconcile.Request{
			NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: name[len("sluice-"):]},
		})
	}
	return found
}

// ofSlice: a slice of the activators concerns every function with a gate, any other the functions of its Service.
func (r *Reconciler) ofSlice(ctx context.Context, obj client.Object) []reconcile.Request {
	service := obj.GetLabels()[discoveryv1.LabelServiceName]
	found := append(labelled(obj), r.withIndex(ctx, obj.GetNamespace(), indexService, service)...)
	if service != v1alpha1.ActivatorService || obj.GetNamespace() != r.namespace {
		return found
	}
	var list v1alpha1.FunctionList
	if err := r.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return found // the cache ends, and with it all of this
	}
	for i := range list.Items {
		if fn := &list.Items[i]; fn.Status.Gate != nil {
			found = append(found, reconcile.Request{NamespacedName: fn.Key()})
		}
	}
	return found
}

// labelled is the function that obj was made for, by the label: an owner reference may name one of an earlier life.
func labelled(obj client.Object) []reconcile.Request {
	name := obj.GetLabels()[v1alpha1.FunctionLabel]
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: name}}}
}

func (r *Reconciler) withIndex(ctx context.Context, namespace, index, value string) []reconcile.Request {
	var list v1alpha1.FunctionList
	opts := []client.ListOption{client.MatchingFields{index: value}, client.UnsafeDisableDeepCopy}
	if namespace != "" {
		opts = append(opts, client.InNamespace(namespace))
	}
	if err := r.List(ctx, &list, opts...); err != nil {
		return nil // the cache ends, and with it all of this
	}
	found := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		found[i].NamespacedName = list.Items[i].Key()
	}
	return found
}
