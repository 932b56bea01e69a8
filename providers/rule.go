package providers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Rule says who counts a function's requests. It is the whole table:
//
//	            requests_per_second   requests_in_flight                  request_duration_seconds   idle_seconds
//	Proxied     activators: started   activators: busy seconds            not counted                activators
//	Direct, by  pods: their counter   pods: their gauge over time, else   pods: seconds by number    activators
//	its pods                          the increase of their durations;    of the requests that       and pods
//	                                  and activators: held seconds        ended
//	neither     not counted           not counted                         not counted                not counted
//
// A request of a Direct function that passed the gate is counted by the pod that answered it, never by both; held
// ones are at no pod yet. Idleness looks at every signal there is, because any sign of activity is activity. All
// activators must be known for any value but durations: in both modes requests can be at the gate.
//
// # Pods that are missing
//
// A pod is missing when it is expected and has not answered twice yet, when its last answer is stale, or when the latest
// attempt to ask it failed. Of three pods and more, one fifth may be missing, and always one. Then requests_per_second
// and requests_in_flight are made of the other pods, as of the time at which those were seen; and each missing pod is
// taken to have gone on, since its last answer or its appearance, at the larger of the mean that it had then and the
// mean of the others. So the sum is never smaller than what was known. That goes for a minute after its last answer,
// or its appearance; after that, or where more are missing, the value waits for the missing pods, and is unknown once
// their answers are stale. request_duration_seconds is of the pods that answer, while one does. idle_seconds waits for
// all: nothing is put to sleep on a guess.
//
// # Counters that are missing
//
// While no pod of a version of the function has shown the counter that its requests are counted by, nothing by the pods
// is known, and neither is idle_seconds: the name may be wrong, or was until the last rollout. Once one has shown it, a pod
// of that version without it has counted nothing. Where a pod has not shown the gauge, durations stand in, if there are any.
//
// When the Rule of a live function changes, its values are measured anew from then on. Numbers of two rules are never
// mixed.
type Rule struct {
	// Proxied is true when activators count.
	Proxied bool
	// ByPods is true when the function's pods count.
	ByPods bool
	// Gauge is true when they may also have a gauge of requests in flight, Duration when they may have durations.
	Gauge, Duration bool
	// Scrape is what the pods count by. A change of it makes their former numbers meaningless.
	Scrape Scrape
	// Port of the pods that serves it; 0 is that of the function's Service.
	Port int32
}

// Function is what the Store needs to know of a Function.
type Function struct {
	// Name of the function.
	Name types.NamespacedName
	// UID of the Function object.
	UID types.UID
	// Labels of the Function object. Never written to.
	Labels map[string]string
	// Window of requests_per_second.
	Window time.Duration
	// Rule says who counts.
	Rule Rule
	// Workload that is scaled, and Service in front of it, for which the same values are served.
	Workload, Service Object
}

// NewFunction reads fn.
func NewFunction(fn *v1alpha1.Function) Function {
	f := Function{Name: fn.Key(), UID: fn.UID, Labels: fn.Labels, Window: fn.Window()}
	switch traffic := fn.Spec.Traffic; {
	case traffic == nil:
	case fn.IsProxied():
		f.Rule.Proxied = true
	case traffic.PodMetrics != nil:
		f.Rule = podRule(traffic.PodMetrics)
	}
	return f
}

// podRule is the Rule of a function whose pods count by pm.
func podRule(pm *v1alpha1.PodMetrics) Rule {
	r := Rule{ByPods: true, Scrape: Scrape{
		TLS: pm.Scheme == "HTTPS", Preset: pm.Preset,
		Requests: pm.Requests, InFlight: pm.InFlight, Duration: pm.Duration,
	}}
	r.Gauge, r.Duration = r.Scrape.HasInFlight(), r.Scrape.HasDuration()
	r.Scrape.Path, r.Port = cmp.Or(pm.Path, r.Scrape.PresetPath()), cmp.Or(pm.Port, r.Scrape.PresetPort())
	if pm.TLS != nil {
		r.Scrape.InsecureSkipVerify, r.Scrape.ServerName = pm.TLS.InsecureSkipVerify, pm.TLS.ServerName
		if pm.TLS.CARef != nil {
			r.Scrape.CASecret = pm.TLS.CARef.Name
		}
	}
	return r
}

// Metrics that are served, by who counts. Never written to.
var (
	byActivators = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}
	byPods       = []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds}
	byPodsGauge  = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}
	byPodsAll    = []string{
		v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds,
	}
)

// Counts lists the metrics that somebody counts for the function, known or not at the moment. Not to be written to.
func (r Rule) Counts() []string {
	switch {
	case r.Proxied:
		return byActivators
	case r.ByPods && r.Duration:
		return byPodsAll
	case r.ByPods && r.Gauge:
		return byPodsGauge
	case r.ByPods:
		return byPods
	default:
		return nil
	}
}

// notCounted says why nobody counts metric, which is one of Sluice's own; nil if somebody does.
func (r Rule) notCounted(metric string) *Unknown {
	if slices.Contains(r.Counts(), metric) {
		return nil
	}
	u := &Unknown{Reason: NotCounted}
	switch {
	case !r.Proxied && !r.ByPods:
		u.Remedy = "set spec.traffic.mode Proxied, or name a counter in spec.traffic.podMetrics.requests"
	case metric == v1alpha1.RequestsInFlight:
		u.Remedy = "name a gauge in spec.traffic.podMetrics.inFlight or a histogram in spec.traffic.podMetrics.duration, " +
			"or set spec.traffic.mode Proxied"
	case r.Proxied:
		u.Remedy = "only pods tell durations: set spec.traffic.mode Direct and spec.traffic.podMetrics with a duration"
	default:
		u.Remedy = "name a histogram or summary in spec.traffic.podMetrics.duration"
	}
	return u
}

// noMetric says that def has no metric of that name.
func (def *definition) noMetric(metric string) *Unknown {
	has := "none"
	if len(def.info.Metrics) > 0 {
		has = strings.Join(def.info.Metrics, ", ")
	}
	return &Unknown{Reason: NoMetric, Detail: fmt.Sprintf("there is no metric %q: %s has %s", metric, def.Name, has)}
}

// counterMissing says that pod has not shown what it is to be measured by.
func (def *definition) counterMissing(pod *source, what, name string) *Unknown {
	scrape := def.Rule.Scrape
	switch {
	case name != "":
		name = " " + name
	case scrape.Preset != "":
		name = " of preset " + string(scrape.Preset)
	}
	return &Unknown{
		Reason: CounterMissing, Source: pod.String(), Detail: "exposes no " + what + name,
		Remedy: "check spec.traffic.podMetrics, or wait: it may appear with the first request",
	}
}
