package scaler

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// record is what the reconciler remembers of a function. The work queue hands out a function to one worker at a time,
// so that a record needs no lock.
type record struct {
	uid types.UID
	mem memory
	// scaleVersion is the workload's resource version after our last write of its scale.
	scaleVersion string
	// status is what was last written, at which time, and statusVersion the Function's version after it.
	status        *v1alpha1.FunctionStatus
	statusVersion string
	statusAt      time.Time
	// transition is the last one that was carried out, until the status shows it.
	transition *v1alpha1.DecisionStatus
	// missingSince is since when the workload or the Service is missing; zero while both are there.
	missingSince time.Time
	// trackedSince is since when the function's metrics are read; zero while they are not.
	trackedSince time.Time
	// hostsLeft are hosts that are granted and no longer in the spec, and since when.
	hostsLeft map[string]time.Time
	// keepsProxied is world.keepsProxied, of which an Event tells once.
	keepsProxied bool
}

// wait says how long to wait before it is believed that something is missing; 0 when nothing is, or for long enough.
func (rec *record) wait(missing bool, now time.Time) time.Duration {
	if !missing {
		rec.missingSince = time.Time{}
		return 0
	}
	if rec.missingSince.IsZero() {
		rec.missingSince = now
	}
	return max(patience-now.Sub(rec.missingSince), 0)
}

// overlay shows our own last status write on a Function that the cache has from before it.
func (rec *record) overlay(fn *v1alpha1.Function) {
	if rec.status != nil && behind(fn.ResourceVersion, rec.statusVersion) {
		fn.Status = *rec.status.DeepCopy()
	}
}

// behind tells whether version, of an object in the cache, is from before the write that gave the object written.
func behind(version, written string) bool {
	if written == "" {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(version, written)
	// Versions that can not be compared are none of an API server; to wait for such would be to wait for ever.
	return err == nil && order < 0
}

// records holds one record for each function.
type records struct {
	mu sync.Mutex // protects following
	m  map[types.NamespacedName]*record
}

// of returns the record of fn, a fresh one for a Function that was made anew under an old name.
func (r *records) of(fn *v1alpha1.Function) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.m[fn.Key()]
	if rec == nil || rec.uid != fn.UID {
		rec = &record{uid: fn.UID}
		if r.m == nil {
			r.m = map[types.NamespacedName]*record{}
		}
		r.m[fn.Key()] = rec
	}
	return rec
}

func (r *records) forget(fn types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, fn)
}

// ownedMeta is the metadata of an object made for fn: deleted with it, found by its label. Deletion of the Function
// does not wait for the object, so that no permission on functions/finalizers is needed.
func ownedMeta(fn *v1alpha1.Function, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: fn.Namespace,
		Name:      name,
		Labels:    map[string]string{v1alpha1.FunctionLabel: fn.Name},
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "Function", Name: fn.Name, UID: fn.UID,
			Controller: new(true), BlockOwnerDeletion: new(false),
		}},
	}
}

// adoptMeta sets the labels and annotations of want on have and leaves others, which users may have added.
func adoptMeta(have, want client.Object) {
	merge := func(have, want map[string]string) map[string]string {
		if have == nil {
			have = map[string]string{}
		}
		maps.Copy(have, want)
		return have
	}
	have.SetLabels(merge(have.GetLabels(), want.GetLabels()))
	if len(want.GetAnnotations()) > 0 {
		have.SetAnnotations(merge(have.GetAnnotations(), want.GetAnnotations()))
	}
}

// create makes obj. A namespace that is going away refuses it, and needs it no more.
func (r *Reconciler) create(ctx context.Context, obj client.Object) error {
	owner := metav1.GetControllerOf(obj)
	have := obj.DeepCopyObject().(client.Object) //nolint:errcheck,forcetypeassert // a copy has the type of what it copies
	err := r.Create(ctx, obj)
	switch {
	case err == nil, apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsAlreadyExists(err) && r.Get(ctx, client.ObjectKeyFromObject(have), have) == nil &&
		(metav1.GetControllerOf(have) == nil || metav1.GetControllerOf(have).UID != owner.UID):
		// Not ours, and not one of ours that the cache will show in a moment: no haste will help.
		return fmt.Errorf("create %s: the name is taken by an object that was not made for this Function; rename or delete it",
			describe(have))
	}
	return fmt.Errorf("create %s: %w", describe(obj), err)
}

func (r *Reconciler) update(ctx context.Context, obj client.Object) error {
	if err := r.Update(ctx, obj); err != nil {
		return fmt.Errorf("update %s: %w", describe(obj), err)
	}
	return nil
}

// remove deletes exactly the object that was seen: one made anew under its name meanwhile is not meant.
func (r *Reconciler) remove(ctx context.Context, obj client.Object) error {
	if obj.GetDeletionTimestamp() != nil {
		return nil
	}
	var opts []client.DeleteOption
	if uid := obj.GetUID(); uid != "" {
		opts = append(opts, client.Preconditions{UID: &uid})
	}
	if err := client.IgnoreNotFound(r.Delete(ctx, obj, opts...)); err != nil {
		return fmt.Errorf("delete %s: %w", describe(obj), err)
	}
	return nil
}

func describe(obj client.Object) string {
	return fmt.Sprintf("%T %s/%s", obj, obj.GetNamespace(), obj.GetName())
}

func hostPort(host string, port int32) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
