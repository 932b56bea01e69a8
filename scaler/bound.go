package scaler

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// boundAnnotation of a HorizontalPodAutoscaler says what its maxReplicas is bound by. It is what a scaler goes by that does
// not know the bound, be it because it has just started or because nobody can tell it at the time.
const boundAnnotation = v1alpha1.Group + "/bound-by"

// bound is how many replicas of a function have anything to do. The zero value is none: then maxReplicas is.
type bound struct {
	// Replicas is above 0, not below minReplicas, and below maxReplicas.
	Replicas int32
	// By says what bounds them: "12 partitions of kafka_lag".
	By string
}

// boundOf is that of a function that scales on nothing but metrics with a bound: the largest of theirs. Beside a metric
// without one there is none, because the work that one measures can be shared by any number of replicas. known is false
// while one of the bounds is not: then the last one stays.
func boundOf(now time.Time, fn *v1alpha1.Function, samples map[string]sample) (b bound, known bool) {
	names, _ := scaleMetrics(fn)
	external := fn.ExternalMetrics()
	if len(external) == 0 || len(names) != len(external) {
		return bound{}, true
	}
	for _, m := range external {
		if m.Bound == "" {
			return bound{}, true
		}
		in := read(now, m.Bound, samples)
		if in.Unknown != "" || in.Value < 1 {
			return bound{}, false
		}
		if n := int32(min(in.Value, float64(fn.Spec.Scale.MaxReplicas))); n > b.Replicas {
			b = bound{Replicas: n, By: fmt.Sprintf("%d partitions of %s", n, m.Name)}
			if n == 1 {
				b.By = "1 partition of " + m.Name
			}
		}
	}
	least := fn.Spec.Scale.MinReplicas
	switch {
	case b.Replicas >= fn.Spec.Scale.MaxReplicas:
		return bound{}, true
	case b.Replicas < least:
		b.Replicas = least
		b.By += fmt.Sprintf(", but not below minReplicas %d", least)
	}
	return b, true
}

// most is maxReplicas as the bound leaves it.
func (b bound) most(fn *v1alpha1.Function) int32 {
	if b.Replicas > 0 {
		return min(b.Replicas, fn.Spec.Scale.MaxReplicas)
	}
	return fn.Spec.Scale.MaxReplicas
}

// boundNames are the metrics that say the bounds of fn.
func boundNames(fn *v1alpha1.Function) []string {
	var names []string
	for _, m := range fn.ExternalMetrics() {
		if m.Bound != "" {
			names = append(names, m.Bound)
		}
	}
	return names
}

// bound is that of the function as it is known now, or, while it is not, as the HorizontalPodAutoscaler has it.
func (w *world) bound(now time.Time, samples map[string]sample) bound {
	b, known := boundOf(now, w.fn, samples)
	if known || w.hpa == nil || !metav1.IsControlledBy(w.hpa, w.fn) {
		return b
	}
	by := w.hpa.Annotations[boundAnnotation]
	if by == "" || w.hpa.Spec.MaxReplicas >= w.fn.Spec.Scale.MaxReplicas {
		return bound{} // what stands there is a maxReplicas of the Function
	}
	return bound{Replicas: max(w.hpa.Spec.MaxReplicas, w.fn.Spec.Scale.MinReplicas), By: by}
}
