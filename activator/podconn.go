package activator

import (
	"bufio"
	"container/heap"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// maxIdlePerPod is how many connections to a pod are kept.
	maxIdlePerPod = 1024
	// maxDialsPerPod is how many connections to a pod are made at a time. Thousands of requests that are let go at once
	// would else overrun the queue of the pod's listener, and those that fall off it wait for TCP to try again; and each
	// would pay for a connection of its own, where most can have one that has just carried another. Which requests run at
	// the same time is not bounded by it: one dial follows the other, as long as that is quicker than to wait for one that
	// becomes free.
	maxDialsPerPod = 16
	// A dial that does not seem worth its while is put off for as long as dials take, within these bounds.
	minRecheck = time.Millisecond
	maxRecheck = 20 * time.Millisecond
	// maxResponseHeader bounds the header of a pod's answer, in bytes.
	maxResponseHeader = 1 << 20
)

// podConn is a connection to a pod that carries one request at a time, by whose goroutine alone it is used: no other
// reads or writes for it, as one does of an http.Transport. See plain.go.
type podConn struct {
	net.Conn
	pool  *podConns
	all   *pools
	r     *bufio.Reader // of the podConn
	w     *bufio.Writer // of the Conn
	abort func()        // ends what is under way; may be called by anybody

	raw    syscall.RawConn // nil where the Conn has none
	look   func(fd uintptr) bool
	silent bool // what look saw

	stop      func() bool // of watch
	left      int64       // bytes of a header that may still come; without bound where it is negative
	heard     bool        // something of the answer has come
	idleSince time.Time
}

func newPodConn(conn net.Conn, pool *podConns, all *pools) *podConn {
	c := &podConn{Conn: conn, pool: pool, all: all, left: -1}
	c.r, c.w = bufio.NewReaderSize(c, 4<<10), bufio.NewWriterSize(conn, 4<<10)
	c.abort = func() { _ = conn.SetDeadline(time.Unix(1, 0)) }
	if sc, ok := conn.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	c.look = func(fd uintptr) bool {
		c.silent = nothingToRead(fd)
		return true
	}
	return c
}

var errHeaderTooLarge = errors.New("the header of the pod's answer is larger than 1 MiB")

// Read reads from the pod, a header within its bounds.
func (c *podConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, errHeaderTooLarge
	}
	if c.left > 0 && int64(len(b)) > c.left {
		b = b[:c.left]
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard = true
	}
	if c.left > 0 {
		c.left -= int64(n)
	}
	return n, err
}

// fresh tells whether an idle connection may carry another request: the pod has neither closed it nor said anything.
func (c *podConn) fresh(now time.Time) bool {
	if now.Sub(c.idleSince) >= idleConnTimeout {
		return false
	}
	if c.raw == nil {
		return true
	}
	c.silent = false
	return c.raw.Read(c.look) == nil && c.silent
}

// watch ends what is under way when ctx ends, until unwatch. unwatch returns false where that has happened.
func (c *podConn) watch(ctx context.Context) { c.stop = context.AfterFunc(ctx, c.abort) }

func (c *podConn) unwatch() bool { return c.stop() }

// release gives the connection back to its pool, or closes it where it cannot carry another request.
func (c *podConn) release(reusable bool) {
	if reusable && c.r.Buffered() == 0 {
		c.pool.put(c)
		return
	}
	_ = c.Close()
}

// podConns are the connections to one pod that wait for a request, and the requests that wait for one.
type podConns struct {
	mu      sync.Mutex // protects following
	idle    []*podConn // the last to become so is the first to be used
	dialing int
	waiting dialQueue
	took    time.Duration // by a dial, on average of the last
	gap     time.Duration // between connections that become free, likewise
	freed   time.Time     // when the last one did
	recheck *time.Timer   // ends the delay of a dial; nil while none is put off
	sweeper *time.Timer   // closes what is idle for too long; nil while nothing is, then all does not know this
	all     *pools
}

// dialQueue is a heap of the requests that wait for a connection, the oldest first. Thousands that are let go at once come
// here in the order in which their goroutines happen to run, which may be nearly the reverse.
type dialQueue []queuedDial

type queuedDial struct {
	since time.Time // when the request came
	turn  chan turn
}

func (h dialQueue) Len() int           { return len(h) }
func (h dialQueue) Less(i, j int) bool { return h[i].since.Before(h[j].since) }
func (h dialQueue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *dialQueue) Push(w any) { *h = append(*h, w.(queuedDial)) }

// Pop implements heap.Interface.
func (h *dialQueue) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = queuedDial{}
	*h = (*h)[:last]
	return w
}

// turn is what a request that waited may do: use the connection, or dial one if there is none, unless err says that
// somebody's dial has just failed.
type turn struct {
	conn *podConn
	err  error
}

// pools are those of all pods to which idle connections are kept.
type pools struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex // protects following
	open   map[*podConns]bool
	closed bool
}

// keep takes in that s has idle connections from now on, or no longer. It returns false when none may be kept.
func (p *pools) keep(s *podConns, idle bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if idle && !p.closed {
		p.open[s] = true
	} else {
		delete(p.open, s)
	}
	return !p.closed
}

// close ends all idle connections, and those that become so.
func (p *pools) close() {
	p.mu.Lock()
	p.closed = true
	open := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	for _, s := range open {
		s.close()
	}
}

