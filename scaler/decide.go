package scaler

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// settle is how long endpoints may lag behind a scale to zero. Within it, a pod that was ready before the zero is
	// not taken for one that woke: its readiness may be an old one.
	settle = 5 * time.Second
	// joinTimeout bounds each step of the sleep order that waits for somebody else.
	joinTimeout = 10 * time.Second
	// firstBackOff and maxBackOff space out attempts to sleep that failed for another reason than activity.
	firstBackOff = 5 * time.Second
	maxBackOff   = 5 * time.Minute
)

// observed is the world as one reconcile saw it.
type observed struct {
	// Replicas that the workload asks for.
	Replicas int32
	// Ready is the number of ready pods; ReadyPods are their UIDs, where they are known.
	Ready     int
	ReadyPods []types.UID
	// HasGate is true when there is a Service port that the gate can join; InPath when its endpoints stand there.
	HasGate, InPath bool
	// Activators that are ready.
	Activators int
	// ProvenAt is when the data path was proven to reach the gate since it joined; ProofErr why that failed.
	ProvenAt time.Time
	ProofErr string
	// Samples by name of metric.
	Samples map[string]sample
	// Held says in words why the function must not be put to sleep; empty when it may.
	Held string
	// ForeignHPA is true when somebody else scales the workload.
	ForeignHPA bool
	// Bound is how many replicas have anything to do.
	Bound bound
	// Recorded is the phase in the status, and Slept true when by the status the scaler was the last to change the
	// scale, to zero: all that is left of what an earlier scaler knew.
	Recorded v1alpha1.Phase
	Slept    bool
}

// step is where the function is in the order of sleeping and waking.
type step int

const (
	unseen  step = iota // not looked at since this scaler started
	awake               // replicas above 0; nothing is under way
	joining             // going to sleep: the gate was asked into the path
	proving             // the gate's endpoints stand in the path; the data path is being proven
	grace               // proven; other nodes get their time, and a fresh sample is awaited
	asleep              // replicas is 0
	waking              // replicas was 0 and no pod has been ready since
)

// memory is what decide remembers of a function from one look to the next. A restart empties it.
type memory struct {
	step  step
	since time.Time // of step

	// awakeSince is since when the function has had a ready pod and no scale-up; zero while down.
	awakeSince time.Time
	// down is true while an awake function has no ready pod.
	down bool
	// replicas and readyPods of the last look at which the function was awake.
	replicas  int32
	readyPods []types.UID

	// joined is when the gate's endpoints were first seen in the path, and idleAtJoin the time of the newest idle
	// sample then: only a sample observed after both can say that nothing came past the gate.
	joined, idleAtJoin time.Time
	// proven is when the data path was proven.
	proven time.Time

	// aborts counts attempts to sleep that failed for another reason than activity, the last of which was lastAbort;
	// the next begins at notBefore.
	aborts    int
	lastAbort string
	notBefore time.Time
	// unproven says why the data path could not be proven at the last attempt.
	unproven string
}

// goingToSleep tells whether the function is between awake and asleep.
func (m *memory) goingToSleep() bool {
	return m.step == joining || m.step == proving || m.step == grace
}

func (m *memory) become(now time.Time, s step) { m.step, m.since = s, now }

// becomeAwake starts the count of time awake anew and forgets failed attempts to sleep.
func (m *memory) becomeAwake(now time.Time) {
	*m = memory{step: awake, since: now, awakeSince: now}
}

// becomeAsleep keeps the pods that were ready before: see settle.
func (m *memory) becomeAsleep(now time.Time) {
	*m = memory{step: asleep, since: now, readyPods: m.readyPods}
}

// rules are the times that decide goes by.
type rules struct {
	// Grace between the proof and the scale to zero.
	Grace time.Duration
}

// look is one run of decide.
type look struct {
	rules
	now  time.Time
	fn   *v1alpha1.Function
	seen observed
	mem  memory
	d    decision
}

