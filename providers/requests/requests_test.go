package requests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

const exposition = `# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7000000005e+09
# TYPE sluice_requests_started_total counter
sluice_requests_started_total{function="hello",namespace="default"} 12
sluice_requests_started_total{namespace="other",function="hello"} 3
# TYPE sluice_requests_in_flight gauge
sluice_requests_in_flight{function="hello",namespace="default"} 2
# TYPE sluice_requests_held gauge
sluice_requests_held{function="hello",namespace="default"} 1
# TYPE sluice_request_seconds_total counter
sluice_request_seconds_total{function="hello",namespace="default"} 34.5
# TYPE sluice_held_seconds_total counter
sluice_held_seconds_total{function="hello",namespace="default"} 6.25
# TYPE go_gc_duration_seconds summary
go_gc_duration_seconds{quantile="0"} NaN
`

const start = "process_start_time_seconds 1700000000.5\n"

func TestDecodeActivator(t *testing.T) {
	began := time.Unix(1700000000, 5e8)
	tests := []struct {
		name    string
		body    string
		want    *providers.Measurement
		invalid string // part of the error
	}{
		{
			name: "all families, others passed over",
			body: exposition,
			want: &providers.Measurement{Start: began, Functions: map[types.NamespacedName]providers.Reading{
				hello:                               {Started: 12, InFlight: 2, BusySeconds: 34.5, HeldSeconds: 6.25},
				{Namespace: "other", Name: "hello"}: {Started: 3},
			}},
		},
		{
			name: "no function yet",
			body: start,
			want: &providers.Measurement{Start: began, Functions: map[types.NamespacedName]providers.Reading{}},
		},
		{name: "empty: something else answers at the address", body: "", invalid: "not an activator"},
		{name: "no labels", body: start + "sluice_requests_started_total 1\n", invalid: "without labels"},
		{name: "cut off", body: start + `sluice_requests_started_total{namespace="default",function="hello"} 1`, invalid: "cut off"},
		{name: "NaN", body: start + "sluice_requests_in_flight{namespace=\"default\",function=\"hello\"} NaN\n", invalid: "NaN"},
		{name: "negative", body: start + "sluice_requests_in_flight{namespace=\"default\",function=\"hello\"} -1\n", invalid: "-1"},
		{name: "infinite", body: start + "sluice_requests_in_flight{namespace=\"default\",function=\"hello\"} +Inf\n", invalid: "infinite"},
		{name: "no number", body: start + "sluice_requests_in_flight{namespace=\"default\",function=\"hello\"} x\n", invalid: "x"},
		{name: "two starts", body: start + start, invalid: "not one time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeActivator(strings.NewReader(tt.body))
			if tt.invalid != "" {
				if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), tt.invalid) {
					t.Fatalf("error = %v, want an invalid answer with %q", err, tt.invalid)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

func TestDecodePod(t *testing.T) {
	target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: providers.Scrape{Requests: "function_calls_total", InFlight: "calls_now"}}
	tests := []struct {
		name string
		body string
		t    providers.Target
		want providers.Reading
	}{
		{
			name: "summed over all labels",
			body: "# TYPE function_calls_total counter\nfunction_calls_total{method=\"GET\",code=\"200\"} 5\n" +
				"function_calls_total{method=\"POST\"} 7 1700000000000\nfunction_calls_total 1\ncalls_now 2\ncalls_now{x=\"\\\"}\"} 1\n",
			t:    target,
			want: providers.Reading{Started: 13, InFlight: 3},
		},
		{
			name: "counter not there yet, names that only begin alike",
			body: "function_calls_total_created 1.7e9\nfunction_calls 4\n",
			t:    target,
		},
		{name: "nothing exposed", body: "", t: target},
		{
			name: "count of a histogram",
			body: "# TYPE request_seconds histogram\nrequest_seconds_bucket{le=\"1\"} 1\nrequest_seconds_bucket{le=\"+Inf\"} 4\n" +
				"request_seconds_sum 9\nrequest_seconds_count 4\n",
			t:    providers.Target{Kind: providers.Pod, Function: hello, Scrape: providers.Scrape{Requests: "request_seconds_count"}},
			want: providers.Reading{Started: 4},
		},
		{
			name: "what else is broken does not matter",
			body: "nonsense here\nfunction_calls_total 3\n",
			t:    target,
			want: providers.Reading{Started: 3},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodePod(strings.NewReader(tt.body), tt.t)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[types.NamespacedName]providers.Reading{hello: tt.want}, got.Functions); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

// FuzzDecode checks what the Store relies on: an answer is refused, or all of it is finite and not negative. What is
// added by lines of other series changes nothing.
func FuzzDecode(f *testing.F) {
	f.Add(exposition)
	f.Add("function_calls_total 1e308\nfunction_calls_total 1e308\n")
	f.Add("function_calls_total{a=\"\\\\\\n\"} 1 2\n{\"function_calls_total\"} 3\n")
	f.Add("function_calls_total -0\nprocess_start_time_seconds 1e300\n")
	f.Fuzz(func(t *testing.T, body string) {
		target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: providers.Scrape{Requests: "function_calls_total", InFlight: "calls"}}
		check := func(m *providers.Measurement, err error) {
			t.Helper()
			if err != nil {
				if !errors.Is(err, providers.ErrInvalid) {
					t.Errorf("error %v is not that of an invalid answer", err)
				}
				return
			}
			for name, r := range m.Functions {
				for _, v := range []float64{r.Started, r.InFlight, r.BusySeconds, r.HeldSeconds} {
					if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
						t.Errorf("%s: %+v", name, r)
					}
				}
			}
		}
		check(decodeActivator(strings.NewReader(body)))
		m, err := decodePod(strings.NewReader(body), target)
		check(m, err)
		more, errMore := decodePod(strings.NewReader("# comment\nother_total{x=\"y\"} 7\n"+body), target)
		if (err == nil) != (errMore == nil) {
			t.Fatalf("with another series before it: %v, without: %v", errMore, err)
		}
		if diff := cmp.Diff(m, more); diff != "" {
			t.Error("another series changes the reading, -without +with:\n" + diff)
		}
	})
}

func TestMeasure(t *testing.T) {
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_, _ = io.WriteString(w, body)
		}
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    *providers.Reading
		is      error
		says    string
	}{
		{name: "counts", handler: text("calls_total 5\n"), want: &providers.Reading{Started: 5}},
		{
			name: "hangs before the answer",
			handler: func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
			},
			is: context.DeadlineExceeded,
		},
		{
			name: "hangs inside the answer",
			handler: func(w http.ResponseWriter, r *http.Request) {
				text("calls_total 5\n")(w, r)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			},
			is: context.DeadlineExceeded,
		},
		{
			name: "floods",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("calls_total 5\n", 1000)); err != nil {
						return
					}
				}
			},
			is: providers.ErrInvalid, says: "too large",
		},
		{
			name: "floods in one line",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("x", 10000)); err != nil {
						return
					}
				}
			},
			is: providers.ErrInvalid, says: "too long",
		},
		{
			name: "invokes the function instead",
			handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				_, _ = io.WriteString(w, "calls_total 5\n")
			},
			is: providers.ErrInvalid, says: "content type",
		},
		{
			name:    "has no metrics",
			handler: http.NotFound,
			is:      providers.ErrInvalid, says: "404",
		},
		{
			name: "sends elsewhere",
			handler: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
			},
			is: providers.ErrInvalid, says: "302",
		},
		{
			name: "breaks off",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				text("calls_total 5\n")(w, r)
			},
			is: io.ErrUnexpectedEOF,
		},
		{name: "lies", handler: text("calls_total -5\n"), is: providers.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			scraper := NewScraper()
			defer scraper.Close()
			deadline := 10 * time.Second
			if errors.Is(tt.is, context.DeadlineExceeded) {
				deadline = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			m, err := scraper.Measure(ctx, podTarget(server))
			if !errors.Is(err, tt.is) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error = %v, want %v that says %q", err, tt.is, tt.says)
			}
			if tt.want != nil && m.Functions[hello] != *tt.want {
				t.Errorf("reading = %+v, want %+v", m.Functions[hello], *tt.want)
			}
		})
	}
}

