package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/test/bench/kafka/subject"
	"github.com/sluice-dev/sluice/test/bench/world"
	"github.com/sluice-dev/sluice/test/kafka"
	"github.com/sluice-dev/sluice/test/port"
)

const (
	// settling is how long ours may take until all lags are true, and patience how long the usual design is waited for: what
	// it does then is what it does.
	settling = 3 * time.Minute
	patience = time.Minute
	// together is how often the triggers are polled all at once.
	together = 3
)

// sighting is what was seen of a subject.
type sighting struct {
	subject.Seen
	subjects int // groups that it measures
	took     time.Duration
	load     string // of the machine before

	cpu, brokerCPU time.Duration
	resident, most int64
	brokerResident int64
	connections    int             // at most
	first          time.Duration   // from its start until all lags were true; 0 for never
	moved          time.Duration   // from records and commits until all lags were true again; 0 for never
	verdict        verdict         // at the end of the span
	together       []time.Duration // of all triggers at once
	unanswered     int             // polls that failed then
}

// measure is the whole benchmark.
func measure(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "sluice-bench-kafka-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	t, err := startBroker(ctx, &o, dir)
	if err != nil {
		return err
	}
	defer t.stop()
	fmt.Fprintf(os.Stderr, "a broker with %d groups on %d topics of %d partitions was made in %.0f s\n",
		o.Groups, o.Topics, o.partitions, time.Since(began).Seconds())
	ours, err := watch(ctx, t, "sluice", o.Groups)
	if err != nil {
		return fmt.Errorf("sluice: %w", err)
	}
	theirs, err := watch(ctx, t, "usual", o.triggers)
	if err != nil {
		err = fmt.Errorf("a client per trigger: %w", err)
	}
	if theirs.took == 0 {
		return err
	}
	return errors.Join(err, report(o, ours, theirs)) // what was seen until the error is there
}

// watched is a subject that runs.
type watched struct {
	*world.Process
	address string
	usual   bool
}

// start runs a subject.
func start(ctx context.Context, t *truth, name string, groups int) (*watched, error) {
	addresses, err := port.Free(ctx, "127.0.0.1", 1)
	if err != nil {
		return nil, err
	}
	o := t.Options
	o.Address, o.Servers, o.Groups = addresses[0], t.cluster.Brokers[0].Address(kafka.PlaintextListener), groups
	w := &watched{address: addresses[0], usual: name == "usual"}
	if w.usual {
		cmd := exec.CommandContext(ctx, t.usual, o.Args()...)
		cmd.Stderr = os.Stderr
		w.Process, err = world.Start(name, cmd)
	} else {
		w.Process, err = world.StartSelf(ctx, name, o.Args()...)
	}
	return w, err
}

// watch runs a subject, and says what it does and uses in the span.
func watch(ctx context.Context, t *truth, name string, groups int) (s sighting, err error) {
	s.subjects = groups
	began := time.Now()
	w, err := start(ctx, t, name, groups)
	if err != nil {
		return s, err
	}
	defer w.Stop()
	if s.first, err = w.untilTrue(ctx, t, began); err != nil {
		return s, err
	}
	fmt.Fprintf(os.Stderr, "%s: %d groups, all lags were true %s the start\n", name, groups, after(s.first))
	// Connections that were needed at the start only are closed after 30 s without use.
	if err := world.Pause(ctx, min(35*time.Second, t.span)); err != nil {
		return s, err
	}
	if err := w.use(ctx, t, &s); err != nil {
		return s, err
	}
	if !w.usual && t.profile != "" {
		if err := w.keepProfile(ctx, t); err != nil {
			return s, err
		}
	}
	if err := t.move(ctx); err != nil {
		return s, err
	}
	if s.moved, err = w.untilTrue(ctx, t, time.Now()); err != nil {
		return s, fmt.Errorf("after records and commits: %w", err)
	}
	if !w.usual {
		return s, nil
	}
	return s, w.askTogether(ctx, &s)
}

