package requests

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// captured is what a capture.json says; test/runtimes makes it, and says what its fields mean.
type captured struct {
	Runtime, Origin, Path string
	Preset                v1alpha1.PodMetricsPreset
	Counts                struct {
		AtStart, Gauge, Durations, FailedUntimed, LateDurations, Probes, Scrapes, Absent, Nothing bool
	}
	Answers []capturedAnswer
}

type capturedAnswer struct {
	File, ContentType, ContentEncoding string
	Packed                             bool
	Sent                               struct {
		Started, Ended, Failed, Probes, Scrapes, Calls int
		AtLeastSeconds, AtMostSeconds                  float64
	}
}

// TestPresets replays what real runtimes exposed after a known number of requests, in each format that they offer, and
// compares what the preset reads with what had been sent. See test/runtimes/README.md.
func TestPresets(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("testdata", "*", "capture.json"))
	if err != nil || len(names) < 10 {
		t.Fatalf("%d captures in testdata (%v): capture them anew as test/runtimes/README.md says", len(names), err)
	}
	for _, name := range names {
		c := readCapture(t, name)
		t.Run(c.Runtime, func(t *testing.T) {
			if len(c.Answers) == 0 {
				t.Fatal("no answer was captured")
			}
			for _, a := range c.Answers {
				t.Run(a.File, func(t *testing.T) { testAnswer(t, c, a, filepath.Join(filepath.Dir(name), a.File)) })
			}
		})
	}
}

func testAnswer(t *testing.T, c captured, a capturedAnswer, file string) {
	body := readBody(t, file, a.Packed)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != c.Path {
			t.Errorf("asked for %s, want %s", r.URL.Path, c.Path)
		}
		w.Header()["Content-Type"] = nil // none rather than what the server makes of the body
		if a.ContentType != "" {
			w.Header().Set("Content-Type", a.ContentType)
		}
		if a.ContentEncoding != "" {
			w.Header().Set("Content-Encoding", a.ContentEncoding)
		}
		_, _ = w.Write(body)
	}))
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()

	function := types.NamespacedName{Namespace: "default", Name: c.Runtime}
	scrape := providers.Scrape{Preset: c.Preset, Path: c.Path}
	m, err := scraper.Measure(t.Context(), providers.Target{
		Kind: providers.Pod, Function: function, Address: strings.TrimPrefix(server.URL, "http://"), Scrape: scrape,
	})
	if c.Counts.Nothing {
		if err == nil {
			t.Fatalf("read %+v from what is no exposition", m.Functions[function])
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	got, want := m.Functions[function], wanted(c, a)
	seconds := got.DurationSeconds
	least, most := a.Sent.AtLeastSeconds, a.Sent.AtMostSeconds
	if c.Counts.LateDurations && !strings.HasPrefix(a.File, "served") { // only after all was served there was time
		least, want.Durations = 0, min(got.Durations, want.Durations)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(providers.Reading{}, "DurationSeconds", "NoGauge")); diff != "" {
		t.Errorf("after %+v (-want +got):\n%s", a.Sent, diff)
	}
	if gauge := scrape.HasInFlight() && !got.NoGauge; gauge != c.Counts.Gauge && a.Sent.Started > 0 {
		t.Errorf("a gauge is read: %v, want %v", gauge, c.Counts.Gauge)
	}
	if c.Counts.Probes || c.Counts.Scrapes {
		most += 1 // they take their time too
	}
	if c.Counts.Durations && (seconds < 0.95*least || seconds > 1.05*most) { // Envoy's sums are those of its buckets
		t.Errorf("%v s of durations, want between %v and %v", seconds, least, most)
	}
}

// wanted is what the runtime must be read to say, given what had been sent to it and how it counts.
func wanted(c captured, a capturedAnswer) providers.Reading {
	foreign := 0
	if c.Counts.Probes {
		foreign += a.Sent.Probes
	}
	if c.Counts.Scrapes {
		foreign += a.Sent.Scrapes
	}
	r := providers.Reading{Started: float64(a.Sent.Ended + foreign)}
	if c.Counts.AtStart {
		r.Started = float64(a.Sent.Started + foreign)
	}
	if c.Counts.Gauge {
		r.InFlight = float64(a.Sent.Started - a.Sent.Ended)
	}
	if c.Counts.Durations {
		r.Durations = float64(a.Sent.Ended + foreign)
	}
	if c.Counts.FailedUntimed {
		r.Durations -= float64(a.Sent.Failed)
	}
	r.Absent = c.Counts.Absent && a.Sent.Started == 0
	return r
}

func readCapture(t *testing.T, name string) captured {
	t.Helper()
	body, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var c captured
	if err := json.Unmarshal(body, &c); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

func readBody(t *testing.T, name string, packed bool) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var r io.Reader = f
	if packed {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
