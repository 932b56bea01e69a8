package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// hurry sends requests one after the other on each of so many connections, for the span, and returns how many were
// answered in it. This is a closed loop: it tells the most that can be served, and nothing of latencies.
func hurry(ctx context.Context, at netip.AddrPort, connections int, span time.Duration) (answered int, err error) {
	links, err := connect(ctx, at, connections)
	if err != nil {
		return 0, err
	}
	defer disconnect(links)
	counts, errs := make([]int, len(links)), make([]error, len(links))
	end := time.Now().Add(span)
	var running sync.WaitGroup
	for i, l := range links {
		_ = l.conn.SetDeadline(end.Add(answerTimeout))
		running.Go(func() {
			for errs[i] == nil {
				if errs[i] = errors.Join(l.send(), l.receive()); errs[i] != nil || time.Now().After(end) {
					return
				}
				counts[i]++
			}
		})
	}
	running.Wait()
	for i := range counts {
		answered += counts[i]
	}
	return answered, errors.Join(errs...)
}

// pacer sends requests when they are due, whether or not others have been answered: an open loop. A request's latency
// counts from when it was due, so that one that found all connections busy, or the generator late, is charged with that
// ("coordinated omission").
type pacer struct {
	mu        sync.Mutex // protects following
	free      []*link
	late      []time.Time // due, with no connection free
	latencies []time.Duration
	err       error
}

// pace sends rate requests a second for the span over so many connections, and returns all their latencies in order of
// size.
func pace(ctx context.Context, at netip.AddrPort, connections int, rate float64, span time.Duration) ([]time.Duration, error) {
	links, err := connect(ctx, at, connections)
	if err != nil {
		return nil, err
	}
	defer disconnect(links)
	planned := max(1, int(rate*span.Seconds()))
	p := &pacer{free: slices.Clone(links), latencies: make([]time.Duration, 0, planned)}
	var running sync.WaitGroup
	for _, l := range links {
		_ = l.conn.SetDeadline(time.Now().Add(span + answerTimeout))
		running.Go(func() { p.read(l) })
	}
	p.send(planned, time.Duration(float64(time.Second)/rate))
	for limit := time.Now().Add(answerTimeout); !p.done(planned) && ctx.Err() == nil && time.Now().Before(limit); {
		if err := nap(time.Millisecond); err != nil {
			return nil, err
		}
	}
	disconnect(links)
	running.Wait()
	if err := errors.Join(p.err, ctx.Err()); err != nil {
		return nil, err
	}
	if len(p.latencies) < planned {
		return nil, fmt.Errorf("%d of %d requests were not answered", planned-len(p.latencies), planned)
	}
	slices.Sort(p.latencies)
	return p.latencies, nil
}

// send lets requests leave from a thread of its own: the runtime's timers are up to a millisecond late.
func (p *pacer) send(planned int, gap time.Duration) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()   // and never unlocks: the thread, whose slack is set below, ends with the goroutine
		const setTimerSlack = 29 // PR_SET_TIMERSLACK
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setTimerSlack, 1, 0)
		began := time.Now()
		for i := range planned {
			due := began.Add(time.Duration(i) * gap)
			for wait := time.Until(due); wait > 0; wait = time.Until(due) {
				_ = nap(wait)
			}
			if !p.leave(due) {
				return
			}
		}
	}()
	<-done
}

// nap sleeps in the kernel, which is as exact as the thread's timer slack.
func nap(d time.Duration) error {
	ts := syscall.NsecToTimespec(int64(d))
	if err := syscall.Nanosleep(&ts, nil); err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	return nil
}

// leave sends the request that is due, or notes that it could not leave. It returns false once one has failed.
func (p *pacer) leave(due time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return false
	}
	if len(p.free) == 0 {
		p.late = append(p.late, due)
		return true
	}
	l := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.sendLocked(l, due)
	return true
}

func (p *pacer) sendLocked(l *link, due time.Time) {
	l.due = due
	if err := l.send(); err != nil {
		p.err = errors.Join(p.err, err)
	}
}

// read takes the answers of one connection, and lets the next request leave where one waits for it.
func (p *pacer) read(l *link) {
	for {
		err := l.receive()
		now := time.Now()
		p.mu.Lock()
		if err != nil {
			if !ended(err) || !slices.Contains(p.free, l) {
				p.err = errors.Join(p.err, err)
			}
			p.mu.Unlock()
			return
		}
		p.latencies = append(p.latencies, now.Sub(l.due))
		if len(p.late) > 0 {
			due := p.late[0]
			p.late = p.late[1:]
			p.sendLocked(l, due)
		} else {
			p.free = append(p.free, l)
		}
		p.mu.Unlock()
	}
}

// done tells whether all have been answered, or one has failed.
func (p *pacer) done(planned int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.latencies) == planned || p.err != nil
}
