package activator

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"k8s.io/client-go/rest"
)

// exporterFunc is an exporter.
type exporterFunc func(ctx context.Context, n int) error

func (f exporterFunc) ExportSpans(ctx context.Context, s []sdktrace.ReadOnlySpan) error {
	return f(ctx, len(s))
}
func (exporterFunc) Shutdown(context.Context) error { return nil }

func count(t *testing.T, c *prometheus.CounterVec, outcome string) int {
	t.Helper()
	var m dto.Metric
	if err := c.WithLabelValues(outcome).Write(&m); err != nil {
		t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}

func endSpans(q *spanQueue, n int) {
	s := tracetest.SpanStub{}.Snapshot()
	for range n {
		q.OnEnd(s)
	}
}

func TestSpansAreExportedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		began := time.Now()
		var at []time.Duration
		counted := newMetrics().spans
		q := newSpanQueue(t.Context(), logr.Discard(), exporterFunc(func(_ context.Context, n int) error {
			got, at = append(got, n), append(at, time.Since(began))
			return nil
		}), counted, 5*time.Second)
		want := func(batches []int, times ...time.Duration) {
			t.Helper()
			synctest.Wait()
			if len(got) != len(batches) || len(at) != len(times) {
				t.Fatalf("got %v at %v, want %v at %v", got, at, batches, times)
			}
			for i := range batches {
				if got[i] != batches[i] || at[i] != times[i] {
					t.Errorf("got %v at %v, want %v at %v", got, at, batches, times)
				}
			}
		}
		endSpans(q, 3)
		pass(2 * time.Second)
		endSpans(q, 4)
		pass(4 * time.Second) // 5 s after the first
		want([]int{7}, 5*time.Second)
		pass(time.Hour)
		want([]int{7}, 5*time.Second)
		endSpans(q, maxSpanBatch+1)
		want([]int{7, maxSpanBatch}, 5*time.Second, time.Hour+6*time.Second)
		if err := q.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		want([]int{7, maxSpanBatch, 1}, 5*time.Second, time.Hour+6*time.Second, time.Hour+6*time.Second)
		if n := count(t, counted, spanExported); n != 8+maxSpanBatch {
			t.Errorf("%d exported", n)
		}
	})
}

// The receiver hangs: nobody waits for it, what is too much is dropped, and the end comes when it has to.
func TestSpansThatTheReceiverDoesNotTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := newMetrics().spans
		var logged atomic.Int64
		log := funcr.New(func(string, string) { logged.Add(1) }, funcr.Options{})
		var hangs atomic.Bool
		hangs.Store(true)
		q := newSpanQueue(t.Context(), log, exporterFunc(func(ctx context.Context, _ int) error {
			if !hangs.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}), counted, time.Second)
		endSpans(q, maxSpanBatch)
		synctest.Wait() // under way
		began := time.Now()
		endSpans(q, maxQueuedSpans+10)
		if time.Since(began) != 0 {
			t.Error("a request waited")
		}
		if n := count(t, counted, spanDropped); n != 10 {
			t.Errorf("%d dropped, want 10", n)
		}
		pass(2*exportTimeout + time.Second)
		if n := count(t, counted, spanFailed); n != 2*maxSpanBatch {
			t.Errorf("%d failed, want the two batches whose time was over", n)
		}
		if n := logged.Load(); n != 1 {
			t.Errorf("%d lines in the log, want one", n)
		}
		hangs.Store(false)
		pass(exportTimeout + time.Second)
		if n := logged.Load(); n != 2 {
			t.Errorf("%d lines in the log, want one more when it works again", n)
		}
		hangs.Store(true)
		endSpans(q, 3*maxSpanBatch)
		ctx, cancel := context.WithTimeout(t.Context(), hardStop)
		defer cancel()
		began = time.Now()
		if err := q.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != hardStop {
			t.Errorf("shutdown: %v after %s, want it to end with its time", err, time.Since(began))
		}
		total := count(t, counted, spanFailed) + count(t, counted, spanExported) + count(t, counted, spanDropped)
		if want := maxSpanBatch + maxQueuedSpans + 10 + 3*maxSpanBatch; total != want {
			t.Errorf("%d spans counted, want all %d", total, want)
		}
	})
}

