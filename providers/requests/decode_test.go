package requests

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

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
	const labels = `{namespace="default",function="hello"}`
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
			name: "families in orders of their own, and functions in some only",
			body: start + "sluice_requests_started_total{namespace=\"a\",function=\"x\"} 1\nsluice_requests_started_total{namespace=\"a\",function=\"y\"} 2\n" +
				"sluice_requests_started_total{namespace=\"b\",function=\"x\"} 3\nsluice_request_seconds_total{namespace=\"b\",function=\"x\"} 4\n" +
				"sluice_request_seconds_total{namespace=\"a\",function=\"z\"} 5\nsluice_request_seconds_total{namespace=\"a\",function=\"x\"} 6\n",
			want: &providers.Measurement{Start: began, Functions: map[types.NamespacedName]providers.Reading{
				{Namespace: "a", Name: "x"}: {Started: 1, BusySeconds: 6},
				{Namespace: "a", Name: "y"}: {Started: 2},
				{Namespace: "a", Name: "z"}: {BusySeconds: 5},
				{Namespace: "b", Name: "x"}: {Started: 3, BusySeconds: 4},
			}},
		},
		{
			name: "no function yet",
			body: start,
			want: &providers.Measurement{Start: began, Functions: map[types.NamespacedName]providers.Reading{}},
		},
		{name: "empty: something else answers at the address", body: "", invalid: "not an activator"},
		{name: "no labels", body: start + "sluice_requests_started_total 1\n", invalid: "without labels"},
		{name: "cut off", body: start + `sluice_requests_started_total` + labels + ` 1`, invalid: "cut off"},
		{name: "NaN", body: start + "sluice_requests_in_flight" + labels + " NaN\n", invalid: "default/hello: invalid answer: sluice_requests_in_flight is NaN"},
		{name: "negative", body: start + "sluice_requests_in_flight" + labels + " -1\n", invalid: "-1"},
		{name: "infinite", body: start + "sluice_requests_in_flight" + labels + " +Inf\n", invalid: "+Inf"},
		{name: "no number", body: start + "sluice_requests_in_flight" + labels + " x\n", invalid: "x"},
		{name: "two starts", body: start + start, invalid: "not one time"},
		{
			name: "twice", invalid: "sluice_requests_in_flight is there twice for function default/hello",
			body: start + "sluice_requests_in_flight" + labels + " 1\nsluice_requests_in_flight{function=\"hello\",namespace=\"default\"} 1\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeActivator(strings.NewReader(tt.body), text)
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
	own := providers.Scrape{Path: "/metrics", Requests: "calls_total", InFlight: "calls_now", Duration: "call_seconds"}
	counter := providers.Scrape{Path: "/metrics", Requests: "calls_total"}
	preset := func(p v1alpha1.PodMetricsPreset) providers.Scrape {
		s := providers.Scrape{Preset: p}
		s.Path = s.PresetPath()
		return s
	}
	tests := []struct {
		name   string
		scrape providers.Scrape
		format format
		body   string
		want   providers.Reading
	}{
		{
			name: "summed over all labels", scrape: own,
			body: "# TYPE calls_total counter\ncalls_total{method=\"GET\",code=\"200\"} 5\n" +
				"calls_total{method=\"POST\"} 7 1700000000000\ncalls_total 1\ncalls_now 2\ncalls_now{x=\"\\\"}\"} 1\n" +
				"call_seconds_bucket{le=\"+Inf\"} 3\ncall_seconds_sum{a=\"b\"} 0.5\ncall_seconds_count{a=\"b\"} 2\ncall_seconds_sum 1\ncall_seconds_count 1\n",
			want: providers.Reading{Started: 13, InFlight: 3, DurationSeconds: 1.5, Durations: 3},
		},
		{
			name: "written in ways that are rare", scrape: own,
			body: "  calls_total\t{ a = \"b\" , }   1e0\n\tcalls_total{a=\"\\\\\\n\\\"é\"} +2.0 -17\n" +
				"{\"calls_total\",a=\"c\"} 4\n{ \"calls_total\" , a=\"e\" } 8\n{\"other_total\"} x\n\n   \ncalls_total{} 16\ncalls_total{a=\"d\",} 32\n" +
				"#TYPE  calls_now gauge\ncalls_now\t4\n",
			want: providers.Reading{Started: 63, InFlight: 4},
		},
		{
			name: "names that only begin alike", scrape: own,
			body: "calls_total_created 1.7e9\ncalls 4\ncalls_totals 5\n# TYPE calls_total_created gauge\n# HELP calls_totals calls_total\n# calls_total\n",
			want: providers.Reading{Absent: true, NoGauge: true},
		},
		{name: "nothing exposed", scrape: own, want: providers.Reading{Absent: true, NoGauge: true}},
		{name: "nothing exposed, as OpenTelemetry for Node says it", scrape: counter, body: "target_info{} 1\n# no registered metrics", want: providers.Reading{Absent: true}},
		{name: "nothing counted yet", scrape: counter, body: "# TYPE calls_total counter\n"},
		{name: "nothing counted yet, by its HELP", scrape: own, body: "# HELP calls_total Calls.\n# HELP calls_now Now.\n"},
		{name: "nothing counted yet, OpenMetrics", scrape: counter, format: openMetrics, body: "# TYPE calls counter\n# EOF\n"},
		{
			name: "count of a histogram", scrape: providers.Scrape{Requests: "request_seconds_count"},
			body: "# TYPE request_seconds histogram\nrequest_seconds_bucket{le=\"1\"} 1\nrequest_seconds_bucket{le=\"+Inf\"} 4\n" +
				"request_seconds_sum 9\nrequest_seconds_count 4\n",
			want: providers.Reading{Started: 4},
		},
		{name: "a histogram that nothing was observed by", scrape: providers.Scrape{Requests: "x_count"}, body: "# TYPE x histogram\n"},
		{name: "what else is broken does not matter", scrape: counter, body: "nonsense here\ncalls_total 3\n", want: providers.Reading{Started: 3}},
		{
			name: "a summary without observations", scrape: own,
			body: "calls_total 0\ncalls_now 0\ncall_seconds{quantile=\"0.5\"} NaN\ncall_seconds_sum{a=\"b\"} NaN\ncall_seconds_count{a=\"b\"} 0\n" +
				"call_seconds_sum 2\ncall_seconds_count 4\n",
			want: providers.Reading{DurationSeconds: 2, Durations: 4},
		},
		{
			name: "our own scrapes are no traffic", scrape: counter,
			body: "calls_total{handler=\"/metrics\"} 100\ncalls_total{handler=\"/\"} 2\n", want: providers.Reading{Started: 2},
		},
		{
			name: "probes are no traffic, where the preset knows what its paths are", scrape: preset(v1alpha1.Generic),
			body: "http_requests_total{uri=\"/actuator/health/readiness\"} 100\nhttp_requests_total{path=\"/healthz\"} 10\nhttp_requests_total{path=\"/healthz/x\"} 1\n",
			want: providers.Reading{Started: 1},
		},
		{name: "own names have no paths but the scrape's", scrape: counter, body: "calls_total{path=\"/healthz\"} 10\n", want: providers.Reading{Started: 10}},
		{name: "nothing but scrapes", scrape: counter, body: "calls_total{handler=\"/metrics\"} 100\n"},
		{
			name: "OpenMetrics", scrape: own, format: openMetrics,
			body: "# TYPE calls counter\n# UNIT calls calls\ncalls_total{a=\"b\"} 5 1700000000.5 # {trace_id=\"calls_total 7\"} 1 1.5\ncalls_created{a=\"b\"} 1.7e9\n" +
				"calls_total{a=\"\\\"} # {\"} 2.0 # {} 1\ncalls_total 1 1.5\n# TYPE calls_now gauge\ncalls_now 3\n# TYPE call_seconds histogram\n" +
				"call_seconds_bucket{le=\"+Inf\"} 2 # {} 1\ncall_seconds_count 2\ncall_seconds_sum 0.25\ncall_seconds_created 1\n# EOF",
			want: providers.Reading{Started: 8, InFlight: 3, DurationSeconds: 0.25, Durations: 2},
		},
		{
			name: "OpenMetrics adds _total to a counter's name", scrape: providers.Scrape{Requests: "calls"}, format: openMetrics,
			body: "# TYPE calls counter\ncalls_total 5\n# EOF\n", want: providers.Reading{Started: 5},
		},
		{
			name: "Kubeless", scrape: preset(v1alpha1.Kubeless),
			body: "function_calls_total{method=\"GET\"} 2.0\nfunction_failures_total{method=\"GET\"} 1.0\nfunction_duration_seconds_count{method=\"GET\"} 2\nfunction_duration_seconds_sum{method=\"GET\"} 0.5\n",
			want: providers.Reading{Started: 2, DurationSeconds: 0.5, Durations: 2},
		},
		{
			name: "Kubeless, .NET", scrape: preset(v1alpha1.Kubeless),
			body: "kubeless_calls_total{status=\"200\"} 2\nkubeless_calls_total{status=\"500\"} 1\n",
			want: providers.Reading{Started: 3},
		},
		{
			name: "OpenTelemetry", scrape: preset(v1alpha1.OpenTelemetry),
			body: "http_server_request_duration_seconds_count{otel_scope_name=\"x\",http_route=\"/\"} 3\nhttp_server_request_duration_seconds_sum{otel_scope_name=\"x\",http_route=\"/\"} 0.5\n" +
				"http_server_active_requests{otel_scope_name=\"x\"} 1\n",
			want: providers.Reading{Started: 3, InFlight: 1, DurationSeconds: 0.5, Durations: 3},
		},
		{
			name: "OpenTelemetry, both generations: one of them is read", scrape: preset(v1alpha1.OpenTelemetry),
			body: "http_server_duration_milliseconds_count 3\nhttp_server_duration_milliseconds_sum 500\n" +
				"http_server_request_duration_seconds_count 2\nhttp_server_request_duration_seconds_sum 0.5\n",
			want: providers.Reading{Started: 2, DurationSeconds: 0.5, Durations: 2, NoGauge: true},
		},
		{
			name: "OpenTelemetry, the older in milliseconds", scrape: preset(v1alpha1.OpenTelemetry),
			body: "http_server_duration_milliseconds_count 3\nhttp_server_duration_milliseconds_sum 500\nhttp_server_active_requests 0\n",
			want: providers.Reading{Started: 3, DurationSeconds: 0.5, Durations: 3},
		},
		{
			name: "Istio: requests from the pod are left out, and no label is needed", scrape: preset(v1alpha1.Istio),
			body: "istio_requests_total{reporter=\"source\",x=\"y\"} 100\nistio_requests_total{reporter=\"destination\"} 2\nistio_requests_total{x=\"y\"} 1\n" +
				"istio_request_duration_milliseconds_sum{reporter=\"source\"} 7\nistio_request_duration_milliseconds_count{reporter=\"source\"} 7\n" +
				"istio_request_duration_milliseconds_sum{reporter=\"destination\"} 250\nistio_request_duration_milliseconds_count{reporter=\"destination\"} 2\n",
			want: providers.Reading{Started: 3, DurationSeconds: 0.25, Durations: 2},
		},
		{
			name: "Envoy: its own pages and what the pod sends are left out", scrape: preset(v1alpha1.Envoy),
			body: "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"admin\"} 100\nenvoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"egress_http\"} 50\nenvoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"ingress\"} 2\n" +
				"envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix=\"admin\"} 1\nenvoy_http_downstream_rq_active{envoy_http_conn_manager_prefix=\"ingress\"} 0\n" +
				"envoy_server_hot_restart_epoch{} 0\n",
			want: providers.Reading{Started: 2},
		},
		{
			name: "Generic: the first that there is, never two", scrape: preset(v1alpha1.Generic),
			body: "http_server_requests_seconds_count{uri=\"/\"} 9\nhttp_server_requests_seconds_sum{uri=\"/\"} 4.5\nhttp_request_duration_seconds_count 7\n",
			want: providers.Reading{Started: 7, DurationSeconds: 4.5, Durations: 9},
		},
		{
			name: "own names in the place of the preset's", scrape: providers.Scrape{Preset: v1alpha1.Kubeless, Requests: "calls_total"},
			body: "calls_total 1\nfunction_calls_total 5\nfunction_duration_seconds_count 4\nfunction_duration_seconds_sum 2\n",
			want: providers.Reading{Started: 1, DurationSeconds: 2, Durations: 4},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodePod(strings.NewReader(tt.body), tt.format, providers.Target{Kind: providers.Pod, Function: hello, Scrape: tt.scrape})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[types.NamespacedName]providers.Reading{hello: tt.want}, got.Functions); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

func TestDecodePodRefuses(t *testing.T) {
	long := strings.Repeat("x", maxLine+chunk)
	tests := []struct {
		name   string
		format format
		body   string
		says   string
	}{
		{name: "half a line", body: "calls_total 12", says: "cut off"},
		{name: "half a line of something else", body: "calls_total 12\nothe", says: "cut off"},
		{name: "a line without end", body: long, says: "too long"},
		{name: "NaN", body: "calls_total{a=\"b\",c=\"d\"} NaN\n", says: `calls_total{a="b",c="d"} is NaN`},
		{name: "negative", body: "calls_total{a=\"b\"} -1\n", says: `calls_total{a="b"} is -1`},
		{name: "infinite", body: "calls_total +Inf\n", says: "calls_total is +Inf"},
		{name: "a huge exponent", body: "calls_total 1e999\n", says: "1e999"},
		{name: "infinite together", body: "calls_total{a=\"b\"} 1e308\ncalls_total{a=\"c\"} 1e308\n", says: "calls_total is infinite"},
		{name: "twice", body: "calls_total{a=\"b\",c=\"d\"} 1\ncalls_total{c=\"d\",a=\"b\"} 2\n", says: "calls_total is there twice"},
		{name: "twice, once in another spelling", body: "calls_total{a=\"b\"} 1\n{\"calls_total\",a=\"b\"} 2\n", says: "twice"},
		{name: "no number", body: "calls_total one\n", says: "one"},
		{name: "no value", body: "calls_total \n", says: "calls_total"},
		{name: "hexadecimal", body: "calls_total 0x1p4\n", says: "0x1p4"},
		{name: "a label twice", body: "calls_total{a=\"b\",a=\"c\"} 1\n", says: "duplicate"},
		{name: "a carriage return", body: "calls_total 1\r\n", says: "calls_total"},
		{name: "a sum that is NaN of something observed", body: "calls_total 1\ncall_seconds_sum NaN\ncall_seconds_count 1\n", says: "call_seconds_sum is NaN"},
		{
			name: "a sum that is NaN beside another's count of 0", says: "call_seconds_sum is NaN",
			body: "calls_total 1\ncall_seconds_sum NaN\ncall_seconds_count{a=\"b\"} 0\ncall_seconds_count 1\n",
		},
		{name: "OpenMetrics without an end", format: openMetrics, body: "calls_total 1\n", says: "# EOF"},
		{name: "OpenMetrics, empty", format: openMetrics, body: "", says: "# EOF"},
		{name: "OpenMetrics with something after the end", format: openMetrics, body: "# EOF\ncalls_total 1\n", says: "follows"},
		{name: "OpenMetrics, half a line", format: openMetrics, body: "calls_total 1\n# EO", says: "cut off"},
		{name: "OpenMetrics, NaN", format: openMetrics, body: "calls_total NaN\n# EOF\n", says: "calls_total is NaN"},
	}
	scrape := providers.Scrape{Requests: "calls_total", Duration: "call_seconds"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := decodePod(strings.NewReader(tt.body), tt.format, providers.Target{Function: hello, Scrape: scrape})
			if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %+v, error %v, want an invalid answer with %q", m, err, tt.says)
			}
		})
	}
}

