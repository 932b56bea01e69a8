package requests

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/sluice-dev/sluice/providers"
)

// fuzzScrapes are what the fuzzed answers are read for.
var fuzzScrapes = []providers.Scrape{
	{Path: "/metrics", Requests: "function_calls_total", InFlight: "calls", Duration: "function_duration_seconds"},
	{Path: "/metrics", Preset: "Generic"},
	{Path: "/metrics", Preset: "OpenTelemetry"},
	{Path: "/stats/prometheus", Preset: "Istio"},
}

// addSeeds adds what real runtimes expose, and some of what is rare.
func addSeeds(f *testing.F) {
	f.Helper()
	if err := filepath.WalkDir("testdata", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path, filepath.Join("testdata", "fuzz")) {
			return err
		}
		body, err := os.ReadFile(path)
		if z, errZ := gzip.NewReader(bytes.NewReader(body)); err == nil && errZ == nil && strings.HasSuffix(path, ".packed") {
			body, err = io.ReadAll(z)
		}
		if err != nil {
			return err
		}
		// A seed of many kilobytes takes the fuzzer more time to vary than it teaches.
		f.Add(body[:bytes.LastIndexByte(body[:min(len(body), 8<<10)], '\n')+1])
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	for _, body := range []string{
		exposition, exposition + "# EOF\n", expositionOfPod(20),
		"function_calls_total 1e308\nfunction_calls_total{a=\"b\"} 1e308\n",
		"function_calls_total{a=\"\\\\\\n\"} 1 2\n{\"function_calls_total\"} 3\n",
		"function_calls_total -0\nprocess_start_time_seconds 1e300\n",
		"# TYPE function_calls counter\nfunction_calls_total{a=\"b\"} 5 1.5 # {c=\"d\"} 1 1.5\nfunction_calls_created{a=\"b\"} 1.7e9\n# EOF\n",
		"function_duration_seconds_sum NaN\nfunction_duration_seconds_count 0\n",
	} {
		f.Add([]byte(body))
	}
}

// checkFinite checks what the Store relies on: an answer is refused as invalid, or all of it is finite and not
// negative.
func checkFinite(t *testing.T, m *providers.Measurement, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("error %v is not that of an invalid answer", err)
		}
		return
	}
	for name, r := range m.Functions {
		for _, v := range []float64{r.Started, r.InFlight, r.BusySeconds, r.HeldSeconds, r.DurationSeconds, r.Durations} {
			if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
				t.Errorf("%s: %+v", name, r)
			}
		}
	}
}

// collected is figures that keep all they are given.
type collected struct {
	wanted []string
	taken  map[string][]float64
}

func (c *collected) names() []string { return c.wanted }
func (c *collected) mention(int)     {}
func (c *collected) take(i int, labels []label, v float64) error {
	pairs := make([]string, 0, len(labels))
	for _, l := range labels {
		pairs = append(pairs, string(l.name)+"\xff"+string(l.value))
	}
	slices.Sort(pairs)
	key := c.wanted[i] + "\xff" + strings.Join(pairs, "\xff")
	c.taken[key] = append(c.taken[key], v)
	return nil
}

// reference reads the same with expfmt alone. Two histograms are read by their sum and count.
func reference(body []byte, f expfmt.Format, wanted []string) (map[string][]float64, error) {
	c := &collected{wanted, map[string][]float64{}}
	decoder := expfmt.NewDecoder(bytes.NewReader(body), f)
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); errors.Is(err, io.EOF) {
			return c.taken, nil
		} else if err != nil {
			return nil, err
		}
		for i, name := range wanted {
			for _, suffix := range []string{"", "_sum", "_count", "_total"} {
				if name != family.GetName()+suffix {
					continue
				}
				for _, m := range family.GetMetric() {
					if v, ok := familyValue(family.GetType(), m, suffix); ok {
						var labels []label
						for _, pair := range m.GetLabel() {
							labels = append(labels, label{[]byte(pair.GetName()), []byte(pair.GetValue())})
						}
						_ = c.take(i, labels, v)
					}
				}
			}
		}
	}
}

