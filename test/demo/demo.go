package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/load"
)

// Options of the demo.
type Options struct {
	// Function to show.
	Function types.NamespacedName
	// System is the namespace of Sluice.
	System string
	// Allow lists the networks that may be sent requests; the function's Service must be in one of them.
	Allow []netip.Prefix
	// RampFrom and RampTo are the ends of the ramp, in requests per second; Ramp is its length.
	RampFrom, RampTo float64
	Ramp             time.Duration
	// Hold is the least time for which the load stays at RampTo.
	Hold time.Duration
	// Kubectl is named in the commands to try.
	Kubectl string

	// Interval is the time between two rows of the table. Default 2.5s.
	Interval time.Duration
	// Poll is the time between two looks at the cluster outside the table. Default 250ms.
	Poll time.Duration
	// SetUp bounds each stage before the first request. Default 120s.
	SetUp time.Duration
	// Follow bounds the time from the end of the ramp until the replicas have followed. Default 90s: the window of the
	// rate has to fill (30 s), then the autoscaler to look (15 s) more than once, as it adds 4 pods or 100 % per look.
	Follow time.Duration
	// SleepMargin is the time that the function has to fall asleep beyond its idleAfter. Default 15s.
	SleepMargin time.Duration
}

// requestTimeout bounds one request of the load; none should come near it.
const requestTimeout = 15 * time.Second

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Interval, 2500*time.Millisecond)
	def(&o.Poll, 250*time.Millisecond)
	def(&o.SetUp, 2*time.Minute)
	def(&o.Follow, 90*time.Second)
	def(&o.SleepMargin, 15*time.Second)
	return o
}

// Demo shows one function from its sleep to its sleep.
type Demo struct {
	opts    Options
	cluster cluster
	out     terminal

	// What one stage finds out and a later one needs.
	fn     *v1alpha1.Function // as of stage "function ready"
	url    string             // of the Service through the gate
	load   *running           // nil before the ramp
	report report
}

// report is what the summary tells.
type report struct {
	cold    time.Duration // end to end
	result  load.Result
	peak    int32
	toSleep time.Duration // from the last request to 0 replicas
}

// New returns a demo on c that writes to out.
func New(c cluster, out terminal, opts Options) *Demo {
	return &Demo{opts: opts.withDefaults(), cluster: c, out: out}
}

// Run shows all stages and the summary. The error is a *StageError.
func (d *Demo) Run(ctx context.Context) error {
	fmt.Fprintf(d.out.w, "Sluice demo: function %s\n", d.opts.Function)
	err := d.runAll(ctx)
	if err == nil {
		d.summary()
	}
	d.commands()
	return err
}

func (d *Demo) runAll(ctx context.Context) error {
	// A stage that fails leaves the load running; it does not outlive the demo.
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		d.load.wait()
	}()
	return runStages(ctx, d.out, d.stages(ctx))
}

// stages of the demo; lifetime is the context of the load, which outlasts the stage that begins it.
func (d *Demo) stages(lifetime context.Context) []stage {
	setUp := fixed(d.opts.SetUp)
	ramp := fixed(d.opts.Ramp + d.opts.Interval + callTimeout)
	follow := fixed(max(d.opts.Follow, d.opts.Hold+2*d.opts.Interval))
	sleep := func() time.Duration { return d.fn.IdleAfter() + d.opts.SleepMargin }
	cold := func() time.Duration { return d.fn.HoldTimeout() + callTimeout }
	rising := fmt.Sprintf("the load rises from %s to %s requests per second in %s, and every request is answered",
		number(d.opts.RampFrom), number(d.opts.RampTo), seconds(d.opts.Ramp))
	return []stage{
		{"metrics API", "the API server serves custom.metrics.k8s.io from Sluice's adapter", setUp, d.metricsAPI},
		{"activator", "the gate is ready to hold requests", setUp, d.ready("sluice-activator")},
		{"scaler", "the scaler is ready", setUp, d.ready("sluice-scaler")},
		{"function ready", "Sluice has taken the function on", setUp, d.functionReady},
		{"asleep", "the function is at zero replicas, with the gate in its path", setUp, d.asleep},
		{"cold start", "one request wakes it, and is answered", cold, d.coldStart},
		{"ramp", rising, ramp, func(ctx context.Context) error { return d.ramp(ctx, lifetime) }},
		{"replicas follow", "the replicas reach what the measured rate asks for", follow, d.replicasFollow},
		{"load ends", "the last answers come in, and none has failed", fixed(requestTimeout + callTimeout), d.loadEnds},
		{"sleep", "without requests, the function goes back to zero", sleep, d.sleep},
	}
}

func (d *Demo) summary() {
	r := d.report.result
	d.out.title("Summary")
	for _, l := range [][2]string{
		{"cold start", fmt.Sprintf("%s from the request to its answer, from zero replicas", short(d.report.cold))},
		// The request of the cold start is one more than the load's.
		{"requests", fmt.Sprintf("%d sent, %d answered, %d failed", r.Sent+1, r.Answered()+1, r.Failed())},
		{"latency", fmt.Sprintf("p50 %s, p99 %s, from when each request was to leave", short(r.Latency.P50), short(r.Latency.P99))},
		{"replicas", fmt.Sprintf("%d at the peak", d.report.peak)},
		{"time to sleep", fmt.Sprintf("%s from the last answer to zero replicas (idleAfter %s)",
			short(d.report.toSleep), seconds(d.fn.IdleAfter()))},
	} {
		d.out.linef("%-15s%s", l[0], l[1])
	}
}

// commands to look at all this by oneself; after a failure, to find out more.
func (d *Demo) commands() {
	fn, kubectl := d.opts.Function, d.opts.Kubectl
	owned := (&v1alpha1.Function{ObjectMeta: metav1.ObjectMeta{Name: fn.Name}}).OwnedName()
	d.out.title("Try")
	for _, args := range []string{
		"get fn " + fn.Name,
		"get hpa " + owned,
		"describe hpa " + owned,
	} {
		d.out.linef("%s -n %s %s", kubectl, fn.Namespace, args)
	}
	for _, metric := range []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight} {
		d.out.linef("%s get --raw %s", kubectl, metricPath(fn, metric))
	}
	for _, deployment := range []string{"scaler", "activator", "adapter"} {
		d.out.linef("%s -n %s logs deployment/sluice-%s", kubectl, d.opts.System, deployment)
	}
	d.out.line("make demo-down")
}