func TestOTLPClient(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(n int64, w http.ResponseWriter) bool
		posts  int64
		fails  string
	}{
		{"taken", func(int64, http.ResponseWriter) bool { return false }, 1, ""},
		{"taken later", func(n int64, w http.ResponseWriter) bool {
			if n < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return n < 3
		}, 3, ""},
		{"refused", func(_ int64, w http.ResponseWriter) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, 1, "401 Unauthorized"},
		{"sent elsewhere", func(_ int64, w http.ResponseWriter) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, 1, "307 Temporary Redirect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rc := newReceiver(t)
			var posts atomic.Int64
			rc.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") != "Bearer token" {
					t.Errorf("headers %v", r.Header)
				}
				return tt.answer(posts.Add(1), w)
			}
			c := newOTLPClient(rc.URL+"/v1/traces", map[string]string{"Authorization": "Bearer token"}, nil)
			defer c.http.CloseIdleConnections()
			err := c.UploadTraces(t.Context(), []*tracepb.ResourceSpans{{}})
			if (err == nil) != (tt.fails == "") || (err != nil && !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("got %v, want %q", err, tt.fails)
			}
			if got := posts.Load(); got != tt.posts {
				t.Errorf("%d posts, want %d", got, tt.posts)
			}
		})
	}
}

// The receiver is not there for the length of an activator's life. No request is the worse for it.
func TestRequestsDoNotNeedTheReceiver(t *testing.T) {
	rc := newReceiver(t)
	rc.Close()
	p, fn, url := warm(t, newPod(t, echo))
	done := rc.trace(p, 1)
	for range 10 {
		if got := get(t, url); got.status != http.StatusOK {
			t.Errorf("got %d %q", got.status, got.body)
		}
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 10})
	done()
	if got := exposition(t, p); !strings.Contains(got, `sluice_trace_spans_total{outcome="failed"} 20`) {
		t.Error("the spans that were lost are not counted")
	}
}

// What was traced last is exported before an activator ends, and a receiver that hangs does not keep it from that.
func TestDrainExportsSpans(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		noLeaks(t)
		rc := newReceiver(t)
		release := make(chan struct{})
		if hangs {
			rc.answer = func(http.ResponseWriter, *http.Request) bool {
				<-release
				return true
			}
		}
		a := newAPI(t)
		port := freePort(t)
		a.set(newTestFunction("hello", gatePort(port)))
		a.set(newSlice("hello", 0, newPod(t, echo), true))
		r := start(t, a, func(o *Options) { o.Traces = &TraceOptions{Endpoint: rc.URL + "/v1/traces", Ratio: 1} })
		eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
		if got := get(t, portURL(port)); got.status != http.StatusOK {
			t.Errorf("got %d", got.status)
		}
		began := time.Now()
		r.stop()
		r.wait(t)
		if took := time.Since(began); took > hardStop+3*time.Second {
			t.Errorf("receiver hangs %t: the activator took %s to end", hangs, took)
		}
		close(release)
		rc.mu.Lock()
		if got := len(rc.spans); (got == 2) == hangs {
			t.Errorf("receiver hangs %t: it has %d spans", hangs, got)
		}
		rc.mu.Unlock()
		rc.Close()
	}
}

func TestTraceOptions(t *testing.T) {
	for _, tt := range []struct {
		o    TraceOptions
		want string
	}{
		{TraceOptions{}, "Traces.Endpoint"},
		{TraceOptions{Endpoint: "collector:4318"}, "Traces.Endpoint"},
		{TraceOptions{Endpoint: "http://collector:4318", Ratio: 2}, "Traces.Ratio"},
		{TraceOptions{Endpoint: "http://collector:4318", Ratio: -1}, "Traces.Ratio"},
	} {
		o := Options{RestConfig: &rest.Config{}, Traces: &tt.o}
		if err := o.withDefaults().validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want an error that names %s", tt.o, err, tt.want)
		}
	}
}
