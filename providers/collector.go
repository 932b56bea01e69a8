package providers

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
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
	// Notifier hears of what Sources notice. Default: nobody does.
	Notifier Notifier
	// Registerer takes the Collector's own metrics. Default: none.
	Registerer prometheus.Registerer
	// FirstRound bounds how long Ready waits for the first answers of the targets that there are at the start.
	// Default 10s, or longer where the Store's intervals are.
	FirstRound time.Duration
}

// Notifier is told of each Notice once for each target of a function that it is about, if it was noticed after the target
// began to be measured. It is called from many goroutines at once, which measure nothing until it returns.
type Notifier interface {
	Notify(function types.NamespacedName, n Notice)
}

// Collector owns every goroutine that measures: one loop per target, so that none waits for another. The loops are
// spread over their interval by a hash of the target, and a measurement may take 80 % of the interval. Make it with
// NewCollector.
type Collector struct {
	opts    Options
	metrics *collectorMetrics
	seed    maphash.Seed
	epoch   time.Time // from which the turns are counted

	logs    map[Kind]*logLimit
	untried atomic.Int64 // loops that were started before Synced and have not made their first rounds yet

	mu      sync.Mutex // protects following
	synced  time.Time
	loops   map[Target]*loop
	byOwner map[owner][]*loop
}

// loop measures one target every interval.
type loop struct {
	Target
	stop   context.CancelFunc
	early  bool // started before Synced
	listed bool // while targets are replaced

	// Of the loop's goroutine alone:
	failing bool      // as the latest attempt was
	told    time.Time // what was noticed up to then was told, or is not this loop's
}

// firstRounds is how many answers of each process a rate needs at a start. With two of each, the latest first answer and
// the earliest last one may be moments apart, because their turns are spread over the interval.
const firstRounds = 3

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
		i := o.Store.intervals
		o.FirstRound = max(10*time.Second, (firstRounds+1)*max(i.Activator, i.Pod), i.Query+2*time.Second)
	}
	c := &Collector{
		opts: o, metrics: newCollectorMetrics(o.Store), seed: maphash.MakeSeed(), epoch: time.Now(),
		loops: map[Target]*loop{}, byOwner: map[owner][]*loop{},
		logs: map[Kind]*logLimit{Activator: {}, Pod: {}, Query: {}, Lag: {}},
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
	loops.Go(func() { c.forget(ctx) })
	sink := &sink{c: c, start: func(l *loop) {
		ctx, stop := context.WithCancel(ctx)
		l.stop = stop
		loops.Go(func() { c.run(ctx, l) })
	}}
	if err := c.opts.Discovery.Run(ctx, sink); err != nil && ctx.Err() == nil {
		return fmt.Errorf("discovery: %w", err)
	}
	<-ctx.Done()
	return nil
}

// Ready is nil once values can be given: all that existed at the start has been told, and has answered often enough for
// a rate or has failed; or FirstRound has passed since it was told. A target that fails or hangs delays it, and does not
// prevent it.
func (c *Collector) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.synced.IsZero():
		return errors.New("functions and targets are not listed yet")
	case c.untried.Load() > 0 && time.Since(c.synced) < c.opts.FirstRound:
		return fmt.Errorf("%d targets have not been measured yet", c.untried.Load())
	}
	return nil
}

// forget lets the Store drop what it needs no more, until ctx ends.
func (c *Collector) forget(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.opts.Store.forget()
		}
	}
}

