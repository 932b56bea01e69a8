package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/load"
)

// running is the load while it lasts.
type running struct {
	*load.Load
	stop   chan struct{}
	done   chan struct{}
	result load.Result // after done
	err    error       // after done
}

// startLoad begins the load, which lasts until stop is closed or ctx ends, longer at most than the stages that watch it.
func (d *Demo) startLoad(ctx context.Context) (*running, error) {
	steps := []load.Step{
		load.Ramp(d.opts.RampFrom, d.opts.RampTo, d.opts.Ramp),
		load.Constant(d.opts.RampTo, d.opts.Follow+d.opts.Hold+time.Minute),
	}
	most := 0.0
	for _, s := range steps {
		most += max(s.From, s.To) * s.For.Seconds()
	}
	r := &running{stop: make(chan struct{}), done: make(chan struct{})}
	var err error
	r.Load, err = load.New(ctx, load.Options{
		URL: d.url, Steps: steps, MaxRequests: int(most) + 1, MaxInFlight: 2000, Timeout: requestTimeout,
		Allow: d.opts.Allow, Stop: r.stop,
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(r.done)
		r.result, r.err = r.Run(ctx)
	}()
	return r, nil
}

// wait returns once the load has ended. It is fine on a load that was never begun.
func (r *running) wait() {
	if r != nil {
		<-r.done
	}
}

// zeroFailed is the standing condition of the load.
func (r *running) zeroFailed() error {
	s := r.Snapshot()
	if s.Failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d requests failed; first: %s", s.Failed, s.Due, s.FirstFailure)
}

// ramp begins the load, which goes on through the stages that follow until lifetime ends, and shows the table until the
// load is at its height.
func (d *Demo) ramp(ctx, lifetime context.Context) error {
	var err error
	if d.load, err = d.startLoad(lifetime); err != nil {
		return err
	}
	d.out.line(tableHeader())
	return d.watch(ctx, func(r row) (bool, string) {
		return r.at >= d.opts.Ramp, fmt.Sprintf("the load at %s of its %s", short(r.at), short(d.opts.Ramp))
	})
}

// replicasFollow shows the table until the replicas are what the rate asks for, and the load has been held.
func (d *Demo) replicasFollow(ctx context.Context) error {
	var final string
	d.out.line(tableHeader())
	err := d.watch(ctx, func(r row) (bool, string) {
		ok, seen := d.followed(r)
		final = seen
		return ok && r.at >= d.opts.Ramp+d.opts.Hold, seen
	})
	if err == nil {
		d.out.line(final)
	}
	return err
}

// followed tells whether the replicas are what the rate asks for, once the rate has risen to that of the load.
func (d *Demo) followed(r row) (ok bool, seen string) {
	switch {
	case r.err != nil:
		return false, oneLine(r.err)
	case r.rate.err != nil:
		return false, "requests_per_second unknown: " + oneLine(r.rate.err)
	}
	target := rateTarget(d.fn)
	want := wanted(d.fn, r.rate.value, target, r.replicas)
	seen = fmt.Sprintf("%d replicas, %d ready, where requests_per_second %s at a target of %s per replica asks for %d (at most %d)",
		r.replicas, r.ready, number(r.rate.value), number(target), want, d.fn.Spec.Scale.MaxReplicas)
	if r.rate.value < (1-tolerance)*d.opts.RampTo {
		return false, seen + fmt.Sprintf("; the rate is still to reach %s", number(d.opts.RampTo))
	}
	return r.replicas >= want && r.ready >= r.replicas, seen
}

// tolerance is the part by which the autoscaler lets a metric miss its target before it acts: the default of
// kube-controller-manager's --horizontal-pod-autoscaler-tolerance.
const tolerance = 0.1

// wanted is the number of replicas that the autoscaler's formula makes of rate: ceil(rate / target), but the current
// number as long as that serves rate within the tolerance, and within the Function's bounds.
func wanted(fn *v1alpha1.Function, rate, target float64, current int32) int32 {
	if current > 0 && math.Abs(rate/(target*float64(current))-1) <= tolerance {
		return fn.AwakeReplicas(current)
	}
	return fn.AwakeReplicas(int32(min(math.Ceil(rate/target), math.MaxInt32)))
}

// watch prints a row at each interval until enough says so. A failed request ends it.
func (d *Demo) watch(ctx context.Context, enough func(row) (ok bool, seen string)) error {
	ignore := func(string) {}
	return until(ctx, d.opts.Interval, ignore, func(ctx context.Context) (string, bool, error) {
		if err := d.load.zeroFailed(); err != nil {
			return "", false, err
		}
		r := d.observe(ctx)
		select {
		case <-ctx.Done():
			return "", false, nil // the row would tell of nothing but the end of the stage
		default:
		}
		if r.at == 0 {
			return "the load not begun", false, nil
		}
		d.out.line(r.String())
		d.report.peak = max(d.report.peak, r.replicas)
		ok, seen := enough(r)
		return seen, ok, nil
	})
}

// observe reads one row.
func (d *Demo) observe(ctx context.Context) row {
	s := d.load.Snapshot()
	r := row{at: s.Elapsed, offered: s.Rate, failed: s.Failed, hpa: "unknown"}
	r.rate.value, r.rate.err = d.cluster.value(ctx, d.opts.Function, v1alpha1.RequestsPerSecond)
	r.inFlight.value, r.inFlight.err = d.cluster.value(ctx, d.opts.Function, v1alpha1.RequestsInFlight)
	deployment, err := d.cluster.deployment(ctx, types.NamespacedName{Namespace: d.fn.Namespace, Name: d.fn.WorkloadName()})
	if err != nil {
		r.err = err
		return r
	}
	r.replicas, r.ready = replicas(deployment), deployment.Status.ReadyReplicas
	hpa, err := d.cluster.autoscaler(ctx, types.NamespacedName{Namespace: d.fn.Namespace, Name: d.fn.OwnedName()})
	if err != nil {
		r.err = err
		return r
	}
	r.hpa = hpaCell(hpa, v1alpha1.RequestsPerSecond)
	return r
}

// loadEnds stops the load and waits for what is in flight.
func (d *Demo) loadEnds(ctx context.Context) error {
	close(d.load.stop)
	select {
	case <-d.load.done:
	case <-ctx.Done():
		return &notObserved{seen: fmt.Sprintf("%d requests still in flight", d.load.Snapshot().InFlight)}
	}
	if err := errors.Join(d.load.err, d.load.result.Err()); err != nil {
		return err
	}
	d.report.result = d.load.result
	d.out.linef("%d sent, %d answered, none failed; the generator was late by %s at most",
		d.load.result.Sent, d.load.result.Answered(), short(d.load.result.Late))
	return nil
}
