package scaler

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
	explainInterval = 15 * time.Second
	// explainsPerPoll bounds those questions over all functions.
	explainsPerPoll = 20
	// parallelReads bounds the reads of one poll that are under way.
	parallelReads = 16
)

// polled are the metrics that are read, one list call per namespace each.
var polled = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}

// interest is what the reconciler wants to be told of a function.
type interest struct {
	// Required metrics, all of which have to be known before the function may sleep.
	Required []string
	// Always asks for a reconcile after each poll: the function is going to sleep.
	Always bool
	// Idle asks for one once every required metric is known and idle_seconds has reached IdleAfter.
	Idle      bool
	IdleAfter time.Duration
	// Unknown is true while the conditions say that a metric is; a reconcile is due once it is not.
	Unknown bool
	// Reconciled is the time of the last reconcile; the status may be due some time later.
	Reconciled time.Time
}

// poller reads the metrics of functions that are awake from the custom metrics API, and rings for those about which
// something can have changed. Functions that sleep are not tracked and cost nothing. Safe for concurrent use.
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
	// started and ticked are for the health check.
	started, ticked time.Time
}

func newPoller(api *metricsAPI, interval time.Duration, ring func(types.NamespacedName), m *telemetry) *poller {
	return &poller{
		api: api, interval: interval, ring: ring, metrics: m,
		tracked:   map[types.NamespacedName]interest{},
		values:    map[types.NamespacedName]map[string]sample{},
		explained: map[types.NamespacedName]time.Time{},
	}
}

// track asks for the metrics of fn from the next poll on.
func (p *poller) track(fn types.NamespacedName, i interest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tracked[fn] = i
}

// forget ends that. What was read is dropped, so that a later wake does not begin with old values.
func (p *poller) forget(fn types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tracked, fn)
	delete(p.values, fn)
	delete(p.explained, fn)
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

// answer is the answer to one list call.
type answer struct {
	namespace, metric string
	samples           map[types.NamespacedName]sample
	err               error
}

// poll reads each metric once for each namespace with a tracked function, and rings where that can matter.
func (p *poller) poll(ctx context.Context) {
	begin := time.Now()
	namespaces := p.namespaces()
	answers := make([]answer, 0, len(namespaces)*len(polled))
	for _, ns := range namespaces {
		for _, metric := range polled {
			answers = append(answers, answer{namespace: ns, metric: metric})
		}
	}
	var g errgroup.Group
	g.SetLimit(parallelReads)
	for i := range answers {
		a := &answers[i]
		g.Go(func() error {
			a.samples, a.err = p.api.list(ctx, a.namespace, a.metric)
			return nil
		})
	}
	_ = g.Wait() // the errors are in the answers
	if ctx.Err() != nil {
		return
	}
	for _, a := range answers {
		if a.err != nil {
			p.metrics.pollFailures.WithLabelValues(a.metric).Inc()
			logr.FromContextOrDiscard(ctx).V(1).Info("Cannot read metric", "namespace", a.namespace, "metric", a.metric,
				"err", a.err.Error())
		}
	}
	questions := p.remember(begin, answers)
	p.explain(ctx, questions)
	if len(namespaces) > 0 {
		p.metrics.pollSeconds.Observe(time.Since(begin).Seconds())
	}
	for _, fn := range p.due(time.Now()) {
		p.ring(fn)
	}
}

func (p *poller) namespaces() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticked = time.Now()
	set := map[string]bool{}
	for fn := range p.tracked {
		set[fn.Namespace] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// question is a metric of a function that the list did not have.
type question struct {
	fn     types.NamespacedName
	metric string
}

// remember stores the answers and returns what to ask the API about.
func (p *poller) remember(begin time.Time, answers []answer) []question {
	p.mu.Lock()
	defer p.mu.Unlock()
	var questions []question
	byNamespace := map[string][]answer{}
	for _, a := range answers {
		byNamespace[a.namespace] = append(byNamespace[a.namespace], a)
	}
	for fn, i := range p.tracked {
		values := p.values[fn]
		if values == nil {
			values = map[string]sample{}
			p.values[fn] = values
		}
		asked := begin.Sub(p.explained[fn]) < explainInterval || len(questions) >= explainsPerPoll
		for _, a := range byNamespace[fn.Namespace] {
			s, ok := a.samples[fn]
			switch old := values[a.metric]; {
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
				if !asked && slices.Contains(i.Required, a.metric) {
					asked = true
					p.explained[fn] = begin
					questions = append(questions, question{fn: fn, metric: a.metric})
				}
			}
			values[a.metric] = s
		}
	}
	return questions
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
		known := true
		for _, name := range i.Required {
			known = known && read(now, name, p.values[fn]).Unknown == ""
		}
		idle := time.Duration(p.values[fn][v1alpha1.IdleSeconds].Value * float64(time.Second))
		switch {
		case i.Always,
			i.Idle && known && idle >= i.IdleAfter,
			i.Unknown && known,
			now.Sub(i.Reconciled) >= statusInterval:
			fns = append(fns, fn)
		}
	}
	return fns
}
