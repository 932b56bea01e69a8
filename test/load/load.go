package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// Load is one load: made by New, run once by Run, watched meanwhile by Snapshot.
type Load struct {
	opts     Options
	planned  int
	client   *http.Client
	requests sync.WaitGroup

	mu        sync.Mutex // protects following
	began     time.Time  // zero before Run
	ended     bool       // no further request will leave
	inFlight  int
	result    Result
	latencies []time.Duration
}

// New checks opts and the target, and returns a load that has not begun. An error is a refusal: of options that are
// not complete, of more requests than MaxRequests, or of a target that is not allowed (ErrForbidden).
func New(ctx context.Context, opts Options) (*Load, error) {
	opts, planned, err := opts.complete()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if opts.transport == nil {
		if err := checkTarget(ctx, opts.URL, opts.Allow); err != nil {
			return nil, fmt.Errorf("load: %w", err)
		}
		maxIdle := opts.MaxInFlight
		if opts.FreshConnections {
			maxIdle = 0
		}
		opts.transport = NewTransport(opts.Allow, maxIdle)
	}
	return &Load{
		opts:    opts,
		planned: planned,
		client: &http.Client{
			Transport: opts.transport,
			// A redirect is an answer like any other.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		result: Result{Planned: planned, Statuses: map[int]int{}, Errors: map[Kind]Errors{}},
	}, nil
}

// Run makes a load and runs it; see New and Load.Run.
func Run(ctx context.Context, opts Options) (Result, error) {
	l, err := New(ctx, opts)
	if err != nil {
		return Result{}, err
	}
	return l.Run(ctx)
}

// Run sends the requests and returns once the last of them has ended. Requests that fail are part of the Result; see
// Result.Err. The error is the cause of ctx's end, if it has ended: the Result then holds what came of the load so far,
// with the requests that were under way as Canceled. Run is called once.
func (l *Load) Run(ctx context.Context) (Result, error) {
	l.mu.Lock()
	l.began = time.Now()
	began := l.began
	l.latencies = make([]time.Duration, 0, min(l.planned, 1<<20))
	l.mu.Unlock()

	timer := time.NewTimer(0)
	defer timer.Stop()
	times := schedule{steps: l.opts.Steps}
	for n := 0; ; n++ {
		due, ok := times.next()
		if !ok || !l.wait(ctx, timer, began.Add(due)) {
			break
		}
		l.start(ctx, n, began.Add(due))
	}
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.requests.Wait()
	l.client.CloseIdleConnections()

	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Elapsed = time.Since(began)
	l.result.Latency = percentiles(l.latencies)
	return l.result, context.Cause(ctx)
}

// wait returns true when due has come, and false when the load ends first.
func (l *Load) wait(ctx context.Context, timer *time.Timer, due time.Time) bool {
	// A load that has fallen behind must still hear of its end: a due time in the past and a closed channel are both
	// ready below, and select would choose either.
	select {
	case <-ctx.Done():
		return false
	case <-l.opts.Stop:
		return false
	default:
	}
	d := time.Until(due)
	if d <= 0 {
		return true
	}
	timer.Reset(d)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-l.opts.Stop:
		return false
	}
}

// start lets request n leave, or counts why it cannot. Only Run calls it, so that between the look at inFlight and its
// increase it can only fall.
func (l *Load) start(ctx context.Context, n int, due time.Time) {
	request, err := l.request(ctx, n)

	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Due++
	if l.inFlight >= l.opts.MaxInFlight {
		l.failLocked(n, due, outcome{kind: Saturated, message: fmt.Sprintf("%d requests were in flight", l.inFlight)})
		return
	}
	l.result.Sent++
	if err != nil {
		l.finishLocked(n, due, outcome{kind: Other, message: err.Error()})
		return
	}
	l.inFlight++
	l.result.Late = max(l.result.Late, time.Since(due))
	l.requests.Go(func() {
		o := l.send(ctx, request)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight--
		l.finishLocked(n, due, o)
	})
}

