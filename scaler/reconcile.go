package scaler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-logr/logr"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// patience is for how long something must be missing before that is believed: objects that are made at the same moment
// reach the caches of their kinds one after the other.
const patience = time.Second

// soon is when to look again after a write that somebody else was quicker with.
const soon = 200 * time.Millisecond

// Reconciler makes the world match what decide says of each Function. It is level-based: what it does depends on what
// it reads and remembers, never on which event called it.
type Reconciler struct {
	client.Client
	namespace string // of the activators
	rules     rules
	recorder  events.EventRecorder
	poller    *poller
	proofs    *proofs
	ports     *ports
	hosts     hosts
	ring      func(types.NamespacedName) // has a Function reconciled soon
	metrics   *telemetry
	records   records
}

// Reconcile implements reconcile.Reconciler. It writes nothing when nothing differs.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var fn v1alpha1.Function
	err := r.Get(ctx, req.NamespacedName, &fn)
	if apierrors.IsNotFound(err) {
		r.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("function %s: %w", req, err)
	}
	rec := r.records.of(&fn)
	rec.overlay(&fn)
	w, err := r.observe(ctx, &fn)
	if err != nil {
		return reconcile.Result{}, err
	}
	if w.workload != nil && behind(w.workload.GetResourceVersion(), rec.scaleVersion) {
		// The cache does not show our own write of the scale yet. Of one to zero it would have it that the function wakes
		// already.
		return reconcile.Result{RequeueAfter: soon}, nil
	}
	var result reconcile.Result
	switch {
	case fn.DeletionTimestamp != nil:
		result, err = r.finalize(ctx, w, rec)
	case w.loses:
		err = r.stepAside(ctx, w, rec)
	default:
		if left := rec.wait(w.missing, time.Now()); left > 0 {
			return reconcile.Result{RequeueAfter: left}, nil
		}
		result, err = r.tend(ctx, w, rec)
	}
	if someoneWasQuicker(err) {
		return reconcile.Result{RequeueAfter: soon}, nil
	}
	return result, err
}

// someoneWasQuicker tells whether all that went wrong is that the cache was behind.
func someoneWasQuicker(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if !someoneWasQuicker(e) {
				return false
			}
		}
		return true
	}
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

func (r *Reconciler) forget(fn types.NamespacedName) {
	r.records.forget(fn)
	r.poller.forget(fn)
	r.proofs.forget(fn)
	r.ports.forget(fn)
	r.hosts.forget(fn)
}

// tend does all that is to be done for a Function in normal times.
func (r *Reconciler) tend(ctx context.Context, w *world, rec *record) (reconcile.Result, error) {
	fn := w.fn
	if needsFinalizer(fn) && !controllerutil.ContainsFinalizer(fn, v1alpha1.Finalizer) {
		if err := r.patchFinalizer(ctx, fn, controllerutil.AddFinalizer); err != nil {
			return reconcile.Result{}, err
		}
	}
	again, err := r.ensurePort(ctx, w, rec)
	if err != nil {
		return reconcile.Result{}, err
	}
	seen := r.observed(w, rec.mem)
	d, scaleErr := r.settleScale(ctx, w, rec, seen)
	madeErr := errors.Join(r.ensureHPA(ctx, w), r.ensureProxied(ctx, w))
	if madeErr != nil && !someoneWasQuicker(madeErr) {
		w.problem(v1alpha1.ConditionReady, "WriteFailed", "%v; it is tried again", madeErr)
	}
	if keeps := w.keepsProxied(); keeps != rec.keepsProxied {
		if rec.keepsProxied = keeps; keeps {
			r.event(fn, corev1.EventTypeNormal, "ServiceKept", "Keep", fmt.Sprintf("spec.traffic.mode is Direct, and Service %s still leads "+
				"through the gate for clients that have its address; delete it when there are none", w.fullName(fn.OwnedName())))
		}
	}
	if rec.mem.unproven != "" {
		w.problem(v1alpha1.ConditionReady, "GateUnproven", "the function is not put to sleep, because new connections to Service %s were not "+
			"proven to reach the gate: %s; check NetworkPolicies and kube-proxy, and sessionAffinity of the Service",
			w.fullName(fn.ServiceName()), rec.mem.unproven)
	}
	if w.fallbackProblem != nil {
		w.problems = append(w.problems, *w.fallbackProblem)
	}
	r.track(w, rec, d)
	if err := errors.Join(scaleErr, madeErr, r.writeStatus(ctx, w, rec, d, seen.Samples)); err != nil {
		return reconcile.Result{}, err
	}
	result := reconcile.Result{RequeueAfter: sooner(d.Again, again)}
	if !needsFinalizer(fn) && controllerutil.ContainsFinalizer(fn, v1alpha1.Finalizer) {
		return result, r.patchFinalizer(ctx, fn, controllerutil.RemoveFinalizer)
	}
	return result, nil
}

