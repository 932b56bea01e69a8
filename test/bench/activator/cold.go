package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// Targets of cold starts.
const (
	maxWriteP50, maxWriteP99   = 3 * time.Millisecond, 10 * time.Millisecond
	maxAnswerP50, maxAnswerP99 = 5 * time.Millisecond, 15 * time.Millisecond
	maxColdP50, maxColdP99     = 1.05, 1.10 // of the floor
)

// coldLimit bounds one cold start, and one falling asleep.
const coldLimit = 2 * time.Minute

// coldStart is what was seen of one.
type coldStart struct {
	// begun is just before the first byte of the request, or of the floor's write, left.
	begun time.Time
	// written and stored are when the scale's write came to the API server, and when it was answered.
	written, stored time.Time
	// addressed is when the API told of the pod's address, and answering when the pod's port first answered a tight loop
	// that began then.
	addressed, answering time.Time
	// listening is when the function began to listen, by its own account.
	listening time.Time
	// answered is when the first byte of the answer came.
	answered time.Time
}

// cold compares a request to a sleeping function, through its Service, with a bare write of the scale of such a function
// and a tight loop that asks the pod. It runs in the network of the test cluster.
func cold(ctx context.Context, o options) (err error) {
	c, err := newColdCluster(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx))) }()
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "round\tof\tto scale write\tstored\taddress\tlistening\tport answering\tfirst byte\t")
	var ours, floors []coldStart
	for i := range o.colds + 1 {
		f, err := c.floor(ctx)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		s, err := c.ours(ctx)
		if err != nil {
			return fmt.Errorf("activator: %w", err)
		}
		if i == 0 {
			continue // images, caches and connections are new to the first
		}
		floors, ours = append(floors, f), append(ours, s)
		for name, s := range map[string]coldStart{"floor": f, "activator": s} {
			since := func(t time.Time) string { return brief(t.Sub(s.begun)) }
			fmt.Fprintf(out, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", i, name, since(s.written), since(s.stored),
				since(s.addressed), since(s.listening), since(s.answering), since(s.answered))
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return coldReport(ours, floors).print(os.Stdout)
}

func coldReport(ours, floors []coldStart) report {
	spans := func(of []coldStart, span func(coldStart) time.Duration) []time.Duration {
		var all []time.Duration
		for _, s := range of {
			all = append(all, span(s))
		}
		slices.Sort(all)
		return all
	}
	var rows report
	pair := func(what string, span func(coldStart) time.Duration, p50, p99 time.Duration) {
		mine, theirs := spans(ours, span), spans(floors, span)
		for _, q := range []struct {
			percent float64
			want    time.Duration
		}{{50, p50}, {99, p99}} {
			got, floor := quantile(mine, q.percent), quantile(theirs, q.percent)
			r := row{what: fmt.Sprintf("cold: %s, p%.0f", what, q.percent), figure: brief(got), floor: brief(floor)}
			if q.want > 0 {
				r.target, r.met = "<= "+brief(q.want), new(got <= q.want)
			}
			rows = append(rows, r)
		}
	}
	pair("first byte in to scale write at the API server", func(s coldStart) time.Duration { return s.written.Sub(s.begun) }, maxWriteP50, maxWriteP99)
	pair("first byte in to scale write stored", func(s coldStart) time.Duration { return s.stored.Sub(s.begun) }, 0, 0)
	pair("pod's port answering to first byte out", func(s coldStart) time.Duration { return s.answered.Sub(s.answering) }, maxAnswerP50, maxAnswerP99)
	pair("pod listening to first byte out", func(s coldStart) time.Duration { return s.answered.Sub(s.listening) }, 0, 0)
	mine := spans(ours, func(s coldStart) time.Duration { return s.answered.Sub(s.begun) })
	theirs := spans(floors, func(s coldStart) time.Duration { return s.answered.Sub(s.begun) })
	for _, q := range []struct{ percent, want float64 }{{50, maxColdP50}, {99, maxColdP99}} {
		got, floor := quantile(mine, q.percent), quantile(theirs, q.percent)
		r := atMost(fmt.Sprintf("cold: end to end, p%.0f of %d", q.percent, len(mine)), float64(got)/float64(floor), q.want, times)
		r.ratio, r.figure, r.floor = r.figure, brief(got), brief(floor)
		rows = append(rows, r)
	}
	return rows
}

// floor wakes the function that no Sluice knows by a write of its scale, and asks its pod in a tight loop.
func (c *coldCluster) floor(ctx context.Context) (s coldStart, err error) {
	ctx, cancel := context.WithTimeout(ctx, coldLimit)
	defer cancel()
	if err := c.quiet(ctx); err != nil {
		return s, err
	}
	pods, err := c.watchPods(ctx, floorName)
	if err != nil {
		return s, err
	}
	defer pods.Stop()
	log, err := newAudit(c.audit)
	if err != nil {
		return s, err
	}
	s.begun = time.Now()
	if err := c.scale(ctx, floorName, 1); err != nil {
		return s, err
	}
	at, err := address(ctx, pods)
	if err != nil {
		return s, err
	}
	s.addressed = time.Now()
	a, err := insist(ctx, at, "/")
	if err != nil {
		return s, err
	}
	s.answering, s.answered, s.listening = a.at, a.at, a.listening
	return s, c.scaleWrite(log, floorName, &s)
}

// ours asks the sleeping function through its Service. An observer of the pod tells when its port answers.
func (c *coldCluster) ours(ctx context.Context) (s coldStart, err error) {
	ctx, cancel := context.WithTimeout(ctx, coldLimit)
	defer cancel()
	if err := c.quiet(ctx); err != nil {
		return s, err
	}
	pods, err := c.watchPods(ctx, subjectName)
	if err != nil {
		return s, err
	}
	defer pods.Stop()
	log, err := newAudit(c.audit)
	if err != nil {
		return s, err
	}
	type observation struct {
		addressed, answering time.Time
		err                  error
	}
	observed := make(chan observation, 1)
	go func() {
		var o observation
		at, err := address(ctx, pods)
		if o.addressed, o.err = time.Now(), err; err == nil {
			var a answer
			a, o.err = insist(ctx, at, "/healthz")
			o.answering = a.at
		}
		observed <- o
	}()
	s.begun = time.Now()
	a, err := ask(ctx, c.service, "/")
	if err != nil {
		return s, err
	}
	s.answered, s.listening = a.at, a.listening
	o := <-observed
	if o.err != nil {
		return s, fmt.Errorf("observing the pod: %w", o.err)
	}
	s.addressed, s.answering = o.addressed, o.answering
	return s, c.scaleWrite(log, subjectName, &s)
}

// scaleWrite finds the one write of the scale to 1 in the log.
func (c *coldCluster) scaleWrite(log *audit, name string, s *coldStart) error {
	writes, err := log.read()
	if err != nil {
		return err
	}
	found := 0
	for _, w := range writes {
		if w.wakes() && w.ObjectRef.Namespace == c.namespace && w.ObjectRef.Name == name {
			s.written, s.stored = w.RequestReceivedTimestamp, w.StageTimestamp
			found++
		}
	}
	if found != 1 {
		return fmt.Errorf("%s was woken by %d writes, want 1", name, found)
	}
	return nil
}

// address waits for the pod's.
func address(ctx context.Context, pods watch.Interface) (netip.AddrPort, error) {
	for {
		select {
		case event, open := <-pods.ResultChan():
			if !open {
				return netip.AddrPort{}, errors.New("the watch of pods ended")
			}
			if pod, ok := event.Object.(*corev1.Pod); ok && pod.Status.PodIP != "" && pod.DeletionTimestamp == nil {
				ip, err := netip.ParseAddr(pod.Status.PodIP)
				return netip.AddrPortFrom(ip, functionPort), err
			}
		case <-ctx.Done():
			return netip.AddrPort{}, fmt.Errorf("no pod has an address: %w", ctx.Err())
		}
	}
}

// quiet waits until both functions are as they are before a cold start: without a pod, even one that ends, and the
// subject behind its gate.
func (c *coldCluster) quiet(ctx context.Context) error {
	if err := c.scale(ctx, floorName, 0); err != nil {
		return err
	}
	if err := c.awaitAsleep(ctx); err != nil {
		return err
	}
	for _, name := range []string{floorName, subjectName} {
		if err := c.awaitNoPod(ctx, name); err != nil {
			return err
		}
	}
	// What their ends have set off, at kube-proxy for one, is not to be measured with the next beginning.
	return world.Pause(ctx, time.Second)
}

// awaitNoPod waits until the workload has no pod, not even one that ends.
func (c *coldCluster) awaitNoPod(ctx context.Context, name string) error {
	return world.Eventually(ctx, coldLimit, "the last pod of "+name+" to be gone", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := c.client.List(ctx, &pods, client.InNamespace(c.namespace), client.MatchingLabels{"app": name}); err != nil {
			return err
		}
		if n := len(pods.Items); n > 0 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}
