package scaler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// statusInterval is how often at most the status of an awake function is written for its values alone.
	statusInterval = 15 * time.Second
	// explainInterval is how often at most the API is asked why a function has no value.
	explainInterval = 5 * time.Second
	// explainsPerPoll bounds those questions over all functions.
	explainsPerPoll = 20
	// parallelReads bounds the reads of one poll that are under way.
	parallelReads = 16
)

// requestMetrics are those that every function with traffic has. No external metric has one of their names.
var requestMetrics = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}

// interest is what the reconciler wants to be told of a function.
type interest struct {
	// Metrics to read.
	Metrics []string
	// External metrics among them.
	External []v1alpha1.ExternalMetric
	// Asleep is true while the function has no replica: it asks for a reconcile once a value of External is above its
	// activation, and for nothing else.
	Asleep bool
	// Required metrics, all of which have to be known before the function may sleep.
	Required []string
	// Always asks for a reconcile after each poll: the function is going to sleep.
	Always bool
	// Idle asks for one once every required metric is known, idle_seconds, if it is one of them, has reached IdleAfter,
	// and the external ones have been quiet for as long.
	Idle      bool
	IdleAfter time.Duration
	// Unknown is true while the conditions say that a metric is; a reconcile is due once it is not.
	Unknown bool
	// Reconciled is the time of the last reconcile; the status may be due some time later.
	Reconciled time.Time
}

// poller reads the metrics of functions from the custom metrics API, by one list call for each namespace and metric
// that a tracked function there has, and rings for those about which something can have changed. Functions that sleep
// are tracked only if they have external metrics; the others cost nothing. Safe for concurrent use.
type poller struct {
	api      *metricsAPI
	interval time.Duration
	ring     func(types.NamespacedName)
	metrics  *telemetry

	mu sync.Mutex // protects following
	// tracked functions, their values by name of metric, and when the API was last asked why one was missing.
	tracked   map[types.NamespacedName]interest
	values    map[types.NamespacedName]map[string]sample
	explained map[types.NamespacedName]time.Time
	// blind are functions that sleep while a metric that would wake them is unknown.
	blind map[types.NamespacedName]bool
	// started and ticked are for the health check.
	started, ticked time.Time
}

func newPoller(api *metricsAPI, interval time.Duration, ring func(types.NamespacedName), m *telemetry) *poller {
	return &poller{
		api: api, interval: interval, ring: ring, metrics: m,
		tracked:   map[types.NamespacedName]interest{},
		values:    map[types.NamespacedName]map[string]sample{},
		explained: map[types.NamespacedName]time.Time{},
		blind:     map[types.NamespacedName]bool{},
	}
}

// track asks for the metrics of fn from the next poll on. What was read of others is dropped, so that a later wake
// does not begin with old values.
func (p *poller) track(fn types.NamespacedName, i interest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.values[fn], func(name string, _ sample) bool { return !slices.Contains(i.Metrics, name) })
	p.tracked[fn] = i
}

// forget ends that, and drops what was read.
func (p *poller) forget(fn types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tracked, fn)
	delete(p.values, fn)
	delete(p.explained, fn)
	delete(p.blind, fn)
}

// samples of fn by name of metric, as of the last poll.
func (p *poller) samples(fn types.NamespacedName) map[string]sample {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.values[fn])
}

// Start polls until ctx ends. It is a manager.Runnable of the leader.
func (p *poller) Start(ctx context.Context) error {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	p.mu.Lock()
	p.started = time.Now()
	p.ticked = p.started
	p.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.poll(ctx)
		}
	}
}

// healthy fails when the poller was started and no longer ticks.
func (p *poller) healthy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit := max(time.Minute, 10*p.interval); !p.started.IsZero() && time.Since(p.ticked) > limit {
		return fmt.Errorf("metrics were last polled %s ago", since(time.Now(), p.ticked))
	}
	return nil
}

// listed is a metric of all functions of a namespace: what one list call reads.
type listed struct{ namespace, metric string }

// answer is the answer to one list call.
type answer struct {
	samples map[types.NamespacedName]sample
	err     error
}

// poll reads each metric once for each namespace with a tracked function that has it, and rings where that can matter.
func (p *poller) poll(ctx context.Context) {
	begin := time.Now()
	answers := p.reads()
	var g errgroup.Group
	g.SetLimit(parallelReads)
	for l, a := range answers {
		g.Go(func() error {
			a.samples, a.err = p.api.list(ctx, l.namespace, l.metric)
			return nil
		})
	}
	_ = g.Wait() // the errors are in the answers
	if ctx.Err() != nil {
		return
	}
	log := logr.FromContextOrDiscard(ctx)
	for l, a := range answers {
		if a.err != nil {
			p.metrics.pollFailures.WithLabelValues(kindOfMetric(l.metric)).Inc()
			log.V(1).Info("Cannot read metric", "namespace", l.namespace, "metric", l.metric, "err", a.err.Error())
		}
	}
	questions := p.remember(begin, answers)
	p.explain(ctx, questions)
	if len(answers) > 0 {
		p.metrics.pollSeconds.Observe(time.Since(begin).Seconds())
	}
	p.tellBlind(log, time.Now())
	for _, fn := range p.due(time.Now()) {
		p.ring(fn)
	}
}

// kindOfMetric bounds the values of a label: external metrics have names of the users' own.
func kindOfMetric(name string) string {
	if slices.Contains(requestMetrics, name) {
		return name
	}
	return "external"
}

