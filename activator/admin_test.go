package activator

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
)

func exposition(t *testing.T, p *plane) string {
	t.Helper()
	var ready atomic.Bool
	w := httptest.NewRecorder()
	newAdminServer(logr.Discard(), p.proxy.metrics, &ready).Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics: got %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// functionSeries are the lines of an exposition that speak of a function.
func functionSeries(text string) []string {
	lines := []string{}
	for line := range strings.Lines(text) {
		if strings.Contains(line, `{function="`) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestExpositionOfAFunction(t *testing.T) {
	p := newPlane(t, nil)
	p.proxy.metrics.registry.MustRegister(newFunctionCollector(p.table))
	synctest.Test(t, func(t *testing.T) {
		fn := p.add(newTestFunction("hello"))
		if got := functionSeries(exposition(t, p)); len(got) != 0 {
			t.Errorf("before the first request: got %v, want no series", got)
		}
		fn.stats.start()
		fn.stats.hold(+1)
		pass(1500 * time.Millisecond)
		want := []string{
			`sluice_held_seconds_total{function="hello",namespace="default"} 1.5`,
			`sluice_request_seconds_total{function="hello",namespace="default"} 1.5`,
			`sluice_requests_held{function="hello",namespace="default"} 1`,
			`sluice_requests_in_flight{function="hello",namespace="default"} 1`,
			`sluice_requests_started_total{function="hello",namespace="default"} 1`,
		}
		if diff := cmp.Diff(want, functionSeries(exposition(t, p))); diff != "" {
			t.Errorf("one held (-want +got):\n%s", diff)
		}
		fn.stats.hold(-1)
		fn.stats.finish(outcomeHoldTimeout)
		pass(time.Hour)
		want = []string{
			`sluice_held_seconds_total{function="hello",namespace="default"} 1.5`,
			`sluice_request_seconds_total{function="hello",namespace="default"} 1.5`,
			`sluice_requests_finished_total{function="hello",namespace="default",outcome="hold_timeout"} 1`,
			`sluice_requests_held{function="hello",namespace="default"} 0`,
			`sluice_requests_in_flight{function="hello",namespace="default"} 0`,
			`sluice_requests_started_total{function="hello",namespace="default"} 1`,
		}
		if diff := cmp.Diff(want, functionSeries(exposition(t, p))); diff != "" {
			t.Errorf("finished (-want +got):\n%s", diff)
		}
		p.table.removeFunction(fn.key)
		text := exposition(t, p)
		if got := functionSeries(text); len(got) != 0 {
			t.Errorf("after deletion: got %v, want no series", got)
		}
		if !strings.Contains(text, "process_start_time_seconds ") {
			t.Error("no process_start_time_seconds, by which the adapter tells a restart")
		}
	})
}

func TestReadyz(t *testing.T) {
	var ready atomic.Bool
	h := newAdminServer(logr.Discard(), newMetrics(), &ready).Handler
	status := func(path string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	if got := status("/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz before serving: got %d, want 503", got)
	}
	if got := status("/healthz"); got != http.StatusOK {
		t.Errorf("/healthz before serving: got %d, want 200", got)
	}
	ready.Store(true)
	if got := status("/readyz"); got != http.StatusOK {
		t.Errorf("/readyz: got %d, want 200", got)
	}
}
