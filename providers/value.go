package providers

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Value returns the value of a metric of a function: requests_per_second and request_duration_seconds over the
// function's own window, requests_in_flight as the mean over DefaultWindow, idle_seconds as it was at the Value's time,
// and the latest answer of a query under the query's name. While less than the window has been observed, the value is
// that of the shorter time, and says so.
//
// The error is ErrNoFunction, or an *Unknown.
func (s *Store) Value(name types.NamespacedName, metric string) (Value, error) {
	return s.valueAsOf(time.Now(), name, metric)
}

func (s *Store) valueAsOf(wall time.Time, name types.NamespacedName, metric string) (Value, error) {
	f := s.function(name)
	if f == nil {
		return Value{}, ErrNoFunction
	}
	now := s.tick(wall)
	v, at, unknown := s.value(f, metric, now)
	if unknown != nil {
		return Value{}, unknown
	}
	v.At = wall.Add(-time.Duration(now - at)) // by the clock as it is now, whatever it was at the time
	return v, nil
}

func (s *Store) value(f *function, metric string, now tick) (Value, tick, *Unknown) {
	switch metric {
	case v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds:
	default:
		return f.query(metric, now)
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	def := f.def.Load()
	if unknown := def.Rule.notCounted(metric); unknown != nil {
		return Value{}, 0, unknown
	}
	l := look{f: f, def: def, acts: s.activators.Load(), now: now}
	if def.Rule.ByPods {
		if unknown := l.shown(metric); unknown != nil {
			return Value{}, 0, unknown
		}
	}
	switch metric {
	case v1alpha1.IdleSeconds:
		return l.idle()
	case v1alpha1.RequestDurationSeconds:
		return l.duration()
	case v1alpha1.RequestsPerSecond:
		l.window = def.Window
		if def.Rule.Proxied {
			l.gate, l.byGate = started, true
		} else {
			l.pod, l.byPods = started, true
		}
	default:
		l.window = v1alpha1.DefaultWindow
		if def.Rule.Proxied {
			l.gate, l.byGate = busy, true
		} else {
			l.gate, l.byGate = held, true
			l.pod, l.byPods = def.Rule.inFlight(), true
		}
	}
	return l.mean()
}

// inFlight is the counter whose increase over a time is the mean number of requests in flight at the function's pods.
func (r Rule) inFlight() counter {
	if r.Gauge {
		return busy
	}
	return lasted
}

// query is the latest answer of the function's query, or consumer group, with a metric of that name.
func (f *function) query(metric string, now tick) (Value, tick, *Unknown) {
	for _, src := range *f.queries.Load() {
		if !slices.Contains(src.metrics(), metric) {
			continue
		}
		st := src.state.Load()
		if unknown := src.stale(st, now); unknown != nil {
			return Value{}, 0, unknown
		}
		for _, a := range st.answers {
			switch {
			case a.Metric != metric:
			case a.Unknown != "":
				return Value{}, 0, &Unknown{Reason: NoData, Detail: a.Unknown}
			default:
				return Value{Value: a.Value, Window: a.Window}, min(st.sampled, now), nil
			}
		}
		return Value{}, 0, &Unknown{Reason: NoData, Source: src.String()}
	}
	return Value{}, 0, f.def.Load().noMetric(metric)
}

// stale is why the answers of a query or a consumer group are not known any more, or not yet; nil where they are.
func (src *source) stale(st *state, now tick) *Unknown {
	u := &Unknown{Reason: NoData, Source: src.String(), Err: st.err}
	switch {
	case st.sampled != never && time.Duration(now-st.sampled) <= staleAfter(src.interval):
		return nil
	case st.sampled != never:
		u.Reason, u.Age = Stale, time.Duration(now-st.sampled)
	case st.err != nil:
		u.Reason = SourceError
	}
	return u
}

// shown tells whether what metric is made of has ever been seen at pods of the versions that there are. Where it has not,
// zero and unknown look the same.
func (l *look) shown(metric string) *Unknown {
	inFlight := metric == v1alpha1.RequestsInFlight
	for _, src := range l.f.pods.live {
		st := src.state.Load()
		if !st.waited || st.sampled == never {
			continue
		}
		if unknown := l.f.notShown(l.def, src, st, inFlight); unknown != nil {
			return unknown
		}
	}
	return nil
}

// notShown says what no pod of src's version has ever exposed, or nil.
func (f *function) notShown(def *definition, src *source, st *state, inFlight bool) *Unknown {
	was := f.shown[st.version]
	switch {
	case st.absent && !was.counter:
		return def.counterMissing(src, "counter", def.Rule.Scrape.Requests)
	case inFlight && !st.gauged && !was.gauge && !def.Rule.Duration:
		return def.counterMissing(src, "gauge of requests in flight", def.Rule.Scrape.InFlight)
	}
	return nil
}

// look is one look at a function, whose mu is held. First it finds out how far its sources are known, then it sums.
type look struct {
	f    *function
	def  *definition
	acts *group
	now  tick

	// What is summed, over the window.
	gate, pod      counter
	byGate, byPods bool
	window         time.Duration

	// leave says which pods are missing. The value is made without them, or they are made up for.
	leave leave

	at      tick // the oldest of the times of all sources that are waited for
	from    tick // everything is counted from here on
	watched tick // everything was observed without a gap from here on
	slowest time.Duration
	waited  int
	oldest  *source
	unseen  *source // a source of which nothing is known
}

// begin forgets what was found out.
func (l *look) begin() {
	l.at, l.from, l.watched = l.now, max(l.f.since, l.f.pods.from), l.f.since
	l.slowest, l.waited, l.oldest, l.unseen = 0, 0, nil, nil
}

// add finds out about a group.
func (l *look) add(g *group) {
	l.from, l.watched = max(l.from, g.from), max(l.watched, g.since)
	for _, src := range g.gone {
		l.from = max(l.from, src.state.Load().counted)
	}
	for _, src := range g.live {
		st := src.state.Load()
		if l.leave.out(src, st, l.now) {
			continue
		}
		l.from = max(l.from, st.counted)
		if !st.waited {
			continue
		}
		l.waited++
		l.watched = max(l.watched, st.watched)
		l.slowest = max(l.slowest, src.interval)
		if seen := st.seen(); seen == never {
			l.unseen = src
		} else if l.oldest == nil || seen < l.at {
			l.oldest, l.at = src, min(seen, l.now)
		}
	}
}

// known tells why a value as of the time at is not known.
func (l *look) known() *Unknown {
	if l.unseen != nil {
		return l.unseen.unknown(l.unseen.state.Load(), l.now)
	}
	if age := time.Duration(l.now - l.at); age > staleAfter(l.slowest) {
		return l.oldest.unknown(l.oldest.state.Load(), l.now)
	}
	return nil
}

// all finds out about activators and pods.
func (l *look) all() *Unknown {
	l.begin()
	if l.add(l.acts); l.waited == 0 {
		return &Unknown{Reason: NoActivator}
	}
	l.add(&l.f.pods)
	return l.known()
}

// observed is the length of time that a value is made of, or why none is. Two answers of one source are an interval
// apart, give or take; of less than half of one nothing can be said.
func (l *look) observed() (time.Duration, *Unknown) {
	l.from = max(l.from, l.at-tick(l.window))
	if l.byGate {
		for _, tr := range l.f.tracks {
			l.from = max(l.from, tr.reach())
		}
	}
	if l.byPods {
		for _, g := range [...][]*source{l.f.pods.live, l.f.pods.gone} {
			for _, src := range g {
				if src.track != nil {
					l.from = max(l.from, src.track.reach())
				}
			}
		}
	}
	observed := time.Duration(l.at - l.from)
	if observed <= 0 || observed < l.slowest/2 {
		return 0, &Unknown{Reason: NoData}
	}
	return observed, nil
}

// reach is the time before which the track was cut off; never if it was not.
func (t *track) reach() tick {
	if t.trunc {
		return t.point(0).at
	}
	return never
}

// mean is the increase of the counters inside the window, by the window's length.
func (l *look) mean() (Value, tick, *Unknown) {
	if l.byPods {
		l.leave = l.lenience()
	}
	if unknown := l.all(); unknown != nil {
		return Value{}, 0, unknown
	}
	observed, unknown := l.observed()
	if unknown != nil {
		return Value{}, 0, unknown
	}
	sum := 0.0
	if l.byGate {
		for _, tr := range l.f.tracks {
			sum += tr.increase(l.gate, l.from, l.at)
		}
	}
	if l.byPods {
		sum += l.podSum(observed)
	}
	return Value{Value: sum / observed.Seconds(), Window: observed}, l.at, nil
}

// duration is the mean duration of the requests that ended inside the window, at the pods that answer.
func (l *look) duration() (Value, tick, *Unknown) {
	l.window, l.byPods = l.def.Window, true
	l.leave = failed
	l.begin()
	if l.add(&l.f.pods); l.waited == 0 { // all are missing, or there are none
		l.leave = none
		l.begin()
		l.add(&l.f.pods)
	}
	if unknown := l.known(); unknown != nil {
		return Value{}, 0, unknown
	}
	observed, unknown := l.observed()
	if unknown != nil {
		return Value{}, 0, unknown
	}
	sum, n := 0.0, 0.0
	for _, g := range [...][]*source{l.f.pods.live, l.f.pods.gone} {
		for _, src := range g {
			if src.track != nil {
				sum += src.track.increase(lasted, l.from, l.at)
				n += src.track.increase(ended, l.from, l.at)
			}
		}
	}
	return meanDuration(sum, n, observed, l.at)
}

// meanDuration is sum by n. At the old edge of a window a part of a request may be left; of less than half a one
// nothing is said.
func meanDuration(sum, n float64, observed time.Duration, at tick) (Value, tick, *Unknown) {
	if n < 0.5 {
		return Value{}, 0, &Unknown{Reason: NoData, Detail: "no request ended in the window"}
	}
	return Value{Value: sum / n, Window: observed}, at, nil
}

// idle is the time since the last sign of activity, or since everything is watched.
func (l *look) idle() (Value, tick, *Unknown) {
	if unknown := l.all(); unknown != nil {
		return Value{}, 0, unknown
	}
	since := max(l.f.lastActive, l.watched)
	return Value{Value: time.Duration(max(0, l.at-since)).Seconds()}, l.at, nil
}