// differ compares what decode and expfmt read of an answer that both accept. The values of one series are compared as a
// set, for the order of families is not kept.
func differ(t *testing.T, body []byte, f format, like expfmt.Format) {
	t.Helper()
	c := &collected{[]string{"function_calls_total", "http_requests_total", startTime}, map[string][]float64{}}
	if err := decode(bytes.NewReader(body), f, c); err != nil {
		return
	}
	want, err := reference(body, like, c.wanted)
	if err != nil {
		return // of what is not wanted decode reads nothing, so that it takes more
	}
	if diff := cmp.Diff(want, c.taken, cmpopts.EquateNaNs(), cmpopts.SortSlices(func(a, b float64) bool { return a < b })); diff != "" {
		t.Errorf("-expfmt +decode:\n%s", diff)
	}
}

// FuzzDecode reads text. What is added by lines of other series changes nothing.
func FuzzDecode(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := decodeActivator(bytes.NewReader(body), text)
		checkFinite(t, m, err)
		for _, scrape := range fuzzScrapes {
			target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: scrape}
			m, err := decodePod(bytes.NewReader(body), text, target)
			checkFinite(t, m, err)
			more, errMore := decodePod(io.MultiReader(strings.NewReader("# comment\nother_total{x=\"y\"} 7\n"), bytes.NewReader(body)), text, target)
			if (err == nil) != (errMore == nil) {
				t.Fatalf("with another series before it: %v, without: %v", errMore, err)
			}
			if diff := cmp.Diff(m, more); diff != "" {
				t.Error("another series changes the reading, -without +with:\n" + diff)
			}
		}
		differ(t, body, text, expfmt.NewFormat(expfmt.TypeTextPlain).WithEscapingScheme(0))
	})
}

// FuzzDecodeOpenMetrics reads OpenMetrics. Whatever is cut off it is refused, but for the last line feed.
func FuzzDecodeOpenMetrics(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, scrape := range fuzzScrapes {
			target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: scrape}
			m, err := decodePod(bytes.NewReader(body), openMetrics, target)
			checkFinite(t, m, err)
			if whole := bytes.TrimSuffix(body, []byte("\n")); err == nil {
				if m, err := decodePod(bytes.NewReader(whole[:len(whole)-1]), openMetrics, target); err == nil {
					t.Errorf("without its last byte it reads %+v", m)
				}
			}
		}
		differ(t, body, openMetrics, expfmt.FmtOpenMetrics_1_0_0)
	})
}

// FuzzDecodeProtobuf reads protobuf.
func FuzzDecodeProtobuf(f *testing.F) {
	addSeeds(f)
	f.Add([]byte(asProtobuf(f, expositionOfPod(20))))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := decodeActivator(bytes.NewReader(body), protobuf)
		checkFinite(t, m, err)
		for _, scrape := range fuzzScrapes {
			m, err := decodePod(bytes.NewReader(body), protobuf, providers.Target{Function: hello, Scrape: scrape})
			checkFinite(t, m, err)
		}
		differ(t, body, protobuf, expfmt.NewFormat(expfmt.TypeProtoDelim))
	})
}

// FuzzUncompressed reads gzip: what comes out is never more than the limit, and what was packed comes out as it was.
func FuzzUncompressed(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		const limit = 4096
		read := func(packed []byte) (got []byte, err error) {
			err = uncompressed(bytes.NewReader(packed), "gzip", limit, func(r io.Reader) error {
				got, err = io.ReadAll(r)
				return err
			})
			return got, err
		}
		if got, err := read(body); err != nil && !errors.Is(err, providers.ErrInvalid) || len(got) > limit {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(body)
		_ = z.Close()
		if got, err := read(packed.Bytes()); err == nil && !bytes.Equal(got, body) || err != nil && len(body) < limit/2 {
			t.Errorf("packed and unpacked: %d bytes of %d, error %v", len(got), len(body), err)
		}
	})
}
