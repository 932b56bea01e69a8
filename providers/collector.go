package providers

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// Options of a Collector.
type Options struct {
	// Store takes the measurements. Required.
	Store *Store
	// Discovery says what is measured. Required.
	Discovery Discovery
	// Sources measure, by the Kind of target. Required for each Kind that Discovery names.
	Sources map[Kind]Source
	// Registerer takes the Collector's own metrics. Default: none.
	Registerer prometheus.Registerer
	// FirstRound bounds how long Ready waits for the first answers of the targets that there are at the start.
	// Default 10s.
	FirstRound time.Duration
}

// Collector owns every goroutine that measures: one loop per target, so that none waits for another. The loops are
// spread over their interval by a hash of the target, and a measurement may take 80 % of the interval. Make it with
// NewCollector.
type Collector struct {
	opts    Options
	metrics *collectorMetrics
	seed    maphash.Seed

	mu       sync.Mutex // protects following
	synced   time.Time
	untried  map[Target]bool // told of before Synced and not yet attempted
	stopLoop map[Target]context.CancelFunc
	byOwner  map[owner][]Target
}

// owner is whose targets are replaced together: a function, or the activators where it is zero.
type owner types.NamespacedName

// NewCollector validates o. It starts nothing.
func NewCollector(o Options) (*Collector, error) {
	switch {
	case o.Store == nil:
		return nil, errors.New("collector: Store is required")
	case o.Discovery == nil:
		return nil, errors.New("collector: Discovery is required")
	}
	if o.FirstRound <= 0 {
		o.FirstRound = 10 * time.Second
	}
	c := &Collector{
		opts: o, metrics: newCollectorMetrics(o.Store), seed: maphash.MakeSeed(),
		untried: map[Target]bool{}, stopLoop: map[Target]context.CancelFunc{}, byOwner: map[owner][]Target{},
	}
	if o.Registerer != nil {
		if err := c.metrics.register(o.Registerer); err != nil {
			return nil, fmt.Errorf("register the collector's metrics: %w", err)
		}
	}
	return c, nil
}

// Run measures until ctx ends, and returns after all loops have ended. It may be called once. An error is that of
// Discovery.
func (c *Collector) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel() // before Wait, by the order of defers: a failed Discovery ends the loops too
	sink := &sink{c: c, start: func(t Target) context.CancelFunc {
		ctx, stop := context.WithCancel(ctx)
		loops.Go(func() { c.loop(ctx, t) })
		return stop
	}}
	if err := c.opts.Discovery.Run(ctx, sink); err != nil && ctx.Err() == nil {
		return fmt.Errorf("discovery: %w", err)
	}
	<-ctx.Done()
	return nil
}

// Ready is nil once values can be given: all that existed at the start has been told and attempted, or FirstRound has
// passed since it was told. It does not depend on any target's answer.
func (c *Collector) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.synced.IsZero():
		return errors.New("functions and targets are not listed yet")
	case len(c.untried) > 0 && time.Since(c.synced) < c.opts.FirstRound:
		return fmt.Errorf("%d targets have not been measured yet", len(c.untried))
	}
	return nil
}

// loop measures t every interval until ctx ends. Its phase is that of t's hash, from the first time on, so that a start
// with many targets is no burst.
func (c *Collector) loop(ctx context.Context, t Target) {
	log := logr.FromContextOrDiscard(ctx).WithValues("kind", t.Kind, "target", t.Address)
	if t.Kind == Pod { // pods come and go, and refuse connections before they are ready
		log = log.V(1).WithValues("namespace", t.Function.Namespace, "function", t.Function.Name)
	}
	interval := c.opts.Store.intervals.of(t.Kind)
	phase := time.Duration(maphash.Comparable(c.seed, t) % uint64(interval))
	next := time.Now().Add(phase)
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		err := c.measure(ctx, t, interval*8/10)
		if ctx.Err() != nil {
			return // the error, if any, is that of being stopped
		}
		if failed := err != nil; failed != failing {
			failing = failed
			if failing {
				log.Info("target cannot be measured", "err", err.Error())
			} else {
				log.Info("target can be measured again")
			}
		}
		// Keep the phase; leave out the turns that are past.
		for now := time.Now(); !next.After(now); {
			next = next.Add(interval)
		}
	}
}

// measure attempts t once and tells the Store.
func (c *Collector) measure(ctx context.Context, t Target, timeout time.Duration) error {
	deadline, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at := time.Now()
	var m *Measurement
	err := fmt.Errorf("no source measures targets of kind %q", t.Kind)
	if source := c.opts.Sources[t.Kind]; source != nil {
		m, err = source.Measure(deadline, t)
	}
	if ctx.Err() != nil {
		return ctx.Err() // an attempt that was cut short says nothing about the target
	}
	err = c.opts.Store.Record(t, at, m, err)
	c.metrics.observe(t.Kind, err, time.Since(at))
	c.mu.Lock()
	delete(c.untried, t)
	c.mu.Unlock()
	return err
}

// sink passes on to the Store what Discovery finds, and starts and stops the loops.
type sink struct {
	c     *Collector
	start func(Target) context.CancelFunc
}

var _ Sink = (*sink)(nil)

func (s *sink) SetFunction(fn Function, pods []Endpoint) {
	s.c.opts.Store.SetFunction(fn, pods)
	s.replace(owner(fn.Name), pods)
}

func (s *sink) DeleteFunction(name types.NamespacedName) {
	s.replace(owner(name), nil)
	s.c.opts.Store.DeleteFunction(name)
}

func (s *sink) SetActivators(activators []Endpoint) {
	s.c.opts.Store.SetActivators(activators)
	s.replace(owner{}, activators)
}

func (s *sink) Synced() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.synced = time.Now()
}

// replace makes endpoints the owner's targets. The Store knows new ones already, so that no answer is lost.
func (s *sink) replace(o owner, endpoints []Endpoint) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := make(map[Target]bool, len(endpoints))
	targets := make([]Target, 0, len(endpoints))
	for _, e := range endpoints {
		if keep[e.Target] {
			continue
		}
		keep[e.Target] = true
		targets = append(targets, e.Target)
		if c.stopLoop[e.Target] == nil {
			if c.synced.IsZero() {
				c.untried[e.Target] = true
			}
			c.stopLoop[e.Target] = s.start(e.Target)
		}
	}
	for _, t := range c.byOwner[o] {
		if !keep[t] {
			c.stopLoop[t]()
			delete(c.stopLoop, t)
			delete(c.untried, t)
		}
	}
	if c.byOwner[o] = targets; len(targets) == 0 {
		delete(c.byOwner, o)
	}
}

// outcome is the label of an attempt's result.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, ErrInvalid):
		return "invalid"
	default:
		return "error"
	}
}