// get returns a connection to the pod at address: an idle one (kept) if there is one and again is false, else a new one, or
// one that has become free meanwhile. The request came at since. An error is the dial's, or the cause of the end of ctx.
func (s *podConns) get(ctx context.Context, all *pools, address string, since time.Time, again bool) (c *podConn, kept bool, err error) {
	if !again {
		if c := s.takeIdle(); c != nil {
			return c, true, nil
		}
	}
	if wait := s.mayDial(since); wait != nil {
		select {
		case t := <-wait:
			if t.conn != nil || t.err != nil {
				return t.conn, t.conn != nil, t.err
			}
		case <-ctx.Done():
			s.giveUp(wait)
			return nil, false, context.Cause(ctx)
		}
	}
	began := time.Now()
	conn, err := all.dial(ctx, "tcp", address)
	s.dialed(time.Since(began), err, ctx.Err() != nil || lacksFiles(err))
	if err != nil {
		return nil, false, err
	}
	return newPodConn(conn, s, all), false, nil
}

// takeIdle returns an idle connection that is still good, or nil.
func (s *podConns) takeIdle() *podConn {
	for {
		s.mu.Lock()
		n := len(s.idle)
		if n == 0 {
			s.mu.Unlock()
			return nil
		}
		c := s.idle[n-1]
		s.idle[n-1] = nil
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		if c.fresh(time.Now()) {
			return c
		}
		_ = c.Close()
	}
}

// mayDial takes a place among those that dial, or returns where to wait for it.
func (s *podConns) mayDial(since time.Time) (wait chan turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dialing < maxDialsPerPod && len(s.waiting) == 0 {
		s.dialing++
		return nil
	}
	wait = make(chan turn, 1)
	heap.Push(&s.waiting, queuedDial{since, wait})
	s.nextLocked()
	return wait
}

// dialed gives the place of a dial that has ended to the oldest that waits. When it failed on the pod's account, and was not
// cut, nobody waits any longer: there may be better pods.
func (s *podConns) dialed(took time.Duration, err error, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	if err != nil && !cut {
		for _, w := range s.waiting {
			w.turn <- turn{err: err}
		}
		s.waiting = nil
		return
	}
	if err == nil {
		s.took = average(s.took, took)
	}
	s.nextLocked()
}

// nextLocked lets dial who waits longest, as long as there are places and it is worth its while; else it looks again soon.
func (s *podConns) nextLocked() {
	for len(s.waiting) > 0 && s.dialing < maxDialsPerPod {
		if !s.worthDialingLocked() {
			if s.recheck == nil {
				s.recheck = time.AfterFunc(min(max(s.took, minRecheck), maxRecheck), s.lookAgain)
			}
			return
		}
		s.dialLocked()
	}
}

// dialLocked lets dial who waits longest.
func (s *podConns) dialLocked() {
	s.dialing++
	s.popLocked() <- turn{}
}

// worthDialingLocked tells whether dials bring connections more often than requests that end. A burst of quick requests
// costs the pod and the gate more in dials than in answers, and waits longer for all of those than it needs.
func (s *podConns) worthDialingLocked() bool {
	return max(s.gap, time.Since(s.freed)) >= s.took/maxDialsPerPod
}

// lookAgain lets one dial whatever that is worth: else a load that lasts would never get more connections than there are, and
// what dials take now would never be found out, as after a time in which packets were lost.
func (s *podConns) lookAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recheck = nil
	if len(s.waiting) > 0 && s.dialing < maxDialsPerPod {
		s.dialLocked()
	}
	s.nextLocked()
}

// average moves old, an average of the last few, by what was seen now.
func average(old, now time.Duration) time.Duration {
	if old == 0 {
		return now
	}
	return old + (now-old)/8
}

func (s *podConns) popLocked() chan turn { return heap.Pop(&s.waiting).(queuedDial).turn }

// giveUp takes back a wait, and passes on the turn that may have come meanwhile.
func (s *podConns) giveUp(wait chan turn) {
	s.mu.Lock()
	for i, w := range s.waiting {
		if w.turn == wait {
			heap.Remove(&s.waiting, i)
			s.mu.Unlock()
			return
		}
	}
	s.mu.Unlock()
	switch t := <-wait; { // whoever took wait from the list has sent, or is about to
	case t.conn != nil:
		s.put(t.conn)
	case t.err == nil:
		s.dialed(0, context.Canceled, true)
	}
}

// put keeps c for the next request, or gives it to one that waits.
func (s *podConns) put(c *podConn) {
	c.idleSince = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	// One that comes late says no more than one that comes when a dial is over.
	s.gap, s.freed = average(s.gap, min(c.idleSince.Sub(s.freed), s.took)), c.idleSince
	switch {
	case len(s.waiting) > 0:
		s.popLocked() <- turn{conn: c}
	case len(s.idle) >= maxIdlePerPod, s.sweeper == nil && !c.all.keep(s, true):
		_ = c.Close()
	default:
		s.idle = append(s.idle, c)
		s.all = c.all
		if s.sweeper == nil {
			s.sweeper = time.AfterFunc(idleConnTimeout, s.sweep)
		}
	}
}

// sweep closes what has been idle for idleConnTimeout. One timer does for all connections of a pod: a timer for each would
// have to be set back with every request.
func (s *podConns) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	old := 0 // the longest idle are first
	for old < len(s.idle) && now.Sub(s.idle[old].idleSince) >= idleConnTimeout {
		_ = s.idle[old].Close()
		old++
	}
	s.idle = append(s.idle[:0:0], s.idle[old:]...)
	if len(s.idle) == 0 {
		s.sweeper = nil
		s.all.keep(s, false)
		return
	}
	s.sweeper.Reset(s.idle[0].idleSince.Add(idleConnTimeout).Sub(now))
}

// close ends the idle connections, after their pools were closed: no more of them will be kept.
func (s *podConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.idle {
		_ = c.Close()
	}
	s.idle = nil
	if s.sweeper != nil {
		s.sweeper.Stop()
		s.sweeper = nil
	}
}
