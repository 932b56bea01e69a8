package activator

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
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
	p.proxy.metrics.functions.table = p.table
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

// TestConditionalScrape asks as the adapter does, with the entity tag of the last full answer.
func TestConditionalScrape(t *testing.T) {
	p := newPlane(t, nil)
	p.proxy.metrics.functions.table = p.table
	var ready atomic.Bool
	handler := newAdminServer(logr.Discard(), p.proxy.metrics, &ready).Handler
	tag := ""
	ask := func(t *testing.T, when string, want int) {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want || want == http.StatusNotModified && w.Body.Len() > 0 {
			t.Errorf("%s: got %d with %d bytes, want %d", when, w.Code, w.Body.Len(), want)
		}
		if tag = w.Header().Get("ETag"); tag == "" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got header %v", when, w.Header())
		}
	}
	const full, unchanged = http.StatusOK, http.StatusNotModified
	synctest.Test(t, func(t *testing.T) {
		fn, other := p.add(newTestFunction("hello")), p.add(newTestFunction("other"))
		ask(t, "the first time", full)
		ask(t, "without any request", unchanged)
		fn.stats.start()
		ask(t, "a request has started", full)
		pass(time.Millisecond)
		ask(t, "while it is in flight", full)
		fn.stats.hold(+1)
		ask(t, "it is held", full)
		fn.stats.hold(-1)
		fn.stats.finish(outcomeOK)
		ask(t, "it has ended", full)
		pass(time.Hour)
		ask(t, "an hour of nothing", unchanged)
		other.stats.start()
		other.stats.finish(outcomeOK)
		ask(t, "a request to another function came and went", full)
		ask(t, "nothing more", unchanged)
		p.table.removeFunction(fn.key)
		ask(t, "a function is gone", full)
		ask(t, "and stays away", unchanged)
		p.table.removeFunction(other.key)
		ask(t, "the last one is gone", full)
	})
	last := tag
	handler = newAdminServer(logr.Discard(), newMetrics(), &ready).Handler
	ask(t, "the process was started again", full)
	if tag == last {
		t.Errorf("two processes have the tag %s", tag)
	}
	tag = ""
	ask(t, "without a tag", full)
}

// TestFormats wants the same series in every format, and the families of an exposition in the order of their names, each
// once.
func TestFormats(t *testing.T) {
	p := newPlane(t, nil)
	p.proxy.metrics.functions.table = p.table
	for _, name := range []string{"b", "a"} {
		fn := p.add(newTestFunction(name))
		fn.stats.start()
		fn.stats.finish(outcomeOK)
		fn.stats.start()
		fn.stats.finish(outcomeClientGone)
	}
	families := func(format expfmt.Format) (names []string, series int) {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept", string(format))
		w := httptest.NewRecorder()
		var ready atomic.Bool
		newAdminServer(logr.Discard(), p.proxy.metrics, &ready).Handler.ServeHTTP(w, r)
		decoder := expfmt.NewDecoder(w.Body, expfmt.ResponseFormat(w.Header()))
		for {
			var family dto.MetricFamily
			if err := decoder.Decode(&family); errors.Is(err, io.EOF) {
				return names, series
			} else if err != nil {
				t.Fatalf("%s: %v", format, err)
			}
			name := family.GetName()
			if names = append(names, name); strings.HasPrefix(name, "sluice_request") || strings.HasPrefix(name, "sluice_held") {
				series += len(family.GetMetric())
			}
		}
	}
	names, series := families(expfmt.NewFormat(expfmt.TypeProtoDelim))
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) || series != 2*(5+2) {
		t.Errorf("protobuf: %d series of functions in families %v", series, names)
	}
	withoutTotal := func(names []string) []string { // OpenMetrics has it in the samples only
		for i := range names {
			names[i] = strings.TrimSuffix(names[i], "_total")
		}
		return slices.Sorted(slices.Values(names))
	}
	names = withoutTotal(names)
	for _, format := range []expfmt.Format{expfmt.NewFormat(expfmt.TypeTextPlain), expfmt.FmtOpenMetrics_1_0_0} {
		others, n := families(format)
		if diff := cmp.Diff(names, withoutTotal(others)); diff != "" || n != series {
			t.Errorf("%s: %d series, want %d; families -protobuf +this:\n%s", format, n, series, diff)
		}
	}
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