// run measures l's target every interval until ctx ends. Its phase is that of the target's hash, from the first time
// on, so that a start with many targets is no burst.
func (c *Collector) run(ctx context.Context, l *loop) {
	interval := c.opts.Store.intervals.of(l.Kind)
	// Turns are counted from the same time for all, so that those of the same phase are at the same time.
	next := c.epoch.Add(c.phase(&l.Target, interval))
	if late := time.Since(next); late > 0 {
		next = next.Add(late.Truncate(interval) + interval)
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	tried := sync.OnceFunc(func() {
		if l.early {
			c.untried.Add(-1)
		}
	})
	defer tried() // a loop that ends before its first rounds is not waited for
	rounds := firstRounds
	if l.Kind == Query || l.Kind == Lag {
		rounds = 1 // its answer is the value
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := c.measure(ctx, l, interval*8/10)
		if ctx.Err() != nil {
			return // the error, if any, is that of being stopped
		}
		if rounds--; rounds <= 0 || err != nil {
			tried()
		}
		if failed := err != nil; failed != l.failing {
			l.failing = failed
			c.log(ctx, l.Target, err)
		}
		// Keep the phase; leave out the turns that are past.
		for now := time.Now(); !next.After(now); {
			next = next.Add(interval)
		}
		timer.Reset(time.Until(next))
	}
}

// phase is that of the target's hash; of a Lag that of its cluster's, which is asked for all of its groups at once.
func (c *Collector) phase(t *Target, interval time.Duration) time.Duration {
	hash := maphash.Comparable(c.seed, *t)
	if t.Kind == Lag {
		hash = maphash.String(c.seed, t.Consumer.Servers)
	}
	return time.Duration(hash % uint64(interval))
}

// log tells of a target that begins to fail, or is measured again where err is nil. Many targets may do so at once.
func (c *Collector) log(ctx context.Context, t Target, err error) {
	limit := c.logs[t.Kind]
	if limit == nil {
		return // no source measures such targets, as the error says to whoever reads the value
	}
	write, omitted := limit.take(time.Now())
	if !write {
		return
	}
	log := logr.FromContextOrDiscard(ctx).WithValues("kind", t.Kind, "target", t.String())
	if t.Kind != Activator {
		log = log.WithValues("namespace", t.Function.Namespace, "function", t.Function.Name)
	}
	if t.Kind == Pod { // pods come and go, and refuse connections before they are ready
		log = log.V(1)
	}
	if omitted > 0 {
		log = log.WithValues("omitted", omitted)
	}
	if err != nil {
		log.Info("target cannot be measured", "err", err.Error())
	} else {
		log.Info("target can be measured again")
	}
}

// logLimit lets ten lines pass in ten seconds.
type logLimit struct {
	mu      sync.Mutex // protects following
	since   time.Time
	lines   int
	omitted int
}

// take tells whether to write a line now, and how many have been left out before it.
func (l *logLimit) take(now time.Time) (write bool, omitted int) {
	const lines, in = 10, 10 * time.Second
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= in {
		l.since, l.lines = now, 0
	}
	if l.lines == lines {
		l.omitted++
		return false, 0
	}
	l.lines++
	omitted, l.omitted = l.omitted, 0
	return true, omitted
}

// measure attempts l's target once and tells the Store.
func (c *Collector) measure(ctx context.Context, l *loop, timeout time.Duration) error {
	t := l.Target
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
	if err == nil && c.opts.Notifier != nil {
		for _, n := range m.Notices {
			if n.At.After(l.told) {
				l.told = n.At
				c.opts.Notifier.Notify(t.Function, n)
			}
		}
	}
	return err
}

// sink passes on to the Store what Discovery finds, and starts and stops the loops.
type sink struct {
	c     *Collector
	start func(*loop)
}

var _ Sink = (*sink)(nil)

func (s *sink) SetFunction(fn Function, targets []Endpoint) {
	s.c.opts.Store.SetFunction(fn, targets)
	s.replace(owner(fn.Name), targets)
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
	before := c.byOwner[o]
	now := make([]*loop, 0, len(endpoints))
	for i := range endpoints {
		t := endpoints[i].Target
		l := c.loops[t]
		if l == nil {
			l = &loop{Target: t, early: c.synced.IsZero(), told: time.Now()}
			if l.early {
				c.untried.Add(1)
			}
			c.loops[t] = l
			s.start(l)
		}
		if !l.listed { // twice
			l.listed = true
			now = append(now, l)
		}
	}
	for _, l := range before {
		if !l.listed {
			l.stop()
			delete(c.loops, l.Target)
		}
	}
	for _, l := range now {
		l.listed = false
	}
	if c.byOwner[o] = now; len(now) == 0 {
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