// decide says what to do about fn. It is a pure function: the same arguments give the same decision. The memory that
// it returns is to be kept only once what the decision asks for is done.
func (r rules) decide(now time.Time, fn *v1alpha1.Function, seen observed, mem memory) (decision, memory) {
	l := &look{rules: r, now: now, fn: fn, seen: seen, mem: mem}
	l.d = decision{Time: now, From: seen.Replicas, To: seen.Replicas, Inputs: l.inputs()}
	switch {
	case seen.Replicas == 0:
		l.atZero()
	case mem.step == unseen:
		l.first()
	case mem.step == asleep || mem.step == waking:
		l.fromZero()
	case seen.Ready == 0:
		l.withoutPod()
	case mem.step == awake:
		l.awake()
	default:
		l.fallingAsleep()
	}
	if l.mem.step != asleep && l.mem.step != waking {
		l.mem.replicas = seen.Replicas
		if seen.Ready > 0 {
			l.mem.readyPods = slices.Clone(seen.ReadyPods)
		}
	}
	return l.d, l.mem
}

// say sets phase, path and explanation of the decision.
func (l *look) say(phase v1alpha1.Phase, gate bool, reason, why string, args ...any) {
	l.d.Phase, l.d.Gate = phase, gate && l.seen.HasGate
	l.d.Reason, l.d.Why = reason, fmt.Sprintf(why, args...)
}

// gated is what the gate does, for the explanation, if the function can have one.
func (l *look) gated(does string) string {
	switch {
	case l.seen.HasGate:
		return does
	case l.fn.Spec.Traffic == nil:
		return "there is no gate, as spec.traffic is not set"
	}
	return "there is no gate, as " + l.seen.Held
}

// atZero: whoever wrote the zero, the gate holds the path, and what has something to do is woken.
func (l *look) atZero() {
	l.d.Inputs = nil // most are not read while the function sleeps
	if l.wakeByValue() {
		return
	}
	known := l.mem.step == asleep || (l.mem.step == unseen && l.seen.Recorded == v1alpha1.Idle)
	switch {
	case known && l.seen.Slept && (!l.fn.MaySleep() || l.seen.ForeignHPA):
		l.wake()
		return
	case known:
		l.say(v1alpha1.Idle, true, reasonIdle, "replicas is 0")
	default:
		l.say(v1alpha1.Idle, true, reasonZeroReplicas, "replicas became 0 by another hand than this scaler's: %s",
			l.gated("the gate holds the path"))
		l.d.Transition = true
		l.d.From = l.mem.replicas
	}
	if l.mem.step != asleep {
		l.mem.becomeAsleep(l.now)
	}
}

// wake undoes the scaler's own zero, which the spec does not allow any more, or which a foreign HorizontalPodAutoscaler
// that took over meanwhile would leave alone for ever: it wakes only what it put to zero itself.
func (l *look) wake() {
	why := fmt.Sprintf("spec.scale.minReplicas is now %d: %s", l.fn.Spec.Scale.MinReplicas,
		l.gated("the gate stays in the path until a pod is ready"))
	switch {
	case l.seen.ForeignHPA:
		why = l.seen.Held + " and leaves a zero alone that it did not write"
	case l.fn.Spec.Scale.MinReplicas == 0:
		why = "spec.traffic is not set and no metric of another source, so that nothing can wake it"
	}
	l.wakeTo(l.fn.AwakeReplicas(1), "Sluice put the function to sleep and it may not any more: "+why)
}

// wakeTo wakes a function from zero.
func (l *look) wakeTo(replicas int32, why string) {
	l.say(v1alpha1.Waking, true, reasonWaking, "woken, as %s", why)
	l.d.Wake, l.d.To, l.d.Transition = true, replicas, true
	if l.mem.step != asleep {
		l.mem.becomeAsleep(l.now)
	}
	l.mem.step = waking // since stays: see fromZero
}

