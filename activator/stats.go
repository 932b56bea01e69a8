package activator

import (
	"sync"
	"time"
)

// outcome is how a request ended, as the label of sluice_requests_finished_total.
type outcome int

const (
	outcomeOK            outcome = iota // the pod's answer was passed on whole, whatever its status
	outcomeClientGone                   // the client went away, or broke off its own request
	outcomeQueueFull                    // refused, because as many as allowed were held
	outcomeHoldTimeout                  // no pod was ready in time
	outcomeDialFailed                   // pods were ready, and none could be connected to
	outcomeUpstreamError                // the pod broke off after the request, or part of it, was sent
	outcomeDeleted                      // the Function was deleted while the request was held
	outcomeStopping                     // cut off, because the activator's drain had taken its time
	outcomeLoop                         // refused, because it had come through this function's gate before
	outcomeProtocol                     // refused, because the pods' protocol has no form for it
	outcomeFallback                     // the fallback's answer was passed on whole, whatever its status
	outcomePlaceholder                  // the Function's placeholder was given
	outcomeNoFiles                      // no pod could be connected to, because the activator had too many files open
	outcomes
)

var outcomeNames = [outcomes]string{
	"ok", "client_gone", "queue_full", "hold_timeout", "dial_failed", "upstream_error", "deleted", "stopping", "loop", "protocol",
	"fallback", "placeholder", "no_files",
}

// stats counts the requests of one function. The integrals over time are exact: every change of a count first adds
// what went by since the last one.
type stats struct {
	mu sync.Mutex // protects following
	counts
	last time.Time // up to here the integrals are complete
}

// counts are the numbers of one function at one moment.
type counts struct {
	started  uint64
	inFlight int64
	held     int64 // of those in flight, the ones that wait for a pod
	busy     integral
	waited   integral // of held
	finished [outcomes]uint64
}

// start counts a request at its first byte in, and returns that time.
func (s *stats) start() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.advanceLocked()
	s.started++
	s.inFlight++
	return now
}

// finish counts a request at its last byte out.
func (s *stats) finish(o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanceLocked()
	s.inFlight--
	s.finished[o]++
}

// hold counts that a request began to wait for a pod, or with -1 that it does no longer.
func (s *stats) hold(n int64) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.advanceLocked()
	s.held += n
	return now
}

// snapshot returns the counts as of now.
func (s *stats) snapshot() counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advanceLocked()
	return s.counts
}

// advanceLocked reads the clock under the lock, so that time never runs backwards between two callers.
func (s *stats) advanceLocked() time.Time {
	now := time.Now()
	d := now.Sub(s.last)
	s.last = now
	s.busy.add(s.inFlight, d)
	s.waited.add(s.held, d)
	return now
}

// integral is a sum of requests times their time. It is kept in whole nanoseconds, because a float would lose short
// requests once the sum is large; and in two parts, because 10,000 requests in flight overflow one in ten days.
type integral struct {
	sec, nsec int64
}

func (i *integral) add(n int64, d time.Duration) {
	if n == 0 {
		return
	}
	i.nsec += n * int64(d%time.Second)
	i.sec += n*int64(d/time.Second) + i.nsec/int64(time.Second)
	i.nsec %= int64(time.Second)
}

func (i integral) seconds() float64 { return float64(i.sec) + float64(i.nsec)/float64(time.Second) }
