package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Kind tells errors apart.
type Kind string

// Kinds of errors.
const (
	// Saturated: the request did not leave, because MaxInFlight requests were under way.
	Saturated Kind = "generator saturated"
	// TimedOut: the answer was not complete within Timeout.
	TimedOut Kind = "timeout"
	// Refused: nobody listens at the target.
	Refused Kind = "connection refused"
	// Cut: the connection ended before the answer was complete.
	Cut Kind = "connection cut"
	// Canceled: Run's context ended while the request was under way.
	Canceled Kind = "canceled"
	// Other is every other error.
	Other Kind = "other"
)

func kindOf(err error) Kind {
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Cut
	default:
		return Other
	}
}

// How much of what went wrong a Result keeps.
const (
	// MaxFailures bounds Result.Failures.
	MaxFailures = 100
	// MaxMessages bounds the messages of one kind of error.
	MaxMessages = 3
	// maxExcerpt bounds what is kept of the body of a failed answer, in bytes.
	maxExcerpt = 200
)

// Failure is a request that was not answered, or not with a 2xx status.
type Failure struct {
	// N is the number of the request, from 0.
	N int
	// Due is when it was to leave, from the beginning of the load.
	Due time.Duration
	// Latency is the time from then to the failure.
	Latency time.Duration
	// Status of the answer, 0 without one.
	Status int
	// Kind of the error, "" where there is a Status.
	Kind Kind
	// Message is the error, or the beginning of the answer's body.
	Message string
}

func (f Failure) String() string {
	what := string(f.Kind)
	if f.Status != 0 {
		what = fmt.Sprintf("status %d", f.Status)
	}
	return fmt.Sprintf("request %d, due at %s, after %s: %s: %s", f.N, f.Due.Round(time.Millisecond),
		f.Latency.Round(time.Millisecond), what, f.Message)
}

// Errors are the errors of one kind.
type Errors struct {
	Count int
	// Messages are the first few that differ.
	Messages []string
}

// Latency is how long requests took from the time they were to leave, whatever came of them. Requests that did not
// leave have none. Percentiles are by nearest rank over all of them: each is a latency that did occur.
type Latency struct {
	P50, P90, P99, Max time.Duration
}

// Result is what became of a load. Planned >= Due; Due = Sent + the errors of kind Saturated; Sent = the sum of Statuses
// + all other errors.
type Result struct {
	// Planned is the number of requests in the schedule.
	Planned int
	// Due is the number of those whose time came before the load was stopped.
	Due int
	// Sent is the number of requests that left.
	Sent int
	// Statuses counts the answers by their status; an answer that broke off is an error instead.
	Statuses map[int]int
	// Errors by kind.
	Errors map[Kind]Errors
	// Failures are the first MaxFailures requests that failed, in the order in which they did.
	Failures []Failure
	// Latency of the requests that left.
	Latency Latency
	// Late is the most by which a request left after its time: how far the generator itself fell behind. It is part of
	// the latencies.
	Late time.Duration
	// Resent counts requests that net/http sent a second time, by itself, because a kept connection was found closed
	// before anything of an answer had come. Only a request that may be repeated is: one whose method is safe, or of
	// which no byte had been written.
	Resent int
	// Elapsed is the time from the beginning to the last answer.
	Elapsed time.Duration
}

// Answered is the number of requests with a complete answer, of any status.
func (r Result) Answered() int {
	n := 0
	for _, count := range r.Statuses {
		n += count
	}
	return n
}

// Failed is the number of requests that came due and have no complete answer with a 2xx status.
func (r Result) Failed() int {
	n := 0
	for status, count := range r.Statuses {
		if !succeeded(status) {
			n += count
		}
	}
	for _, e := range r.Errors {
		n += e.Count
	}
	return n
}

func succeeded(status int) bool { return status >= 200 && status < 300 }

// Err is nil when no request failed, and otherwise says how many did, of what, with the first failure in full.
func (r Result) Err() error {
	failed := r.Failed()
	if failed == 0 {
		return nil
	}
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		if !succeeded(status) {
			parts = append(parts, fmt.Sprintf("%d status %d", r.Statuses[status], status))
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		parts = append(parts, fmt.Sprintf("%d %s", r.Errors[kind].Count, kind))
	}
	return fmt.Errorf("%d of %d requests failed (%s); first: %s", failed, r.Due, strings.Join(parts, ", "), r.Failures[0])
}

// percentiles sorts latencies in place.
func percentiles(latencies []time.Duration) Latency {
	if len(latencies) == 0 {
		return Latency{}
	}
	slices.Sort(latencies)
	rank := func(p float64) time.Duration {
		return latencies[int(math.Ceil(p*float64(len(latencies))))-1]
	}
	return Latency{P50: rank(0.50), P90: rank(0.90), P99: rank(0.99), Max: latencies[len(latencies)-1]}
}
