package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server stands in for the network where time is simulated: it answers request n, by order of arrival, after
// delay(n), and notes when each arrived.
type server struct {
	began time.Time
	delay func(n int) time.Duration

	mu       sync.Mutex // protects following
	arrivals []time.Duration
}

func newServer(delay func(n int) time.Duration) *server {
	return &server{began: time.Now(), delay: delay}
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	n := len(s.arrivals)
	s.arrivals = append(s.arrivals, time.Since(s.began))
	s.mu.Unlock()
	// Not by a timer's channel: many that are due at once and read at once kill the race detector (golang/go#78156).
	answered := make(chan struct{})
	timer := time.AfterFunc(s.delay(n), func() { close(answered) })
	defer timer.Stop()
	select {
	case <-answered:
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("ok")), Request: r}, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func instantly(int) time.Duration { return 0 }

func always(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

// every returns the times of n requests, one each interval.
func every(interval time.Duration, n int) []time.Duration {
	var times []time.Duration
	for i := range n {
		times = append(times, time.Duration(i)*interval)
	}
	return times
}

// A request leaves when it is due, to the nanosecond of the simulated clock, however slow the answers are: the server
// takes ten times as long for each as there is between two.
func TestSlowAnswersDoNotSlowTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(always(200 * time.Millisecond))
		got := run(t, Options{Steps: []Step{Constant(50, time.Second)}, transport: srv})
		if diff := cmp.Diff(every(20*time.Millisecond, 50), srv.arrivals); diff != "" {
			t.Errorf("arrivals (-want +got):\n%s", diff)
		}
		d := 200 * time.Millisecond
		want := Result{
			Planned: 50, Due: 50, Sent: 50, Statuses: map[int]int{200: 50}, Errors: map[Kind]Errors{},
			Latency: Latency{P50: d, P90: d, P99: d, Max: d}, Elapsed: 980*time.Millisecond + d,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
	})
}

// Where the generator itself is held up, here by Edit, the requests leave late, and the wait is in their latency.
func TestLatencyCountsFromTheIntendedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(instantly)
		got := run(t, Options{
			Steps: []Step{Constant(10, time.Second)}, transport: srv,
			Edit: func(n int, _ *http.Request) {
				if n == 5 {
					<-time.After(300 * time.Millisecond)
				}
			},
		})
		ms := time.Millisecond
		wantArrivals := []time.Duration{0, 100 * ms, 200 * ms, 300 * ms, 400 * ms, 800 * ms, 800 * ms, 800 * ms, 800 * ms, 900 * ms}
		if diff := cmp.Diff(wantArrivals, sorted(srv.arrivals)); diff != "" {
			t.Errorf("arrivals (-want +got):\n%s", diff)
		}
		// 300, 200 and 100 ms late; the one at 800 ms just in time.
		want := Latency{P50: 0, P90: 200 * ms, P99: 300 * ms, Max: 300 * ms}
		if diff := cmp.Diff(want, got.Latency); diff != "" {
			t.Errorf("latency (-want +got):\n%s", diff)
		}
		if got.Late != 300*ms {
			t.Errorf("late = %s, want 300ms", got.Late)
		}
	})
}

func TestSaturationIsAnErrorNotAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(always(time.Second))
		got := run(t, Options{
			Steps: []Step{Constant(10, 2*time.Second-time.Millisecond)}, MaxInFlight: 4, transport: srv,
		})
		// Four leave in each second, the other six find them under way.
		want := Result{
			Planned: 20, Due: 20, Sent: 8, Statuses: map[int]int{200: 8},
			Errors: map[Kind]Errors{Saturated: {Count: 12, Messages: []string{"4 requests were in flight"}}},
		}
		if diff := cmp.Diff(want, counts(got)); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
		if got.Failed() != 12 || len(got.Failures) != 12 {
			t.Errorf("%d failed, %d listed, want 12", got.Failed(), len(got.Failures))
		}
		wantErr := "12 of 20 requests failed (12 generator saturated); " +
			"first: request 4, due at 400ms, after 0s: generator saturated: 4 requests were in flight"
		if err := got.Err(); err == nil || err.Error() != wantErr {
			t.Errorf("Err = %v\nwant %s", err, wantErr)
		}
	})
}

func TestTimeoutIsPerRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(func(n int) time.Duration {
			if n == 1 {
				return time.Hour
			}
			return 0
		})
		got := run(t, Options{Steps: []Step{Constant(2, 2*time.Second)}, Timeout: 3 * time.Second, transport: srv})
		if diff := cmp.Diff(map[int]int{200: 3}, got.Statuses); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
		if got.Errors[TimedOut].Count != 1 || got.Latency.Max != 3*time.Second {
			t.Errorf("errors = %v, max = %s; want one timeout after 3s", got.Errors, got.Latency.Max)
		}
	})
}

// Stop lets what is under way finish; the end of the context does not.
func TestEndBeforeTheSchedule(t *testing.T) {
	tests := []struct {
		name    string
		cancel  bool
		want    Result
		wantErr error
	}{
		{
			name: "stop",
			want: Result{Planned: 100, Due: 11, Sent: 11, Statuses: map[int]int{200: 11}, Errors: map[Kind]Errors{}},
		},
		{
			name: "context", cancel: true,
			want: Result{
				Planned: 100, Due: 11, Sent: 11, Statuses: map[int]int{200: 7},
				Errors: map[Kind]Errors{Canceled: {Count: 4, Messages: []string{`Get "http://127.0.0.1/": context canceled`}}},
			},
			wantErr: context.Canceled,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(always(440 * time.Millisecond))
				stop := make(chan struct{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(1050*time.Millisecond, func() {
					if tt.cancel {
						cancel()
					} else {
						close(stop)
					}
				})
				opts := Options{Steps: []Step{Constant(10, 10*time.Second)}, transport: srv, Stop: stop}
				got, err := Run(ctx, complete(opts))
				if !errors.Is(err, tt.wantErr) {
					t.Errorf("error = %v, want %v", err, tt.wantErr)
				}
				if diff := cmp.Diff(tt.want, counts(got)); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A deadline of the caller's is not the target's timeout.
func TestCallersDeadlineIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		got, err := Run(ctx, complete(Options{
			Steps: []Step{Constant(1, time.Second)}, transport: newServer(always(time.Hour)),
		}))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v, want the deadline", err)
		}
		if got.Errors[Canceled].Count != 1 {
			t.Errorf("errors = %v, want one canceled", got.Errors)
		}
	})
}

// A load that has fallen behind has no time to wait in; it must hear of its end nonetheless.
func TestStopReachesALoadThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		got := run(t, Options{
			Steps: []Step{Constant(1000, time.Second)}, transport: newServer(instantly), Stop: stop,
			Edit: func(n int, _ *http.Request) {
				<-time.After(time.Second)
				if n == 3 {
					close(stop)
				}
			},
		})
		if got.Due != 4 {
			t.Errorf("due = %d, want 4", got.Due)
		}
	})
}

func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(t.Context(), complete(Options{
			Steps: []Step{Ramp(0, 20, 2*time.Second), Constant(20, time.Second)},
			// All but the first two hang, so that the third finds two under way from there on.
			transport:   newServer(func(n int) time.Duration { return time.Duration(n/2) * time.Hour }),
			MaxInFlight: 2, Timeout: time.Minute,
		}))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Snapshot{}, l.Snapshot()); diff != "" {
			t.Errorf("before Run (-want +got):\n%s", diff)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := l.Run(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		<-time.After(time.Second)
		synctest.Wait()
		// The area under the ramp is 5 t²: at 1 s the sixth request has just come due.
		got := l.Snapshot()
		if got.FirstFailure == nil || got.FirstFailure.N != 4 || got.FirstFailure.Kind != Saturated {
			t.Errorf("first failure = %v, want request 4 saturated", got.FirstFailure)
		}
		got.FirstFailure = nil
		want := Snapshot{Elapsed: time.Second, Rate: 10, Due: 6, Sent: 4, Answered: 2, Failed: 2, InFlight: 2}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("at 1s (-want +got):\n%s", diff)
		}
		<-time.After(2500 * time.Millisecond)
		synctest.Wait()
		if got := l.Snapshot(); got.Rate != 0 || got.InFlight != 2 {
			t.Errorf("after the steps: %+v, want rate 0 and the two that hang", got)
		}
		<-done
	})
}

func TestEveryDueRequestIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := run(t, Options{
			Steps: []Step{Ramp(5, 200, 10*time.Second)}, MaxInFlight: 30, Timeout: 300 * time.Millisecond,
			transport: newServer(func(n int) time.Duration { return time.Duration(n%7) * 60 * time.Millisecond }),
		})
		if got.Errors[Saturated].Count == 0 || got.Errors[TimedOut].Count == 0 || got.Statuses[200] == 0 {
			t.Fatalf("the load is to have answers, timeouts and saturation: %v %v", got.Statuses, got.Errors)
		}
		if got.Due != got.Sent+got.Errors[Saturated].Count {
			t.Errorf("due %d != sent %d + saturated %d", got.Due, got.Sent, got.Errors[Saturated].Count)
		}
		if got.Sent != got.Answered()+got.Errors[TimedOut].Count {
			t.Errorf("sent %d != answered %d + timed out %d", got.Sent, got.Answered(), got.Errors[TimedOut].Count)
		}
		if got.Due != 1025 {
			t.Errorf("due = %d, want 1025, the area under the ramp", got.Due)
		}
		if len(got.Failures) != MaxFailures {
			t.Errorf("%d failures listed, want %d", len(got.Failures), MaxFailures)
		}
	})
}

func TestPercentiles(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	tests := []struct {
		name string
		in   []time.Duration
		want Latency
	}{
		{name: "none", want: Latency{}},
		{name: "one", in: []time.Duration{7}, want: Latency{P50: 7, P90: 7, P99: 7, Max: 7}},
		{name: "two", in: []time.Duration{9, 1}, want: Latency{P50: 1, P90: 9, P99: 9, Max: 9}},
		{name: "hundred", in: hundred, want: Latency{P50: 50, P90: 90, P99: 99, Max: 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, percentiles(tt.in)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsAreRefused(t *testing.T) {
	steps := []Step{Constant(10, time.Second)}
	tests := []struct {
		name string
		opts Options
		want string
	}{
		{"no target", Options{Steps: steps, MaxRequests: 10}, `load: URL "": must be http://host/path`},
		{"https", Options{URL: "https://127.0.0.1", Steps: steps, MaxRequests: 10}, `load: URL "https://127.0.0.1": must be http://host/path`},
		{"no bound", Options{URL: "http://127.0.0.1", Steps: steps}, "load: MaxRequests: is required, and above 0"},
		{"no steps", Options{URL: "http://127.0.0.1", MaxRequests: 10}, "load: no steps: say how much load, and for how long"},
		{
			"too many",
			Options{URL: "http://127.0.0.1", Steps: steps, MaxRequests: 9},
			"load: steps make 10 requests, more than MaxRequests 9",
		},
		{
			"too long",
			Options{URL: "http://127.0.0.1", Steps: []Step{Constant(0, MaxLength), Constant(1, 1)}, MaxRequests: 9},
			"load: steps last longer than 1h0m0s",
		},
		{
			"no length",
			Options{URL: "http://127.0.0.1", Steps: []Step{Constant(1, 0)}, MaxRequests: 9},
			"load: step 0: length 0s: must be above 0",
		},
		{
			"negative rate",
			Options{URL: "http://127.0.0.1", Steps: []Step{Ramp(1, -1, time.Second)}, MaxRequests: 9},
			"load: step 0: rate -1: must be between 0 and 100000 requests per second",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(t.Context(), tt.opts)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error = %v\nwant %s", err, tt.want)
			}
		})
	}
}

// run runs opts to its end, which must not be an error.
func run(t *testing.T, opts Options) Result {
	t.Helper()
	got, err := Run(t.Context(), complete(opts))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func complete(opts Options) Options {
	if opts.URL == "" {
		opts.URL = "http://127.0.0.1/"
	}
	opts.MaxRequests = 100_000
	return opts
}

// counts is r without its times.
func counts(r Result) Result {
	r.Failures, r.Latency, r.Elapsed, r.Late = nil, Latency{}, 0, 0
	return r
}

func ExampleResult_Err() {
	r := Result{
		Due: 10, Statuses: map[int]int{200: 8, 503: 1}, Errors: map[Kind]Errors{Refused: {Count: 1}},
		Failures: []Failure{{N: 3, Due: time.Second, Latency: 20 * time.Millisecond, Status: 503, Message: "no pod"}},
	}
	fmt.Println(r.Err())
	// Output: 2 of 10 requests failed (1 status 503, 1 connection refused); first: request 3, due at 1s, after 20ms: status 503: no pod
}