// settleScale decides about scale and path and carries it out. The decision that it returns is what was done: one that
// could not be carried out leaves phase, path and memory as they were, for the next look to decide anew.
func (r *Reconciler) settleScale(ctx context.Context, w *world, rec *record, seen observed) (decision, error) {
	now := time.Now()
	if w.workload == nil {
		rec.mem = memory{}
		return decision{Time: now}, nil
	}
	d, mem := r.rules.decide(now, w.fn, seen, rec.mem)
	done, err := r.carryOut(ctx, w, rec, d, mem)
	if err != nil && !someoneWasQuicker(err) {
		w.problem(v1alpha1.ConditionScalingActive, "WriteFailed", "%s failed: %v; it is tried again", d.Reason, err)
	}
	if !done {
		d.Transition, d.Sleep, d.Wake = false, false, false
		d.To, d.Phase, d.Gate = seen.Replicas, w.fn.Status.Phase, seen.InPath
		d.Again = soon
		return d, err
	}
	if d.Sleep {
		mem.becomeAsleep(now)
	}
	rec.mem = mem
	r.announce(ctx, w.fn, d)
	return d, nil
}

// stepAside takes away what was made for a Function whose workload belongs to an older one.
func (r *Reconciler) stepAside(ctx context.Context, w *world, rec *record) error {
	rec.mem, rec.trackedSince = memory{}, time.Time{}
	d := decision{Time: time.Now(), From: w.replicas(), To: w.replicas(), Phase: plainPhase(w)}
	r.poller.forget(w.fn.Key())
	return errors.Join(
		r.ensureSlices(ctx, w.fn, w.gateSlices, nil, false),
		r.ensureProxied(ctx, w),
		r.ensureHPA(ctx, w),
		r.writeStatus(ctx, w, rec, d, nil),
	)
}

// plainPhase is the phase of a workload that somebody else looks after.
func plainPhase(w *world) v1alpha1.Phase {
	ready, _ := w.ready()
	switch {
	case w.workload == nil:
		return ""
	case w.replicas() == 0:
		return v1alpha1.Idle
	case ready == 0:
		return v1alpha1.Waking
	}
	return v1alpha1.Active
}