// reads are the list calls to be made, without their answers.
func (p *poller) reads() map[listed]*answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticked = time.Now()
	all := map[listed]*answer{}
	for fn, i := range p.tracked {
		for _, metric := range i.Metrics {
			l := listed{fn.Namespace, metric}
			if all[l] == nil {
				all[l] = &answer{}
			}
		}
	}
	return all
}

// question is a metric of a function that the list did not have.
type question struct {
	fn     types.NamespacedName
	metric string
}

// remember stores the answers and returns what to ask the API about.
func (p *poller) remember(begin time.Time, answers map[listed]*answer) []question {
	p.mu.Lock()
	defer p.mu.Unlock()
	var questions []question
	for fn, i := range p.tracked {
		values := p.values[fn]
		if values == nil {
			values = map[string]sample{}
			p.values[fn] = values
		}
		mayAsk := begin.Sub(p.explained[fn]) >= explainInterval
		for _, metric := range i.Metrics {
			a := answers[listed{fn.Namespace, metric}]
			if a == nil {
				continue // it is of interest only since the reads began
			}
			s, ok := a.samples[fn]
			old := values[metric]
			switch {
			case ok:
				s.Polled = begin
			case a.err != nil:
				s = old // with its age: see sample.ReadError
				s.ReadError = words(a.err)
			default:
				s = sample{Value: old.Value, Time: old.Time, Polled: old.Polled, Unknown: old.Unknown}
				if old.Unknown == "" {
					s.Unknown = "the metrics API does not list it"
				}
				if mayAsk && len(questions) < explainsPerPoll && slices.Contains(i.Required, metric) {
					p.explained[fn] = begin
					questions = append(questions, question{fn: fn, metric: metric})
				}
			}
			s.QuietSince = old.QuietSince
			values[metric] = s
		}
		i.quieten(begin, values)
	}
	return questions
}

// quieten brings QuietSince of the external metrics' values up to now.
func (i *interest) quieten(now time.Time, values map[string]sample) {
	for _, m := range i.External {
		s, ok := values[m.Name]
		switch {
		case !ok:
			continue
		case read(now, m.Name, values).Unknown != "" || m.IsActive(s.Value):
			s.QuietSince = time.Time{}
		case s.QuietSince.IsZero():
			s.QuietSince = now
		}
		values[m.Name] = s
	}
}

// explain asks the API why values are missing, and remembers its words.
func (p *poller) explain(ctx context.Context, questions []question) {
	var g errgroup.Group
	g.SetLimit(parallelReads)
	for _, q := range questions {
		g.Go(func() error {
			why := p.api.explain(ctx, q.fn, q.metric)
			p.mu.Lock()
			defer p.mu.Unlock()
			// The function may be forgotten by now, or the value have come.
			if s, ok := p.values[q.fn][q.metric]; ok && s.Unknown != "" && why != "" {
				s.Unknown = why
				p.values[q.fn][q.metric] = s
			}
			return nil
		})
	}
	_ = g.Wait() // no function of it fails
}

// due lists the functions about which a reconcile can find something new.
func (p *poller) due(now time.Time) []types.NamespacedName {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fns []types.NamespacedName
	for fn, i := range p.tracked {
		values := p.values[fn]
		if i.Asleep {
			if slices.ContainsFunc(i.External, func(m v1alpha1.ExternalMetric) bool { return active(now, m, values) }) {
				fns = append(fns, fn)
			}
			continue
		}
		known := i.known(now, values)
		switch {
		case i.Always,
			i.Idle && known && i.idle(now, values),
			i.Unknown && known,
			now.Sub(i.Reconciled) >= statusInterval:
			fns = append(fns, fn)
		}
	}
	return fns
}

// active tells whether the value of an external metric is known and above its activation.
func active(now time.Time, m v1alpha1.ExternalMetric, values map[string]sample) bool {
	in := read(now, m.Name, values)
	return in.Unknown == "" && m.IsActive(in.Value)
}

// known tells whether every required metric has a known value.
func (i *interest) known(now time.Time, values map[string]sample) bool {
	return !slices.ContainsFunc(i.Required, func(name string) bool { return read(now, name, values).Unknown != "" })
}

// idle tells whether nothing that is known has wanted the function for IdleAfter.
func (i *interest) idle(now time.Time, values map[string]sample) bool {
	if slices.Contains(i.Required, v1alpha1.IdleSeconds) && values[v1alpha1.IdleSeconds].idleFor() < i.IdleAfter {
		return false
	}
	return !slices.ContainsFunc(i.External, func(m v1alpha1.ExternalMetric) bool {
		since := values[m.Name].QuietSince
		return since.IsZero() || now.Sub(since) < i.IdleAfter
	})
}

// tellBlind tells in log and metric of functions that sleep while a metric that would wake them is unknown. A status
// is not written: a sleeping function causes no write.
func (p *poller) tellBlind(log logr.Logger, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for fn, i := range p.tracked {
		var unknown []string
		for _, m := range i.External {
			if in := read(now, m.Name, p.values[fn]); i.Asleep && in.Unknown != "" && in.Unknown != notRead {
				unknown = append(unknown, in.String())
			}
		}
		switch {
		case len(unknown) > 0 && !p.blind[fn]:
			p.blind[fn] = true
			log.Info("A metric that would wake a sleeping function is unknown", "function", fn.String(), "why", strings.Join(unknown, "; "))
		case len(unknown) == 0 && p.blind[fn]:
			delete(p.blind, fn)
			log.Info("The metrics that would wake a sleeping function are known again, or it is awake", "function", fn.String())
		}
	}
	p.metrics.blindSleepers.Set(float64(len(p.blind)))
}
