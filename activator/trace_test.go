package activator

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	tracecollector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// receiver is a receiver of OTLP over HTTP.
type receiver struct {
	*httptest.Server
	answer func(w http.ResponseWriter, r *http.Request) bool // false for as usual; nil for always so

	mu       sync.Mutex // protects following
	spans    []*tracepb.Span
	resource map[string]string
	raw      []byte
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	rc := &receiver{}
	rc.Server = httptest.NewServer(rc)
	t.Cleanup(rc.Close)
	return rc
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rc.answer != nil && rc.answer(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	var req tracecollector.ExportTraceServiceRequest
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" ||
		proto.Unmarshal(body, &req) != nil {
		http.Error(w, "not an export", http.StatusBadRequest)
		return
	}
	rc.mu.Lock()
	defer rc.mu.Unlock()
	rc.raw = append(rc.raw, body...)
	for _, of := range req.GetResourceSpans() {
		rc.resource = attributesOf(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			rc.spans = append(rc.spans, scope.GetSpans()...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	answer, _ := proto.Marshal(&tracecollector.ExportTraceServiceResponse{})
	_, _ = w.Write(answer)
}

func attributesOf(all []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range all {
		if i, ok := kv.GetValue().GetValue().(*commonpb.AnyValue_IntValue); ok {
			m[kv.GetKey()] = fmt.Sprint(i.IntValue)
		} else {
			m[kv.GetKey()] = kv.GetValue().GetStringValue()
		}
	}
	return m
}

// trace has p's requests traced from now on, and returns what closes that and gives all spans of these.
func (rc *receiver) trace(p *plane, ratio float64) (done func() []*tracepb.Span) {
	p.proxy.traces = newTracing(p.t.Context(), logr.Discard(), p.proxy.metrics, &TraceOptions{Endpoint: rc.URL + "/v1/traces", Ratio: ratio}, time.Hour)
	done = sync.OnceValue(func() []*tracepb.Span {
		p.proxy.traces.close(p.t.Context())
		rc.mu.Lock()
		defer rc.mu.Unlock()
		return rc.spans
	})
	p.t.Cleanup(func() { done() })
	return done
}

// told is what a test looks at in a span.
type told struct {
	Name, Parent string // of the parent, its name
	Kind         tracepb.Span_SpanKind
	Attributes   map[string]string
	Events       []string
	Error        bool
}

// tellSpans checks that the spans are one trace, in which children lie within their parents, and returns them by their begin.
func tellSpans(t *testing.T, spans []*tracepb.Span) []told {
	t.Helper()
	byID := map[string]*tracepb.Span{}
	for _, s := range spans {
		byID[string(s.GetSpanId())] = s
		if string(s.GetTraceId()) != string(spans[0].GetTraceId()) {
			t.Errorf("span %s is of another trace", s.GetName())
		}
	}
	slices.SortStableFunc(spans, func(a, b *tracepb.Span) int {
		return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
	})
	all := make([]told, len(spans))
	for i, s := range spans {
		all[i] = told{
			Name: s.GetName(), Kind: s.GetKind(), Attributes: attributesOf(s.GetAttributes()), Error: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
		}
		for _, e := range s.GetEvents() {
			all[i].Events = append(all[i].Events, e.GetName())
			if e.GetTimeUnixNano() < s.GetStartTimeUnixNano() || e.GetTimeUnixNano() > s.GetEndTimeUnixNano() {
				t.Errorf("event %s is not within %s", e.GetName(), s.GetName())
			}
		}
		parent := byID[string(s.GetParentSpanId())]
		if parent == nil {
			continue
		}
		all[i].Parent = parent.GetName()
		if s.GetStartTimeUnixNano() < parent.GetStartTimeUnixNano() || s.GetEndTimeUnixNano() > parent.GetEndTimeUnixNano() {
			t.Errorf("%s is not within %s", s.GetName(), parent.GetName())
		}
	}
	return all
}

const (
	clientTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientParent = "00-" + clientTrace + "-00f067aa0ba902b7-01"
)

// A cold request, from a client that has a trace of its own, to a pod that is proven ahead.
func TestSpansOfAColdRequest(t *testing.T) {
	rc := newReceiver(t)
	var served atomic.Pointer[http.Request]
	address := newPod(t, func(_ http.ResponseWriter, r *http.Request) { served.Store(r) })
	p := newPlane(t, nil)
	p.proxy.podReader = specOf(container("a", readiness(httpGet("/healthz", portOfAddress(t, address)))))
	done := rc.trace(p, 0) // the client has decided
	fn := p.add(newTestFunction("hello"))
	req := newRequest(t, http.MethodGet, p.gateURL(fn)+"/a%2Fb?token=secret", nil)
	req.Host = "Hello.example.com:80"
	req.Header.Set("Traceparent", clientParent)
	req.Header.Set("Tracestate", "vendor=1")
	req.Header.Set("User-Agent", "test")
	answers := make(chan answer, 1)
	go func() { answers <- do(t, req) }()
	eventually(t, "it is held, and the wake written", func() bool { return held(fn) == 1 && len(fn.marks.between(time.Time{}, time.Now())) == 1 })
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	if got := <-answers; got.status != http.StatusOK {
		t.Fatalf("got %d %q", got.status, got.body)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
	spans := done()
	got := tellSpans(t, spans)
	host, port, _ := strings.Cut(address, ":")
	want := []told{
		{"GET default/hello", "", tracepb.Span_SPAN_KIND_SERVER, map[string]string{
			"http.request.method": "GET", "url.scheme": "http", "url.path": "/a%2Fb", "server.address": "hello.example.com",
			"network.protocol.version": "1.1", "user_agent.original": "test", "http.response.status_code": "200",
			"sluice.function.namespace": "default", "sluice.function.name": "hello", "sluice.outcome": "ok",
		}, nil, false},
		{"hold", "GET default/hello", tracepb.Span_SPAN_KIND_INTERNAL, nil, []string{"wake patch written", "pod address", "probe ok"}, false},
		{"forward", "GET default/hello", tracepb.Span_SPAN_KIND_CLIENT, map[string]string{
			"http.request.method": "GET", "server.address": host, "server.port": port, "k8s.pod.name": "hello-0", "http.response.status_code": "200",
		}, []string{"answer begins"}, false},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("spans (-want +got):\n%s", diff)
	}
	if id := fmt.Sprintf("%x", spans[0].GetParentSpanId()); id != "00f067aa0ba902b7" || fmt.Sprintf("%x", spans[0].GetTraceId()) != clientTrace {
		t.Errorf("the request's span is no child of the client's: parent %s", id)
	}
	if rc.resource["service.name"] == "" {
		t.Errorf("resource %v", rc.resource)
	}
	if strings.Contains(string(rc.raw), "secret") {
		t.Error("what was exported holds the query")
	}
	// The pod's parent is the span of asking it, and what else the client said of its trace is kept.
	h := served.Load().Header
	if want := fmt.Sprintf("00-%s-%x-01", clientTrace, spans[2].GetSpanId()); h.Get("Traceparent") != want || h.Get("Tracestate") != "vendor=1" {
		t.Errorf("the pod was told %q, %q, want %q", h.Get("Traceparent"), h.Get("Tracestate"), want)
	}
	for _, line := range []string{`sluice_trace_spans_total{outcome="exported"} 3`, `sluice_trace_spans_total{outcome="dropped"} 0`} {
		if !strings.Contains(exposition(t, p), line) {
			t.Errorf("/metrics has no line %s", line)
		}
	}
}

// What a client sends need be no UTF-8, which protobuf insists on: that must not lose the spans of everybody's batch.
func TestSpansOfARequestThatIsNotUTF8(t *testing.T) {
	rc := newReceiver(t)
	p, fn, url := warm(t, newPod(t, echo))
	done := rc.trace(p, 1)
	req := newRequest(t, http.MethodGet, url, nil)
	req.Header.Set("User-Agent", "a\xffb")
	if got := do(t, req); got.status != http.StatusOK {
		t.Fatalf("got %d %q", got.status, got.body)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
	spans := done()
	if len(spans) != 2 {
		t.Fatalf("%d spans, want 2", len(spans))
	}
	for _, s := range tellSpans(t, spans)[:1] {
		if got := s.Attributes["user_agent.original"]; got != "a\uFFFDb" {
			t.Errorf("user agent %q", got)
		}
	}
}

// Who decides whether a request is traced, and what its pod is told, by each way through the gate.
func TestWhoseTraceARequestIsOf(t *testing.T) {
	for _, tt := range []struct {
		name          string
		ratio         float64
		parent, state string // of the client
		spans         int
		trace, flags  string // that the pod is told; any for an empty trace
		keepsState    bool
	}{
		{"begins here", 1, "", "", 2, "", "01", false},
		{"begins here, and is not taken", 0, "", "", 0, "", "00", false},
		{"the client's", 0, clientParent, "a=1", 2, clientTrace, "01", true},
		{"the client's, who does not take it", 1, strings.TrimSuffix(clientParent, "01") + "00", "a=1", 0, clientTrace, "00", true},
		{"the client's is broken", 1, "00-x", "a=1", 2, "", "01", false},
	} {
		for _, way := range []struct {
			method string
			of     func(*http.Protocols)
			change []func(*v1alpha1.Function)
		}{
			{http.MethodGet, onlyHTTP1, nil},
			{http.MethodPost, onlyHTTP1, nil},
			{http.MethodPost, onlyH2C, []func(*v1alpha1.Function){appProtocol("h2c")}},
		} {
			t.Run(tt.name+", "+way.method, func(t *testing.T) {
				rc := newReceiver(t)
				var served atomic.Pointer[http.Request]
				pod := newPodOf(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { served.Store(r) }), way.of)
				p, fn, url := warmAs(t, way.change, pod)
				done := rc.trace(p, tt.ratio)
				req := newRequest(t, way.method, url, strings.NewReader(strings.Repeat("x", len(way.method)-3)))
				if tt.parent != "" {
					req.Header.Set("Traceparent", tt.parent)
					req.Header.Set("Tracestate", tt.state)
				}
				if got := do(t, req); got.status != http.StatusOK {
					t.Fatalf("got %d %q", got.status, got.body)
				}
				wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
				if got := done(); len(got) != tt.spans {
					t.Errorf("%d spans, want %d", len(got), tt.spans)
				}
				h := served.Load().Header
				parts := strings.Split(h.Get("Traceparent"), "-")
				if len(h["Traceparent"]) != 1 || len(parts) != 4 || parts[3] != tt.flags || (tt.trace != "" && parts[1] != tt.trace) ||
					parts[2] == "00f067aa0ba902b7" {
					t.Errorf("the pod was told %q, want trace %q, flags %s, and another parent than the client's", h["Traceparent"], tt.trace, tt.flags)
				}
				if (h.Get("Tracestate") == tt.state && tt.state != "") != tt.keepsState {
					t.Errorf("the pod was told the state %q", h["Tracestate"])
				}
			})
		}
	}
}

// What went wrong is in the spans: pods that refuse, a hold that ends in nothing, a fallback, a placeholder, an answer that
// breaks off.
func TestSpansOfWhatGoesWrong(t *testing.T) {
	brokenOff := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	type brief struct {
		Name, Status, Outcome, ErrorType, Resent, Fallback string
		Error                                              bool
	}
	briefly := func(all []told) (b []brief) {
		for _, s := range all {
			a := s.Attributes
			b = append(b, brief{
				s.Name, a["http.response.status_code"], a["sluice.outcome"], a["error.type"], a["http.request.resend_count"], a["sluice.fallback"], s.Error,
			})
		}
		return b
	}
	short := timeout(100 * time.Millisecond)
	for _, tt := range []struct {
		name    string
		method  string
		change  []func(*v1alpha1.Function)
		pods    map[string][]string
		outcome outcome
		want    []brief
	}{
		{
			"a hold that ends in nothing", "GET",
			[]func(*v1alpha1.Function){short},
			nil, outcomeHoldTimeout,
			[]brief{{"GET default/hello", "504", "hold_timeout", "hold_timeout", "", "", true}, {Name: "hold", Error: true}},
		},
		{
			"a pod that refuses, then the fallback", "POST",
			[]func(*v1alpha1.Function){short, fallsBackTo("sorry", "")},
			map[string][]string{"hello": {refusing(t)}, "sorry": {newPod(t, echo)}},
			outcomeFallback,
			[]brief{
				{"POST default/hello", "200", "fallback", "", "", "", false},
				{Name: "forward", Error: true},
				{Name: "hold", Error: true},
				{Name: "forward", Status: "200", Resent: "1", Fallback: "sorry"},
			},
		},
		{
			"a placeholder", "GET",
			[]func(*v1alpha1.Function){placeholder(page)},
			nil, outcomePlaceholder,
			[]brief{{"GET default/hello", "202", "placeholder", "", "", "", false}},
		},
		{
			"an answer that breaks off", "GET", nil,
			map[string][]string{"hello": {newPod(t, brokenOff)}},
			outcomeUpstreamError,
			[]brief{
				{"GET default/hello", "200", "upstream_error", "upstream_error", "", "", true},
				{Name: "forward", Status: "200", Error: true},
			},
		},
		{
			"an answer that says so", "GET", nil,
			map[string][]string{"hello": {newPod(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })}},
			outcomeOK,
			[]brief{
				{"GET default/hello", "500", "ok", "500", "", "", true},
				{Name: "forward", Status: "500", ErrorType: "500", Error: true},
			},
		},
		{
			"a method of nobody's", "BREW", nil,
			map[string][]string{"hello": {newPod(t, echo)}},
			outcomeOK,
			[]brief{{"_OTHER default/hello", "200", "ok", "", "", "", false}, {Name: "forward", Status: "200"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rc := newReceiver(t)
			p := newPlane(t, nil)
			done := rc.trace(p, 1)
			fn := p.add(newTestFunction("hello", tt.change...))
			for service, addresses := range tt.pods {
				p.pods(service, addresses...)
			}
			res, err := http.DefaultTransport.RoundTrip(newRequest(t, tt.method, p.gateURL(fn), nil))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			wantFinished(t, fn, map[outcome]uint64{tt.outcome: 1})
			fn.queue.want(time.Time{})
			if diff := cmp.Diff(tt.want, briefly(tellSpans(t, done()))); diff != "" {
				t.Errorf("spans (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAttributesAreBounded(t *testing.T) {
	rc := newReceiver(t)
	p, fn, url := warm(t, newPod(t, echo))
	done := rc.trace(p, 1)
	get(t, url+"/"+strings.Repeat("x", 10*maxAttribute))
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: 1})
	if got := len(tellSpans(t, done())[0].Attributes["url.path"]); got != maxAttribute {
		t.Errorf("the path has %d characters in the span, want %d", got, maxAttribute)
	}
}

// Static answers are no traffic, and so no spans.
func TestStaticAnswersHaveNoSpans(t *testing.T) {
	rc := newReceiver(t)
	p := newPlane(t, nil)
	done := rc.trace(p, 1)
	fn := p.add(newTestFunction("hello", static(v1alpha1.StaticAnswer{Path: "/healthz"})))
	url := p.gateURL(fn)
	get(t, url+"/healthz")
	p.pods("hello", newPod(t, echo))
	get(t, url+"/healthz")
	if got := done(); len(got) != 0 {
		t.Errorf("%d spans, want none", len(got))
	}
}

func TestMarksAreTheLatest(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	p.proxy.mark(fn, "off")
	p.proxy.traces = &tracing{}
	began := time.Now()
	for i := range 2 * maxMarks {
		p.proxy.mark(fn, fmt.Sprint(i))
	}
	got := fn.marks.between(began, time.Now())
	if len(got) != maxMarks || got[0].name != fmt.Sprint(maxMarks) {
		t.Errorf("got %d marks from %q on, want the last %d", len(got), got[0].name, maxMarks)
	}
	if late := fn.marks.between(time.Now(), time.Now()); len(late) != 0 {
		t.Errorf("marks of before: %v", late)
	}
}

// A wake that fails, and one that finds the function awake, are told apart from one that was written.
func TestMarksOfWakes(t *testing.T) {
	for _, tt := range []struct {
		wake wakerFunc
		want string
	}{
		{nil, "wake patch written"},
		{func(types.NamespacedName, int32) (bool, error) { return false, nil }, "already awake"},
		{func(types.NamespacedName, int32) (bool, error) { return false, io.ErrUnexpectedEOF }, "wake patch failed"},
	} {
		p := newPlane(t, tt.wake)
		p.proxy.traces = &tracing{}
		fn := p.add(newTestFunction("hello"))
		_, _ = p.proxy.patch(fn, 1)
		if got := fn.marks.last; len(got) != 1 || got[0].name != tt.want {
			t.Errorf("got %v, want %s", got, tt.want)
		}
	}
}