func podTarget(server *httptest.Server) providers.Target {
	return providers.Target{
		Kind: providers.Pod, Function: hello, Address: strings.TrimPrefix(server.URL, "http://"),
		Scrape: providers.Scrape{Path: "/metrics", Requests: "calls_total"},
	}
}

func TestMeasureRefused(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	target := podTarget(server)
	server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	if _, err := scraper.Measure(t.Context(), target); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error = %v, want %v", err, syscall.ECONNREFUSED)
	}
}

func TestConnectionIsKept(t *testing.T) {
	addresses := map[string]bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addresses[r.RemoteAddr] = true
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "calls_total 5\n")
	}))
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	for range 5 {
		if _, err := scraper.Measure(t.Context(), podTarget(server)); err != nil {
			t.Fatal(err)
		}
	}
	if len(addresses) != 1 {
		t.Errorf("5 measurements took %d connections", len(addresses))
	}
}

func BenchmarkDecodeActivator10kFunctions(b *testing.B) {
	var body strings.Builder
	body.WriteString(start)
	for _, family := range []string{
		"sluice_requests_started_total", "sluice_requests_in_flight", "sluice_requests_held",
		"sluice_request_seconds_total", "sluice_held_seconds_total",
	} {
		for i := range 10_000 {
			fmt.Fprintf(&body, "%s{function=\"function-%05d\",namespace=\"default\"} %d\n", family, i, i)
		}
	}
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeActivator(strings.NewReader(body.String())); err != nil {
			b.Fatal(err)
		}
	}
}