func (l *Load) request(ctx context.Context, n int) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, l.opts.Method, l.opts.URL, bytes.NewReader(l.opts.Body))
	if err != nil {
		return nil, err
	}
	if l.opts.Header != nil {
		r.Header = l.opts.Header.Clone()
	}
	r.Host = l.opts.Host
	if l.opts.Edit != nil {
		l.opts.Edit(n, r)
	}
	return r, nil
}

// outcome is what came of a request: a status, or a kind of error.
type outcome struct {
	status  int
	kind    Kind
	message string
}

// send returns once the last byte of the answer is in, or there is to be none.
func (l *Load) send(ctx context.Context, r *http.Request) outcome {
	bounded, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	connections := 0 // GotConn is called before Do returns, by one goroutine at a time
	bounded = httptrace.WithClientTrace(bounded, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connections++ },
	})
	response, err := l.client.Do(r.WithContext(bounded))
	if connections > 1 {
		l.mu.Lock()
		l.result.Resent++
		l.mu.Unlock()
	}
	var o outcome
	if err == nil {
		o, err = read(response)
	}
	if err != nil {
		o = outcome{kind: kindOf(err), message: err.Error()}
		if ctx.Err() != nil {
			o.kind = Canceled // and not TimedOut, though ctx may have had a deadline
		}
	}
	return o
}

// read takes the answer to its last byte. It keeps the beginning of one that is not a success.
func read(response *http.Response) (outcome, error) {
	defer response.Body.Close()
	o := outcome{status: response.StatusCode}
	if !succeeded(o.status) {
		head, err := io.ReadAll(io.LimitReader(response.Body, maxExcerpt))
		if err != nil {
			return o, fmt.Errorf("answer with status %d broke off: %w", o.status, err)
		}
		o.message = string(bytes.TrimSpace(head))
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return o, fmt.Errorf("answer with status %d broke off: %w", o.status, err)
	}
	return o, nil
}

func (l *Load) finishLocked(n int, due time.Time, o outcome) {
	l.latencies = append(l.latencies, time.Since(due))
	if o.kind == "" {
		l.result.Statuses[o.status]++
	}
	if o.kind != "" || !succeeded(o.status) {
		l.failLocked(n, due, o)
	}
}

func (l *Load) failLocked(n int, due time.Time, o outcome) {
	if o.kind != "" {
		e := l.result.Errors[o.kind]
		e.Count++
		if len(e.Messages) < MaxMessages && !slices.Contains(e.Messages, o.message) {
			e.Messages = append(e.Messages, o.message)
		}
		l.result.Errors[o.kind] = e
	}
	if len(l.result.Failures) < MaxFailures {
		l.result.Failures = append(l.result.Failures, Failure{
			N: n, Due: due.Sub(l.began), Latency: time.Since(due), Status: o.status, Kind: o.kind, Message: o.message,
		})
	}
}

// Snapshot is how far a load has come.
type Snapshot struct {
	// Elapsed since the beginning, 0 before it.
	Elapsed time.Duration
	// Rate that the schedule asks for now, in requests per second; 0 when no further request will leave.
	Rate float64
	// Due, Sent and Answered are as in Result, so far; Failed is as Result.Failed.
	Due, Sent, Answered, Failed int
	// InFlight is the number of requests under way.
	InFlight int
	// FirstFailure is nil while there is none.
	FirstFailure *Failure
}

// Snapshot may be called at any time, from any goroutine.
func (l *Load) Snapshot() Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Snapshot{
		Due: l.result.Due, Sent: l.result.Sent, InFlight: l.inFlight,
		Answered: l.result.Answered(), Failed: l.result.Failed(),
	}
	if !l.began.IsZero() {
		s.Elapsed = time.Since(l.began)
		if !l.ended {
			s.Rate = rateAt(l.opts.Steps, s.Elapsed)
		}
	}
	if len(l.result.Failures) > 0 {
		first := l.result.Failures[0]
		s.FirstFailure = &first
	}
	return s
}