// protobufOf writes families as a process does that has no other format.
func protobufOf(tb testing.TB, families ...*dto.MetricFamily) string {
	tb.Helper()
	var out bytes.Buffer
	encoder := expfmt.NewEncoder(&out, expfmt.NewFormat(expfmt.TypeProtoDelim))
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			tb.Fatal(err)
		}
	}
	return out.String()
}

func TestDecodeProtobuf(t *testing.T) {
	labels := []*dto.LabelPair{{Name: new("a"), Value: new("b")}}
	calls := &dto.MetricFamily{Name: new("calls_total"), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{
		{Label: labels, Counter: &dto.Counter{Value: new(2.0)}}, {Counter: &dto.Counter{Value: new(3.0)}},
	}}
	now := &dto.MetricFamily{Name: new("calls_now"), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: new(1.0)}}}}
	seconds := &dto.MetricFamily{Name: new("call_seconds"), Type: dto.MetricType_HISTOGRAM.Enum(), Metric: []*dto.Metric{
		{Histogram: &dto.Histogram{SampleCount: proto.Uint64(4), SampleSum: new(0.5)}},
		{Label: labels, Histogram: &dto.Histogram{ // native
			SampleCountFloat: new(2.0), SampleSum: new(1.0), Schema: proto.Int32(3), PositiveDelta: []int64{2},
		}},
	}}
	other := &dto.MetricFamily{Name: new("other"), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: new(math.NaN())}}}}
	bad := &dto.MetricFamily{Name: new("calls_now"), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Label: labels, Gauge: &dto.Gauge{Value: new(math.Inf(1))}}}}
	all := protobufOf(t, other, calls, now, other, seconds)
	tests := []struct {
		name string
		body string
		want providers.Reading
		says string // part of the error
	}{
		{name: "all", body: all, want: providers.Reading{Started: 5, InFlight: 1, DurationSeconds: 1.5, Durations: 6}},
		{name: "empty", want: providers.Reading{Absent: true, NoGauge: true}},
		{name: "others only", body: protobufOf(t, other), want: providers.Reading{Absent: true, NoGauge: true}},
		{name: "cut off inside what is wanted", body: all[:len(all)-3], says: "cut off"},
		{name: "cut off inside what is not", body: protobufOf(t, other)[:9], says: "cut off"},
		{name: "cut off inside a length", body: all + "\xff", says: "length"},
		{name: "a length past all limits", body: "\xff\xff\xff\xff\x0f", says: "too large"},
		{name: "a length of eleven bytes", body: strings.Repeat("\xff", 11), says: "length"},
		{name: "infinite", body: protobufOf(t, calls, bad), says: `calls_now{a="b"} is +Inf`},
		{name: "twice", body: protobufOf(t, calls, calls), says: "twice"},
		{name: "text", body: "calls_total 1\n", says: "cut off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			scrape := providers.Scrape{Requests: "calls_total", InFlight: "calls_now", Duration: "call_seconds"}
			m, err := decodePod(strings.NewReader(tt.body), protobuf, providers.Target{Function: hello, Scrape: scrape})
			if tt.says != "" {
				if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %+v, error %v, want an invalid answer with %q", m, err, tt.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, m.Functions[hello]); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

// TestDecodeInPieces reads an answer that comes byte by byte, so that every line crosses an edge.
func TestDecodeInPieces(t *testing.T) {
	for name, body := range map[string]string{"small": expositionOfPod(50), "a line larger than the buffer": "# HELP x " + strings.Repeat("x", 3*chunk) + "\n" + expositionOfPod(10)} {
		t.Run(name, func(t *testing.T) {
			target := providers.Target{Function: hello, Scrape: providers.Scrape{Preset: v1alpha1.Kubeless}}
			m, err := decodePod(&pieces{body}, text, target)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(providers.Reading{Started: 10, DurationSeconds: 17.25, Durations: 10}, m.Functions[hello]); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

// pieces reads one byte at a time, the last one together with the end.
type pieces struct{ rest string }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	b[0], p.rest = p.rest[0], p.rest[1:]
	if len(p.rest) == 0 {
		return 1, io.EOF
	}
	return 1, nil
}

func TestUncompressed(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(bytes.Repeat([]byte("0123456789"), 10_000))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	whole := packed.String()
	var nothing bytes.Buffer
	if err := gzip.NewWriter(&nothing).Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, coding, body string
		want               int
		says               string
	}{
		{name: "not compressed", body: "abc", want: 3},
		{name: "not compressed, by name", coding: "identity", body: "abc", want: 3},
		{name: "gzip", coding: "gzip", body: whole, want: 100_000},
		{name: "too large", body: strings.Repeat("x", 100_001), says: "too large"},
		{name: "bomb", coding: "gzip", body: whole + whole, says: "too large"},
		{name: "nothing without end", coding: "gzip", body: strings.Repeat(nothing.String(), 10_000), says: "too large"},
		{name: "no gzip", coding: "gzip", body: "calls_total 1\n", says: "uncompress"},
		{name: "no gzip, empty", coding: "gzip", says: "uncompress"},
		{name: "cut off", coding: "gzip", body: whole[:len(whole)-9], says: "uncompress"},
		{name: "damaged", coding: "gzip", body: whole[:20] + "\xff\xff\xff\xff" + whole[24:], says: "uncompress"},
		{name: "something else", coding: "br", body: "x", says: `"br" was not asked for`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := 0
			err := uncompressed(strings.NewReader(tt.body), tt.coding, 100_000, func(r io.Reader) error {
				b, err := io.ReadAll(r)
				got = len(b)
				return err
			})
			if tt.says == "" && (err != nil || got != tt.want) {
				t.Errorf("got %d bytes, error %v, want %d", got, err, tt.want)
			}
			if tt.says != "" && (!errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("error = %v, want an invalid answer with %q", err, tt.says)
			}
		})
	}
}

func TestContentFormat(t *testing.T) {
	for contentType, want := range map[string]format{
		"text/plain": text,
		"text/plain; version=0.0.4; charset=utf-8; escaping=underscores":                                                     text,
		"text/plain; version=1.0.0; escaping=allow-utf-8":                                                                    text,
		"application/openmetrics-text; version=1.0.0; charset=utf-8":                                                         openMetrics,
		"application/openmetrics-text; version=0.0.1":                                                                        openMetrics,
		"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores": protobuf,
		"": -1, "text/html": -1, "application/json": -1, "text/": -1,
		"application/openmetrics-text; version=2.0.0":                                               -1,
		"application/vnd.google.protobuf":                                                           -1,
		"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=text":   -1,
		"application/vnd.google.protobuf; proto=io.prometheus.write.v2.Request; encoding=delimited": -1,
	} {
		got, err := contentFormat(http.Header{"Content-Type": {contentType}})
		if want < 0 {
			if !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), "content type") {
				t.Errorf("%q: got %v, error %v, want it refused", contentType, got, err)
			}
		} else if got != want || err != nil {
			t.Errorf("%q: got %v, error %v, want %v", contentType, got, err, want)
		}
	}
}