// use says what the subject, and the broker, use in the span.
func (w *watched) use(ctx context.Context, t *truth, s *sighting) error {
	broker := t.cluster.Brokers[0]
	address, err := netip.ParseAddrPort(broker.Address(kafka.PlaintextListener))
	if err != nil {
		return err
	}
	var seen subject.Seen
	if err := w.get(ctx, "/seen", &seen); err != nil { // of what was before
		return err
	}
	s.load = world.LoadAverage()
	cpu, err := w.CPU()
	brokerCPU, errBroker := world.CPU(broker.PID())
	if err := errors.Join(err, errBroker); err != nil {
		return err
	}
	began := time.Now()
	for part := range 4 { // a look takes no time of the subject's, and some of the machine's
		if err := world.Pause(ctx, time.Until(began.Add(t.span*time.Duration(part+1)/4))); err != nil {
			return err
		}
		n, err := world.Connections(w.PID(), address.Port())
		if err != nil {
			return err
		}
		s.connections = max(s.connections, n)
	}
	if err := w.get(ctx, "/seen", &s.Seen); err != nil {
		return err
	}
	s.took = time.Since(began)
	cpuNow, err := w.CPU()
	brokerNow, errBroker := world.CPU(broker.PID())
	if err := errors.Join(err, errBroker); err != nil {
		return err
	}
	s.cpu, s.brokerCPU = cpuNow-cpu, brokerNow-brokerCPU
	if s.resident, s.most, err = w.Resident(); err != nil {
		return err
	}
	if s.brokerResident, _, err = world.Resident(broker.PID()); err != nil {
		return err
	}
	lags, err := w.lags(ctx)
	if err != nil {
		return err
	}
	s.verdict = t.check(lags)
	return nil
}

// askTogether has all triggers polled at once, which is what a round of ours is.
func (w *watched) askTogether(ctx context.Context, s *sighting) error {
	var before, then subject.Seen
	if err := w.get(ctx, "/seen", &before); err != nil {
		return err
	}
	for range together {
		began := time.Now()
		var none struct{}
		if err := w.get(ctx, "/together", &none); err != nil {
			return err
		}
		s.together = append(s.together, time.Since(began))
	}
	err := w.get(ctx, "/seen", &then)
	s.unanswered = then.Failed
	return err
}

// untilTrue waits until all lags are the true ones, and tells how long that took since began. Of the usual design it does
// not insist.
func (w *watched) untilTrue(ctx context.Context, t *truth, began time.Time) (time.Duration, error) {
	limit := settling
	if w.usual {
		limit = patience
	}
	err := world.Eventually(ctx, limit, "true lags", func(ctx context.Context) error {
		lags, err := w.lags(ctx)
		if err != nil {
			return err
		}
		return t.check(lags).err()
	})
	switch {
	case err == nil:
		return time.Since(began), nil
	case w.usual && ctx.Err() == nil && !w.ended():
		return 0, nil
	default:
		return 0, err
	}
}

func (w *watched) ended() bool {
	select {
	case <-w.Ended():
		return true
	default:
		return false
	}
}

func (w *watched) lags(ctx context.Context) (answers []subject.Answer, err error) {
	return answers, w.get(ctx, "/lags", &answers)
}

// get looks into the subject.
func (w *watched) get(ctx context.Context, path string, into any) error {
	body, err := w.read(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func (w *watched) read(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.address+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if w.ended() {
			err = errors.New("it has ended; what it said is above")
		}
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.300s", path, resp.Status, body)
	}
	return body, nil
}

// keepProfile tells where the time of ours goes.
func (w *watched) keepProfile(ctx context.Context, t *truth) error {
	for _, p := range []struct {
		path, file string
		flags      []string
	}{
		{fmt.Sprintf("profile?seconds=%d", max(1, int(t.profiling.Seconds()))), t.profile, []string{"-cum", "-nodecount=70"}},
		{"heap?gc=1", strings.TrimSuffix(t.profile, "-cpu.pprof") + "-heap.pprof", []string{"-nodecount=25"}},
	} {
		profile, err := w.read(ctx, "/debug/pprof/"+p.path)
		if err != nil {
			return fmt.Errorf("profile: %w", err)
		}
		if err := world.KeepProfile(ctx, profile, p.file, p.flags...); err != nil {
			return err
		}
	}
	return nil
}
