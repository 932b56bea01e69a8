package scaler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// patchFinalizer adds or removes our finalizer. The lock keeps finalizers of others, which a merge patch would
// otherwise overwrite with what the cache has.
func (r *Reconciler) patchFinalizer(ctx context.Context, fn *v1alpha1.Function, change func(client.Object, string) bool) error {
	patched := fn.DeepCopy()
	change(patched, v1alpha1.Finalizer)
	err := r.Patch(ctx, patched, client.MergeFromWithOptions(fn, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finalizer of function %s: %w", fn.Key(), err)
	}
	fn.Finalizers, fn.ResourceVersion = patched.Finalizers, patched.ResourceVersion
	return nil
}

// needsFinalizer tells whether the Function must not go without its workload being looked after: one with traffic has a
// gate, also at a zero that somebody else wrote, and any other is put to sleep only if it may sleep.
func needsFinalizer(fn *v1alpha1.Function) bool { return fn.Spec.Traffic != nil || fn.MaySleep() }

// finalize lets a Function go: it wakes the workload if that is at zero, waits with the gate in the path until a pod
// is ready, and then takes away all that was made. The wait is bounded by the function's activation timeout from its
// deletion on; past it, or when there is nothing to wake, the Function goes anyway.
func (r *Reconciler) finalize(ctx context.Context, w *world, rec *record) (reconcile.Result, error) {
	key := w.fn.Key()
	r.poller.forget(key)
	r.proofs.forget(key)
	if !controllerutil.ContainsFinalizer(w.fn, v1alpha1.Finalizer) {
		return reconcile.Result{}, nil
	}
	left, err := r.wakeForGood(ctx, w, rec)
	if err != nil || left > 0 {
		return reconcile.Result{RequeueAfter: left}, err
	}
	if awaited, err := r.hostsAwaited(ctx, w.fn); err != nil || (awaited && time.Since(w.fn.DeletionTimestamp.Time) < hostLinger) {
		return reconcile.Result{RequeueAfter: soon}, err
	}
	err = errors.Join(
		r.ensureSlices(ctx, w.fn, w.gateSlices, nil, false),
		r.ensureProxied(ctx, w),
		r.ensureHPA(ctx, w),
	)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, r.patchFinalizer(ctx, w.fn, controllerutil.RemoveFinalizer)
}

// wakeForGood sees to it that the function's pods can do without the gate. It returns for how long that may still
// take; 0 once there is nothing more to wait for.
func (r *Reconciler) wakeForGood(ctx context.Context, w *world, rec *record) (left time.Duration, err error) {
	now := time.Now()
	if w.loses || w.workload == nil || w.workload.GetDeletionTimestamp() != nil {
		return 0, nil
	}
	if w.replicas() > 0 && !w.inPath() {
		return 0, nil
	}
	l := look{now: now, fn: w.fn, seen: r.observed(w, rec.mem), mem: rec.mem}
	ours := l.seen.Slept || (rec.transition != nil && rec.transition.Reason == reasonSleeping)
	if w.replicas() == 0 && w.fn.Spec.Traffic == nil && !ours {
		return 0, nil // with no gate to take away, a zero is the affair of whoever wrote it
	}
	if ready, old := l.readySinceZero(); w.replicas() > 0 && ready {
		return 0, nil
	} else if w.replicas() > 0 && old {
		return settle, nil
	}
	left = w.fn.HoldTimeout() - now.Sub(w.fn.DeletionTimestamp.Time)
	if left <= 0 {
		r.event(w.fn, corev1.EventTypeWarning, "DeletedAsleep", "Delete", fmt.Sprintf("no pod of %s became ready within "+
			"spec.activation.timeout %s after the Function was deleted; it goes without", w.workloadWords(), w.fn.HoldTimeout()))
		return 0, nil
	}
	if w.gateable() && w.gatePort.Gate != 0 {
		if err := r.ensureGate(ctx, w, true); err != nil {
			return 0, err
		}
	}
	if w.replicas() == 0 {
		replicas := w.fn.AwakeReplicas(1)
		version, err := r.patchScale(ctx, w, v1alpha1.WakePatch(replicas))
		switch {
		case v1alpha1.PatchTestFailed(err), apierrors.IsNotFound(err):
			// Somebody woke or deleted it; the cache will show it.
		case err != nil:
			return 0, err
		default:
			rec.scaleVersion = version
			logr.FromContextOrDiscard(ctx).Info("Woke the workload of a function that is being deleted", "replicas", replicas)
		}
	}
	return left, nil
}