// first is the first look since the scaler started, at a function with replicas. What an earlier scaler was doing is
// told by the path: the gate is in it either because the function came from zero, or because it was going there.
func (l *look) first() {
	cameFromZero := l.seen.Recorded == v1alpha1.Idle || (l.seen.InPath && l.seen.Recorded != v1alpha1.Active)
	switch {
	case l.seen.Ready == 0 && (cameFromZero || l.seen.InPath):
		l.mem.become(l.now, asleep)
		if l.seen.Recorded == v1alpha1.Waking {
			l.mem.step = waking // said already
		}
		l.fromZero()
	case l.seen.Ready == 0:
		l.mem.become(l.now, awake)
		l.withoutPod()
	case cameFromZero:
		l.woken()
	case l.seen.InPath:
		l.mem.becomeAwake(l.now)
		l.say(v1alpha1.Active, false, reasonSleepAborted, "the scaler started anew while the function was going to sleep")
		l.d.Transition = true
	default:
		l.mem.becomeAwake(l.now)
		l.awake()
	}
}

// fromZero: the gate stays until a pod is ready.
func (l *look) fromZero() {
	l.d.Inputs = nil // whatever they say, only a ready pod matters
	ready, old := l.readySinceZero()
	if ready {
		l.woken()
		return
	}
	l.say(v1alpha1.Waking, true, reasonWaking, "%d asked for, no pod is ready yet: %s",
		l.seen.Replicas, l.gated("the gate stays in the path"))
	if old {
		l.d.Again = max(settle-l.now.Sub(l.mem.since), 0) + 10*time.Millisecond
	}
	if l.mem.step == asleep {
		// since stays: settle counts from the zero, not from the wake.
		l.mem.step = waking
		l.d.From = 0
		l.d.Transition = true
	}
}

// readySinceZero tells whether a pod is ready that can be believed to be; old whether one is that was so before.
func (l *look) readySinceZero() (ready, old bool) {
	if l.seen.Ready == 0 {
		return false, false
	}
	if l.now.Sub(l.mem.since) >= settle || len(l.seen.ReadyPods) < l.seen.Ready {
		return true, false
	}
	for _, uid := range l.seen.ReadyPods {
		if !slices.Contains(l.mem.readyPods, uid) {
			return true, false
		}
	}
	return false, true
}

func (l *look) woken() {
	l.d.Inputs = nil
	l.mem.becomeAwake(l.now)
	l.say(v1alpha1.Active, false, reasonWoken, "%d of %d pods ready: %s", l.seen.Ready, l.seen.Replicas,
		l.gated("the gate leaves the path"))
	l.d.Transition = true
	l.d.Watch = l.fn.MaySleep()
}

// withoutPod: the pods of a function that was awake are all unready, as after a crash, or have never been ready yet.
// The path stays as it is: the gate is for functions at zero or coming from there, and holding requests for pods that
// crash would turn quick errors into slow ones. Going to sleep ends, but with the gate left where it is: with no pod
// beside it, taking it out would refuse the requests that it can hold.
func (l *look) withoutPod() {
	l.mem.awakeSince = time.Time{}
	if l.mem.goingToSleep() {
		l.abort("NoReadyPod", "no pod is ready any more; the gate stays in the path until one is")
		l.d.Phase, l.d.Gate = v1alpha1.Waking, l.seen.HasGate
		l.mem.become(l.now, waking)
		return
	}
	l.mem.down = true
	l.say(v1alpha1.Waking, l.seen.InPath, reasonNoReadyPod,
		"%d asked for, no pod is ready; the path stays as it is", l.seen.Replicas)
}

