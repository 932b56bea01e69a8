package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxWakes is how soon every scale is to be written.
const maxWakes = 3 * time.Second

// maxDelay is how much longer it may take where some functions are slow, as a multiple.
const maxDelay = 1.2

// looking is how often the node that only pretends looks at what was written.
const looking = 5 * time.Millisecond

// Of slowOf functions, where some are slow, slowEach have a pod that takes connections and never answers its probe, and as many
// get no pod at all.
const (
	slowOf   = 20
	slowEach = 2
)

// kind is what becomes of a function that is woken.
type kind int

const (
	healthy kind = iota
	muted        // its pod takes connections and never answers its probe
	podless      // no pod comes
)

// kindOf is that of the i-th function where some are slow.
func kindOf(i int) kind {
	switch {
	case i%slowOf < slowEach:
		return muted
	case i%slowOf < 2*slowEach:
		return podless
	default:
		return healthy
	}
}

// waking wakes many functions, by one request each, spread over a second. A node that only pretends makes a pod ready
// as soon as its workload has a replica. It does so four times, each with other functions: with slow ones among them in the
// second and the third, so that what changes with time counts for neither.
func (b *bench) waking(ctx context.Context) (report, error) {
	floor, err := b.bareWakes(ctx)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	none := func(int) kind { return healthy }
	var without, with wakings
	for _, pass := range []struct {
		to     *wakings
		kindOf func(int) kind
	}{{&without, none}, {&with, kindOf}, {&with, kindOf}, {&without, none}} {
		w, err := b.wakeAll(ctx, pass.kindOf)
		if err != nil {
			return nil, fmt.Errorf("%d functions, some slow: %t: %w", b.wakes, pass.to == &with, err)
		}
		*pass.to = append(*pass.to, w)
	}
	return wakesReport(without, with, floor), nil
}

// woken is what came of waking functions, all of them in order.
type woken struct {
	kinds   []kind
	began   time.Time
	sent    []time.Time // the request of a function
	written []time.Time // its scale
	ends    []time.Time // the answer, of those that are healthy
	refused int         // wakes that were repeated
}

// wakeAll wakes as many functions as it is told, by an activator that has seen nothing else.
func (b *bench) wakeAll(ctx context.Context, kindOf func(int) kind) (*woken, error) {
	names, gates, err := b.newFunctions(ctx, b.wakes)
	if err != nil {
		return nil, err
	}
	w := &woken{}
	kinds := map[string]kind{}
	for i, name := range names {
		w.kinds = append(w.kinds, kindOf(i))
		kinds[name] = kindOf(i)
	}
	pod, err := b.startPod(ctx)
	if err != nil {
		return nil, err
	}
	defer pod.Stop()
	stopMute, err := mute(ctx, muteAddress)
	if err != nil {
		return nil, err
	}
	defer stopMute()
	a, err := b.startActivator(ctx)
	if err != nil {
		return nil, err
	}
	defer a.Stop()
	var links []*link
	defer func() { disconnect(links) }()
	for _, gate := range gates {
		l, err := dial(ctx, gate)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	log, err := newAudit(b.world.AuditLog())
	if err != nil {
		return nil, err
	}
	node := &node{log: log, make: func(ctx context.Context, name string) error {
		switch kinds[name] {
		case muted:
			return b.world.PodProbed(ctx, name, muteAddress)
		case podless:
			return nil
		default:
			return b.world.PodReady(ctx, name, podAddress)
		}
	}}
	nodeCtx, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { node.run(nodeCtx) })

	w.began = time.Now()
	w.sent, w.ends, err = spread(links, w.kinds, w.began)
	stop()
	running.Wait()
	if err := errors.Join(err, node.err); err != nil {
		return nil, err
	}
	if err := b.stillHeld(ctx, names, w.kinds); err != nil {
		return nil, err
	}
	a.Stop()
	if taken := stopMute(); slices.Contains(w.kinds, muted) && taken == 0 {
		return nil, errors.New("the pods that never answer their probe were not probed")
	}
	return w, b.account(ctx, names, node.writes, w)
}

