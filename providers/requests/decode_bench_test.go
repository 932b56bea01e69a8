package requests

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// expositionOfActivator is what an activator says of n functions.
func expositionOfActivator(n int) string {
	var body strings.Builder
	body.WriteString(start)
	for _, family := range []string{
		v1alpha1.ActivatorStarted, v1alpha1.ActivatorInFlight, v1alpha1.ActivatorHeld,
		v1alpha1.ActivatorBusySeconds, v1alpha1.ActivatorHeldSeconds,
	} {
		for i := range n {
			fmt.Fprintf(&body, "%s{function=\"function-%05d\",namespace=\"default\"} %d\n", family, i, i)
		}
	}
	return body.String()
}

// expositionOfPod is what an application says in some n lines, of which those of function_calls_total and its duration
// are wanted.
func expositionOfPod(n int) string {
	var body strings.Builder
	body.WriteString(start)
	for i := range 5 {
		fmt.Fprintf(&body, "function_calls_total{method=\"GET\",code=\"20%d\"} %d\n", i, i)
	}
	body.WriteString("function_duration_seconds_sum{method=\"GET\"} 17.25\nfunction_duration_seconds_count{method=\"GET\"} 10\n")
	for i := range n - 8 {
		fmt.Fprintf(&body, "application_request_size_bytes_bucket{handler=\"/api/v1/things/%d\",le=\"%d\"} 1.7%de+06\n", i/12, i%12, i%10)
	}
	return body.String()
}

func BenchmarkDecodeActivator10kFunctions(b *testing.B) {
	body := expositionOfActivator(10_000)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeActivator(strings.NewReader(body), text); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodePod reads the few lines that are wanted among many. "scan" is what it costs to look at each byte once.
func BenchmarkDecodePod(b *testing.B) {
	target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: providers.Scrape{Path: "/metrics", Preset: v1alpha1.Kubeless}}
	for _, lines := range []int{100, 45_000} {
		body := expositionOfPod(lines)
		name := fmt.Sprintf("%dlines", lines)
		run := func(f format, body string) func(b *testing.B) {
			return func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					m, err := decodePod(strings.NewReader(body), f, target)
					if err != nil || m.Functions[hello].Started != 10 || m.Functions[hello].Durations != 10 {
						b.Fatal(m, err)
					}
				}
			}
		}
		b.Run("text/"+name, run(text, body))
		b.Run("openmetrics/"+name, run(openMetrics, body+"# EOF\n"))
		b.Run("protobuf/"+name, run(protobuf, asProtobuf(b, body)))
		b.Run("scan/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				count := 0
				for rest := body; ; count++ {
					i := strings.IndexByte(rest, '\n')
					if i < 0 {
						break
					}
					rest = rest[i+1:]
				}
				if count != lines {
					b.Fatal(count)
				}
			}
		})
	}
}

// asProtobuf writes a text exposition in the other format.
func asProtobuf(tb testing.TB, body string) string {
	tb.Helper()
	typed := "# TYPE function_calls_total counter\n# TYPE function_duration_seconds summary\n" + body
	decoder := expfmt.NewDecoder(strings.NewReader(typed), expfmt.NewFormat(expfmt.TypeTextPlain))
	var out strings.Builder
	encoder := expfmt.NewEncoder(&out, expfmt.NewFormat(expfmt.TypeProtoDelim))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); errors.Is(err, io.EOF) {
			return out.String()
		} else if err != nil {
			tb.Fatal(err)
		}
		for _, m := range family.GetMetric() {
			m.TimestampMs = proto.Int64(1_700_000_000_000)
		}
		if err := encoder.Encode(&family); err != nil {
			tb.Fatal(err)
		}
	}
}