// awake: the first reason against sleep is what the decision says; with none, the gate joins the path.
func (l *look) awake() {
	// A pod became ready again, or somebody scaled up: both count as a sign that the function is wanted.
	if l.mem.down || (l.mem.replicas > 0 && l.seen.Replicas > l.mem.replicas) || l.mem.awakeSince.IsZero() {
		l.mem.down, l.mem.awakeSince = false, l.now
	}
	idleAfter := l.fn.IdleAfter()
	switch {
	case !l.fn.MaySleep():
		l.say(v1alpha1.Active, false, reasonNeverSleeps, "spec.scale.minReplicas is %d", l.fn.Spec.Scale.MinReplicas)
	case l.seen.Held != "":
		l.say(v1alpha1.Active, false, reasonSleepHeld, "%s", l.seen.Held)
	case l.unknown() != "":
		l.say(v1alpha1.Active, false, reasonMetricUnknown, "unknown is not zero")
		l.d.Watch = true
	case l.inUse() != "":
		l.say(v1alpha1.Active, false, reasonNotIdle, "%s", l.inUse())
		l.d.Watch = true
	case l.now.Sub(l.mem.awakeSince) < idleAfter:
		l.say(v1alpha1.Active, false, reasonAwakeTooShort, "awake for %s of idleAfter %s", since(l.now, l.mem.awakeSince), idleAfter)
		l.d.Again = idleAfter - l.now.Sub(l.mem.awakeSince)
	case l.now.Before(l.mem.notBefore):
		l.say(v1alpha1.Active, false, reasonBackingOff, "attempt to sleep number %d comes later", l.mem.aborts+1)
		l.d.Again = l.mem.notBefore.Sub(l.now)
	case l.fn.Spec.Traffic == nil:
		// Nobody sends requests that could get lost, so there is nothing to put in order.
		l.sleep("idle; there is no gate, as spec.traffic is not set")
	case l.seen.Activators == 0:
		l.say(v1alpha1.Active, false, reasonNoActivator, "no activator is ready to hold requests")
	default:
		l.mem.become(l.now, joining)
		l.say(v1alpha1.Active, true, reasonGoingToSleep, "idle: the gate joins the path")
		l.d.Formula = l.idleRule()
		l.d.Transition = true
		l.d.Again = joinTimeout
	}
}

// fallingAsleep takes the steps from joining to the zero, or back.
func (l *look) fallingAsleep() {
	if kind, why := l.againstSleep(); kind != "" {
		l.abort(kind, why)
		return
	}
	if l.mem.step == joining {
		if !l.seen.InPath {
			l.waitFor(reasonGateJoining, "the gate's joining of the path is awaited", l.mem.since, joinTimeout)
			return
		}
		l.mem.become(l.now, proving)
		l.mem.joined, l.mem.idleAtJoin = l.now, l.seen.Samples[v1alpha1.IdleSeconds].Time
	}
	if l.mem.step == proving {
		if l.seen.ProvenAt.Before(l.mem.joined) {
			l.waitFor(reasonGateProving, "a proof that the data path reaches the gate is awaited", l.mem.joined, joinTimeout)
			l.d.Prove = l.mem.step == proving
			return
		}
		l.mem.become(l.now, grace)
		l.mem.proven, l.mem.unproven = l.seen.ProvenAt, ""
	}
	if left := l.Grace - l.now.Sub(l.mem.proven); left > 0 {
		l.say(v1alpha1.Active, true, reasonGrace, "grace of %s after the proof, for nodes that it did not see", l.Grace)
		l.d.Again = left
		return
	}
	if !l.sampledSinceJoin() {
		l.waitFor(reasonFreshSample, "a sample observed after the gate joined is awaited", l.mem.proven, 2*joinTimeout)
		return
	}
	l.sleep(fmt.Sprintf("idle; gate in the path for %s, proven %s ago, nothing came since",
		since(l.now, l.mem.joined), since(l.now, l.mem.proven)))
}

// sleep scales to zero.
func (l *look) sleep(why string) {
	l.say(v1alpha1.Idle, true, reasonSleeping, "%s", why)
	l.d.Formula = l.idleRule()
	l.d.Clamps = []string{"minReplicas 0"}
	l.d.Sleep, l.d.To, l.d.Transition = true, 0, true
}