// stillHeld fails unless what slow functions were asked is held, and nothing else.
func (b *bench) stillHeld(ctx context.Context, names []string, kinds []kind) error {
	for i, name := range names {
		held, err := figure(ctx, v1alpha1.ActivatorHeld, name)
		if err != nil {
			return err
		}
		want := 1
		if kinds[i] == healthy {
			want = 0
		}
		if held != want {
			return fmt.Errorf("%d requests of %s are held, want %d", held, name, want)
		}
	}
	return nil
}

// bareWakes writes the scales of as many other functions, spread over a second too and with as many writes at a time as the
// activator allows itself, and returns how long that takes.
func (b *bench) bareWakes(ctx context.Context) (time.Duration, error) {
	names, _, err := b.newFunctions(ctx, b.wakes)
	if err != nil {
		return 0, err
	}
	const atOnce = 64
	slots := make(chan struct{}, atOnce)
	var writing errgroup.Group
	began := time.Now()
	for i, name := range names {
		if err := nap(max(0, time.Until(began.Add(time.Duration(i)*time.Second/time.Duration(len(names)))))); err != nil {
			return 0, err
		}
		writing.Go(func() error {
			slots <- struct{}{}
			defer func() { <-slots }()
			return b.world.Scale(ctx, name, 1)
		})
	}
	err = writing.Wait()
	return time.Since(began), err
}

// spread sends one request on each connection over a second, and returns when each was sent, and when those to healthy
// functions were answered.
func spread(links []*link, kinds []kind, began time.Time) (sent, ends []time.Time, err error) {
	sent, ends = make([]time.Time, len(links)), make([]time.Time, len(links))
	errs := make([]error, len(links))
	var running sync.WaitGroup
	for i, l := range links {
		_ = l.conn.SetDeadline(time.Now().Add(time.Minute))
		due := began.Add(time.Duration(i) * time.Second / time.Duration(len(links)))
		if err := nap(max(0, time.Until(due))); err != nil {
			return nil, nil, err
		}
		sent[i] = time.Now()
		if errs[i] = l.send(); errs[i] != nil || kinds[i] != healthy {
			continue
		}
		running.Go(func() {
			errs[i] = l.receive()
			ends[i] = time.Now()
		})
	}
	running.Wait()
	return sent, ends, errors.Join(errs...)
}

// node makes pods ready.
type node struct {
	make func(ctx context.Context, name string) error
	log  *audit

	writes []write // all that the activator has sent, once run has ended
	err    error
}

// run looks for scales that were written, and makes their pods, until ctx ends; then it looks a last time.
func (n *node) run(ctx context.Context) {
	var making sync.WaitGroup
	defer making.Wait()
	var mu sync.Mutex // protects n.err
	for last := false; !last; {
		last = ctx.Err() != nil
		writes, err := n.log.read()
		if err != nil {
			mu.Lock()
			n.err = errors.Join(n.err, err)
			mu.Unlock()
			return
		}
		for _, w := range writes {
			if !w.foreign() {
				continue
			}
			n.writes = append(n.writes, w)
			if !w.wakes() {
				continue
			}
			making.Go(func() {
				if err := n.make(context.WithoutCancel(ctx), w.ObjectRef.Name); err != nil {
					mu.Lock()
					defer mu.Unlock()
					n.err = errors.Join(n.err, err)
				}
			})
		}
		_ = nap(looking)
	}
}

// account fails unless every function was written exactly once, by the API server's own account, and notes when.
func (b *bench) account(ctx context.Context, names []string, writes []write, w *woken) error {
	at := map[string]time.Time{}
	for _, write := range writes {
		if write.ResponseStatus.Code == http.StatusUnprocessableEntity { // a wake that was repeated, and found it done
			w.refused++
			continue
		}
		if !write.wakes() {
			return fmt.Errorf("a write that is no wake: %+v", write)
		}
		if _, twice := at[write.ObjectRef.Name]; twice {
			return fmt.Errorf("%s was woken twice", write.ObjectRef.Name)
		}
		at[write.ObjectRef.Name] = write.RequestReceivedTimestamp
	}
	for _, name := range names {
		written, found := at[name]
		if !found {
			return fmt.Errorf("%s was not woken", name)
		}
		replicas, writes, err := b.world.Written(ctx, name)
		if err != nil {
			return err
		}
		if replicas != 1 || writes != 1 {
			return fmt.Errorf("the workload of %s has %d replicas after %d writes, want 1 and 1", name, replicas, writes)
		}
		w.written = append(w.written, written)
	}
	return nil
}