// carryOut does what d says. done is false when it could not be done, be it that somebody scaled meanwhile: then the
// memory must stay as it was, so that the next look decides anew.
func (r *Reconciler) carryOut(ctx context.Context, w *world, rec *record, d decision, mem memory) (done bool, err error) {
	if err := r.ensureGate(ctx, w, d.Gate); err != nil {
		return false, err
	}
	if d.Prove {
		port := w.gatePort.Service.Port
		r.proofs.ask(Path{
			Function: w.fn.Key(),
			Host:     fmt.Sprintf("%s.%s.svc", w.service.Name, w.service.Namespace),
			Address:  hostPort(w.service.Spec.ClusterIP, port),
		}, mem.joined)
	}
	var patch []byte
	switch {
	case d.Sleep:
		patch = sleepPatch(d.From)
	case d.Wake:
		patch = v1alpha1.WakePatch(d.To)
	default:
		return true, nil
	}
	version, err := r.patchScale(ctx, w, patch)
	if v1alpha1.PatchTestFailed(err) {
		logr.FromContextOrDiscard(ctx).Info("Not scaled, somebody else did meanwhile", "reason", d.Reason, "from", d.From, "to", d.To)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	rec.scaleVersion = version
	return true, nil
}

// ensureGate puts the gate into the path of the function's own Service, or takes it out.
func (r *Reconciler) ensureGate(ctx context.Context, w *world, in bool) error {
	var want []*discoveryv1.EndpointSlice
	if in {
		want = renderSlices(w.fn, w.fn.OwnedName()+gateSuffix, w.service.Name, w.service.Spec.IPFamilies, w.gatePort, w.activators)
	}
	return r.ensureSlices(ctx, w.fn, w.gateSlices, want, in && len(w.activators) == 0)
}

// sleepPatch scales to zero, if and only if the workload still asks for as many replicas as were seen: a concurrent
// scale-up wins.
func sleepPatch(current int32) []byte {
	return fmt.Appendf(nil, `[{"op":"test","path":"/spec/replicas","value":%d},{"op":"replace","path":"/spec/replicas","value":0}]`, current)
}

// patchScale patches the scale of the workload and returns the resource version that it then has. A test in the patch
// that does not hold is an error of which v1alpha1.PatchTestFailed tells, and nothing is changed.
func (r *Reconciler) patchScale(ctx context.Context, w *world, patch []byte) (version string, err error) {
	var scale autoscalingv1.Scale
	named := emptyWorkload(workloadKind(w.workload.Object))
	named.SetNamespace(w.workload.GetNamespace())
	named.SetName(w.workload.GetName())
	err = r.SubResource("scale").Patch(ctx, named, client.RawPatch(types.JSONPatchType, patch),
		client.WithSubResourceBody(&scale))
	if err != nil {
		return "", fmt.Errorf("scale of %s: %w", w.workloadWords(), err)
	}
	return scale.ResourceVersion, nil
}

// ensurePort gives the function a gate port, resolves its Service ports and grants its hosts, all in its status, before
// anything refers to them: activators learn of them from there. again is when to look once more, 0 for not.
func (r *Reconciler) ensurePort(ctx context.Context, w *world, rec *record) (again time.Duration, err error) {
	if w.fn.Spec.Traffic == nil {
		w.gatePort.Gate = 0
		return 0, nil
	}
	port, err := r.portOf(ctx, w.fn)
	if errors.Is(err, errPortsExhausted) {
		w.gatePort.Gate = 0
		w.gateProblem("GatePortsExhausted", "%v; raise the scaler's port range or delete Functions", err)
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	w.gatePort.Gate = port
	gate := v1alpha1.GateStatus{
		Port: port, ServicePort: w.gatePort.Service.Name, AppProtocol: ptr.Deref(w.gatePort.Service.AppProtocol, ""), Fallback: w.fallback,
	}
	if gate.Hosts, again, err = r.grantHosts(ctx, w, rec); err != nil {
		return 0, err
	}
	var lost []string
	if old := w.fn.Status.Gate; old != nil {
		gate.InPath = old.InPath
		if !w.gateable() {
			gate.ServicePort, gate.AppProtocol = old.ServicePort, old.AppProtocol
		}
		if equality.Semantic.DeepEqual(*old, gate) {
			return again, nil
		}
		lost = slices.DeleteFunc(slices.Clone(old.Hosts), func(h string) bool { return slices.Contains(gate.Hosts, h) })
	}
	next := w.fn.Status.DeepCopy()
	next.Gate = &gate
	if err := r.patchStatus(ctx, w.fn, rec, next); err != nil {
		return 0, err
	}
	// Who looked before this write may have been told that the host is taken.
	for _, host := range lost {
		for _, rival := range r.withIndex(ctx, "", indexHost, host) {
			if rival.NamespacedName != w.fn.Key() {
				r.ring(rival.NamespacedName)
			}
		}
	}
	return again, nil
}

// portOf is the gate port of fn: the one in its status unless an older Function has it too, else a free one.
func (r *Reconciler) portOf(ctx context.Context, fn *v1alpha1.Function) (int32, error) {
	claim := portClaim{Function: fn.Key(), Created: fn.CreationTimestamp.Time}
	if g := fn.Status.Gate; g != nil && g.Port >= r.ports.first && g.Port <= r.ports.last {
		rival, err := r.olderRival(ctx, fn, indexGatePort, fmt.Sprint(g.Port))
		if err != nil {
			return 0, err
		}
		if rival == "" {
			return g.Port, nil
		}
	}
	return r.ports.allocate(claim, func() ([]portClaim, error) {
		var list v1alpha1.FunctionList
		if err := r.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("gate ports of all functions: %w", err)
		}
		claims := make([]portClaim, 0, len(list.Items))
		for i := range list.Items {
			if f := &list.Items[i]; f.Status.Gate != nil {
				claims = append(claims, portClaim{Function: f.Key(), Port: f.Status.Gate.Port, Created: f.CreationTimestamp.Time})
			}
		}
		return claims, nil
	})
}

// track tells the poller what is of interest about the function from now on.
func (r *Reconciler) track(w *world, rec *record, d decision) {
	key := w.fn.Key()
	if d.Phase == v1alpha1.Idle || w.workload == nil {
		rec.trackedSince = time.Time{}
		r.proofs.forget(key)
		if w.workload != nil && wakesByValue(w.fn, w.foreignHPA != "") {
			names := externalNames(w.fn)
			r.poller.track(key, interest{Metrics: slices.Concat(names, boundNames(w.fn)), External: w.fn.ExternalMetrics(), Required: names, Asleep: true})
		} else {
			r.poller.forget(key)
		}
		return
	}
	if rec.trackedSince.IsZero() {
		rec.trackedSince = d.Time
	}
	status, _, _ := metricsAvailable(d.Time, w.fn, r.poller.samples(key), rec.trackedSince)
	r.poller.track(key, interest{
		Metrics:    wanted(w.fn),
		External:   w.fn.ExternalMetrics(),
		Required:   required(w.fn),
		Always:     rec.mem.goingToSleep(),
		Idle:       d.Watch,
		IdleAfter:  w.fn.IdleAfter(),
		Unknown:    status != "True",
		Reconciled: d.Time,
	})
}

// announce tells of a transition that was carried out, in log, metric and, but for repetitions, as an Event.
func (r *Reconciler) announce(ctx context.Context, fn *v1alpha1.Function, d decision) {
	if !d.Transition {
		return
	}
	logr.FromContextOrDiscard(ctx).Info("Transition", "reason", d.Reason, "phase", d.Phase, "from", d.From, "to", d.To,
		"gateInPath", d.Gate, "why", d.Message())
	r.metrics.decisions.WithLabelValues(d.Reason).Inc()
	told := d.Wake || d.Reason == reasonSleeping || d.Reason == reasonWoken || d.Reason == reasonSleepAborted
	if told && !d.Quiet {
		r.event(fn, corev1.EventTypeNormal, d.Reason, "Scale", d.Message())
	}
}

// event records an Event; its note may have 1024 bytes.
func (r *Reconciler) event(fn *v1alpha1.Function, kind, reason, action, note string) {
	const limit = 1000
	if len(note) > limit {
		note = note[:limit] + "..."
	}
	r.recorder.Eventf(fn, nil, kind, reason, action, "%s", note)
}
