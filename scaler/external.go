package scaler

import (
	"fmt"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What decide knows of external metrics. A function goes to sleep once each of them has been known and not above its
// activation for idleAfter, and sleeps until one is known to be above it. Unknown does neither.

// inUse says what the function was wanted for within idleAfter; empty when for nothing. It is for when unknown says that
// every metric is known.
func (l *look) inUse() string {
	idleAfter := l.fn.IdleAfter()
	if l.fn.Spec.Traffic != nil && l.seen.Samples[v1alpha1.IdleSeconds].idleFor() < idleAfter {
		return fmt.Sprintf("in use within idleAfter %s", idleAfter)
	}
	for _, m := range l.fn.ExternalMetrics() {
		s := l.seen.Samples[m.Name]
		switch {
		case m.IsActive(s.Value):
			return fmt.Sprintf("%s is above activation %s", m.Name, m.Activation.String())
		case s.QuietSince.IsZero() || l.now.Sub(s.QuietSince) < idleAfter:
			return fmt.Sprintf("%s was unknown or above activation %s within idleAfter %s", m.Name, m.Activation.String(), idleAfter)
		}
	}
	return ""
}

// idleRule is the rule by which the function is idle, for the explanation.
func (l *look) idleRule() string {
	var rules []string
	if l.fn.Spec.Traffic != nil {
		rules = append(rules, fmt.Sprintf("%s >= idleAfter %s", v1alpha1.IdleSeconds, l.fn.IdleAfter()))
	}
	for _, m := range l.fn.ExternalMetrics() {
		rules = append(rules, fmt.Sprintf("%s <= activation %s for idleAfter %s", m.Name, m.Activation.String(), l.fn.IdleAfter()))
	}
	return strings.Join(rules, " and ")
}

// wakeByValue wakes a function at zero with an external metric above its activation, whoever wrote the zero, straight to
// the replicas that the HorizontalPodAutoscaler would ask for. It tells whether it did.
func (l *look) wakeByValue() bool {
	if !wakesByValue(l.fn, l.seen.ForeignHPA) {
		return false
	}
	var inputs []input
	var why []string
	formula, replicas := "", int32(0)
	for _, m := range l.fn.ExternalMetrics() {
		in := read(l.now, m.Name, l.seen.Samples)
		inputs = append(inputs, in)
		if in.Unknown != "" {
			continue
		}
		if m.IsActive(in.Value) {
			why = append(why, fmt.Sprintf("%s is above activation %s", m.Name, m.Activation.String()))
		}
		if n := m.Replicas(in.Value); n > replicas {
			formula, replicas = fmt.Sprintf("%s / target %s rounded up = %d", m.Name, m.Target.String(), n), n
		}
	}
	if len(why) == 0 {
		return false
	}
	l.d.Inputs = inputs
	l.wakeTo(min(l.fn.AwakeReplicas(replicas), l.seen.Bound.most(l.fn)), fmt.Sprintf("%s: %s", strings.Join(why, ", "),
		l.gated("the gate stays in the path until a pod is ready")))
	l.d.Formula = formula
	if l.d.To < replicas {
		l.d.Clamps = []string{fmt.Sprintf("maxReplicas %d", l.fn.Spec.Scale.MaxReplicas)}
		if l.d.To < l.fn.Spec.Scale.MaxReplicas {
			l.d.Clamps = []string{"bound by " + l.seen.Bound.By}
		}
	}
	return true
}

// wakesByValue tells whether the scaler wakes the function when an external metric asks for it. Beside a foreign
// HorizontalPodAutoscaler it does not: a zero is then that one's, to undo by whatever it scales on, or its user's.
func wakesByValue(fn *v1alpha1.Function, foreignHPA bool) bool {
	return !foreignHPA && fn.MaySleep() && len(fn.ExternalMetrics()) > 0
}