// wakings are those of the same kinds.
type wakings []*woken

// lastWrite is how long after the first request the last scale was written, in the mean.
func (ws wakings) lastWrite() time.Duration {
	var sum time.Duration
	for _, w := range ws {
		sum += slices.MaxFunc(w.written, time.Time.Compare).Sub(w.began)
	}
	return sum / time.Duration(len(ws))
}

// lastAnswer is how long after the first request the last answer came, in the mean; of the functions that are healthy where
// some are slow.
func (ws wakings) lastAnswer() time.Duration {
	var sum time.Duration
	for _, w := range ws {
		var last time.Duration
		for i, end := range w.ends {
			if kindOf(i) == healthy {
				last = max(last, end.Sub(w.began))
			}
		}
		sum += last
	}
	return sum / time.Duration(len(ws))
}

// durations are, in order of size, how long it took from each request to its scale, and to its answer; of the functions that
// are healthy where some are slow.
func (ws wakings) durations() (out, cold []time.Duration) {
	for _, w := range ws {
		for i := range w.kinds {
			if kindOf(i) == healthy {
				out = append(out, w.written[i].Sub(w.sent[i]))
				cold = append(cold, w.ends[i].Sub(w.sent[i]))
			}
		}
	}
	slices.Sort(out)
	slices.Sort(cold)
	return out, cold
}

func (ws wakings) refused() (sum int) {
	for _, w := range ws {
		sum += w.refused
	}
	return sum
}

func wakesReport(without, with wakings, floor time.Duration) report {
	n := len(without[0].kinds)
	slow := 0
	for _, k := range with[0].kinds {
		if k != healthy {
			slow++
		}
	}
	writes := atMost(fmt.Sprintf("wakes: writes to the API for %d functions", n), len(without[0].written), n, func(n int) string { return fmt.Sprint(n) })
	writes.target = fmt.Sprintf("= %d", n)
	r := report{writes}
	beside := func(what string, got, floor time.Duration) {
		row := atMost(what, got, maxWakes, brief)
		row.floor, row.ratio = brief(floor), times(float64(got)/float64(floor))
		r = append(r, row)
	}
	all, some := "wakes", fmt.Sprintf("wakes, %d of %d slow", slow, n)
	beside(all+": from the first request to the last scale write at the API server; floor: bare writes", without.lastWrite(), floor)
	for _, of := range []struct {
		what string
		ws   wakings
	}{{all, without}, {some, with}} {
		out, cold := of.ws.durations()
		r = append(
			r,
			row{what: of.what + ": repeated while the pod was awaited, and refused", figure: fmt.Sprint(of.ws.refused())},
			row{what: of.what + ": from a request to its scale write, p50, p99, at most", figure: quantiles(out)},
			row{what: of.what + ": from a request to its answer, p50, p99, at most", figure: quantiles(cold)},
		)
	}
	beside(some+": from the first request to the last scale write; floor: none slow", with.lastWrite(), without.lastWrite())
	beside(some+": to the last answer of the others; floor: theirs, none slow", with.lastAnswer(), without.lastAnswer())
	delay := func(what string, with, without time.Duration) row {
		return atMost(some+": "+what+", as a multiple of that with none slow", float64(with)/float64(without), maxDelay, times)
	}
	return append(
		r,
		delay("to the last scale write", with.lastWrite(), without.lastWrite()),
		delay("to the last answer of the others", with.lastAnswer(), without.lastAnswer()),
	)
}

func quantiles(sorted []time.Duration) string {
	return fmt.Sprintf("%s, %s, %s", brief(quantile(sorted, 50)), brief(quantile(sorted, 99)), brief(quantile(sorted, 100)))
}
