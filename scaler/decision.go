package scaler

import (
	"fmt"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Reasons of decisions. Those of transitions are shown in status.lastDecision and, but for repetitions, as Events.
const (
	// Transitions: a change of scale or path.
	reasonGoingToSleep = "GoingToSleep" // the gate joins the path
	reasonSleeping     = "Sleeping"     // replicas becomes 0
	reasonSleepAborted = "SleepAborted" // the gate leaves the path again
	reasonZeroReplicas = "ZeroReplicas" // somebody else wrote 0, the gate joins the path
	reasonWaking       = "Waking"       // replicas are asked for, no pod is ready yet
	reasonWoken        = "Woken"        // a pod is ready, the gate leaves the path

	// Why nothing changes.
	reasonIdle          = "Idle"
	reasonNoReadyPod    = "NoReadyPod"
	reasonNeverSleeps   = "NeverSleeps"
	reasonSleepHeld     = "SleepHeld"
	reasonBackingOff    = "BackingOff"
	reasonMetricUnknown = "MetricUnknown"
	reasonNotIdle       = "NotIdle"
	reasonAwakeTooShort = "AwakeTooShort"
	reasonNoActivator   = "NoActivator"
	reasonGateJoining   = "GateJoining"
	reasonGateProving   = "GateProving"
	reasonGrace         = "Grace"
	reasonFreshSample   = "AwaitingFreshSample"
)

// decision is what decide made of what it saw. It is the one value that log, Event, status and metric show.
type decision struct {
	Time time.Time
	// Reason in one CamelCase word, and the same in words.
	Reason string
	Why    string
	// Inputs are the metrics that the decision looked at, each with its age.
	Inputs []input
	// Formula that was applied to them, and the bounds that the result was kept in; empty when none was.
	Formula string
	Clamps  []string

	// Phase of the function.
	Phase v1alpha1.Phase
	// Gate is true when the gate has to be in the path of the function's own Service.
	Gate bool
	// Prove asks for a proof that the data path reaches the gate.
	Prove bool
	// From and To are the replicas before and after, whoever wrote them. Sleep asks the scaler to write To, which is
	// 0; Wake to write To where replicas is 0.
	From, To    int32
	Sleep, Wake bool

	// Transition is true when scale or path change; Quiet when the same was said before, so that no Event repeats it.
	Transition, Quiet bool
	// Watch asks to look again once every metric is known and idle_seconds has reached idleAfter.
	Watch bool
	// Again asks to look again after this time, whatever happens. 0 means that only a change can matter.
	Again time.Duration
}

// input is one metric as a decision saw it.
type input struct {
	Name    string
	Value   float64
	Age     time.Duration
	Unknown string // why there is no value; empty when there is one
}

func (i input) String() string {
	if i.Unknown != "" {
		return fmt.Sprintf("%s unknown: %s", i.Name, i.Unknown)
	}
	format := "%s %.4g (%.1fs old)"
	if i.Value >= 1000 { // 12345 records, where %g has 1.234e+04
		format = "%s %.0f (%.1fs old)"
	}
	return fmt.Sprintf(format, i.Name, i.Value, i.Age.Seconds())
}

// Message explains the decision: why, inputs with their age, formula, clamps.
func (d decision) Message() string {
	var b strings.Builder
	b.WriteString(d.Why)
	for i, in := range d.Inputs {
		b.WriteString([]string{"; ", ", "}[min(i, 1)])
		b.WriteString(in.String())
	}
	if d.Formula != "" {
		fmt.Fprintf(&b, "; rule: %s", d.Formula)
	}
	if len(d.Clamps) > 0 {
		fmt.Fprintf(&b, "; within: %s", strings.Join(d.Clamps, ", "))
	}
	return b.String()
}