// activity is the kind of abort that is no failure: somebody used the function.
const activity = "Activity"

// againstSleep says what has come up against sleep since the gate was asked into the path.
func (l *look) againstSleep() (kind, why string) {
	switch {
	case !l.fn.MaySleep():
		return "NeverSleeps", fmt.Sprintf("spec.scale.minReplicas is now %d", l.fn.Spec.Scale.MinReplicas)
	case l.fn.Spec.Traffic == nil:
		return "NoTraffic", "spec.traffic is not set any more"
	case l.seen.Held != "":
		return "SleepHeld", l.seen.Held
	case l.seen.Replicas > l.mem.replicas:
		return activity, fmt.Sprintf("scaled up from %d to %d meanwhile", l.mem.replicas, l.seen.Replicas)
	case l.unknown() != "":
		return "MetricUnknown", "unknown is not zero"
	case l.inUse() != "":
		return activity, l.inUse()
	case l.seen.Activators == 0:
		return "NoActivator", "no activator is ready to hold requests"
	case l.mem.step != joining && !l.seen.InPath:
		return "GateLost", "the gate's endpoints left the path; somebody removed or changed them"
	case l.mem.step == proving && l.seen.ProofErr != "":
		l.mem.unproven = l.seen.ProofErr
		return "GateUnproven", "the data path was not proven to reach the gate: " + l.seen.ProofErr
	}
	return "", ""
}

// waitFor waits in the present step, at most until timeout after start.
func (l *look) waitFor(reason, why string, start time.Time, timeout time.Duration) {
	left := timeout - l.now.Sub(start)
	if left <= 0 {
		l.abort(reason, fmt.Sprintf("%s; it did not come within %s", why, timeout))
		return
	}
	l.say(v1alpha1.Active, true, reason, "%s", why)
	l.d.Again = left
}

// abort takes the gate out of the path again.
func (l *look) abort(kind, why string) {
	l.say(v1alpha1.Active, false, reasonSleepAborted, "%s", why)
	l.d.Transition, l.d.Prove = true, false
	l.d.Quiet = kind == l.mem.lastAbort
	l.mem.lastAbort = kind
	l.mem.become(l.now, awake)
	l.mem.joined, l.mem.proven, l.mem.idleAtJoin = time.Time{}, time.Time{}, time.Time{}
	l.d.Watch = true
	if kind == activity {
		// Not a failure: idleAfter spaces out the attempts. A scale-up counts as activity too.
		l.mem.awakeSince = l.now
		l.mem.aborts, l.mem.notBefore = 0, time.Time{}
		return
	}
	backOff := maxBackOff
	if l.mem.aborts < 6 {
		backOff = min(firstBackOff<<l.mem.aborts, maxBackOff)
	}
	l.mem.aborts++
	l.mem.notBefore = l.now.Add(backOff)
	l.d.Again = backOff
}

// sampledSinceJoin tells whether the newest idle sample was observed after the gate joined. Timestamps of the metrics
// API are whole seconds, rounded down, and by another machine's clock. Rounding only delays; against a clock that is
// ahead, the sample must also be newer than the newest at the join, and come from a poll that began after it.
func (l *look) sampledSinceJoin() bool {
	s := l.seen.Samples[v1alpha1.IdleSeconds]
	return !s.Time.Before(l.mem.joined) && s.Time.After(l.mem.idleAtJoin) && s.Polled.After(l.mem.joined)
}

func (l *look) inputs() []input {
	var all []input
	for _, name := range required(l.fn) {
		all = append(all, read(l.now, name, l.seen.Samples))
	}
	return all
}

// unknown says which metric is unknown and why; empty when all are known.
func (l *look) unknown() string {
	for _, in := range l.d.Inputs {
		if in.Unknown != "" {
			return in.String()
		}
	}
	return ""
}

// since is the time from t to now, to a tenth of a second.
func since(now, t time.Time) time.Duration { return now.Sub(t).Round(100 * time.Millisecond) }
