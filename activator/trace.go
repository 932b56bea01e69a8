package activator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"
)

// TraceOptions say where the spans of requests go.
type TraceOptions struct {
	// Endpoint is the URL of a receiver of OTLP over HTTP in protobuf, such as http://collector:4318/v1/traces. Required.
	Endpoint string
	// Headers are sent with every export, such as a token of the receiver's.
	Headers map[string]string
	// TLS is for an Endpoint of https. Default: the system's authorities.
	TLS *tls.Config
	// Ratio of the traces that begin here, from 0 to 1. What began before follows the parent's decision.
	Ratio float64
	// Resource describes this process. Default: the SDK's.
	Resource *resource.Resource
}

func (o *TraceOptions) validate() error {
	if u, err := url.Parse(o.Endpoint); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		// Not the URL itself, which may hold a password.
		return errors.New("options of the activator: Traces.Endpoint must be a URL of http or https, such as http://collector:4318/v1/traces")
	}
	if !(o.Ratio >= 0 && o.Ratio <= 1) {
		return fmt.Errorf("options of the activator: Traces.Ratio %v must be from 0 to 1", o.Ratio)
	}
	return nil
}

// maxAttribute bounds what a client can put into a span, in characters of one attribute.
const maxAttribute = 1024

// Attributes of our own; all others are of the semantic conventions for HTTP.
const (
	attrNamespace = attribute.Key("sluice.function.namespace")
	attrFunction  = attribute.Key("sluice.function.name")
	attrOutcome   = attribute.Key("sluice.outcome")  // as of sluice_requests_finished_total
	attrFallback  = attribute.Key("sluice.fallback") // the Service whose pod has the request
	attrReplicas  = attribute.Key("sluice.replicas") // that a wake asked for
	attrPod       = attribute.Key("sluice.pod")      // host:port
)

// tracing makes the spans of requests: one of the whole request, in it one for each time that it was held, and one for each
// pod that was asked. A nil tracing makes none, and then the only cost of a request is that it looks.
type tracing struct {
	tracer     trace.Tracer
	propagator propagation.TraceContext
	queue      *spanQueue
}

func newTracing(ctx context.Context, log logr.Logger, m *metrics, o *TraceOptions, delay time.Duration) *tracing {
	exporter := otlptrace.NewUnstarted(newOTLPClient(o.Endpoint, o.Headers, o.TLS))
	queue := newSpanQueue(ctx, log, exporter, m.spans, delay)
	limits := sdktrace.NewSpanLimits()
	if limits.AttributeValueLengthLimit < 0 {
		limits.AttributeValueLengthLimit = maxAttribute
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(queue),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Ratio))),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithResource(cmp.Or(o.Resource, resource.Default())),
	)
	return &tracing{tracer: provider.Tracer("github.com/sluice-dev/sluice/activator"), queue: queue}
}

// close exports what is left, within hardStop, whether ctx has ended or not. No request may be in serve any more.
func (t *tracing) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hardStop)
	defer cancel()
	_ = t.queue.Shutdown(ctx) // what was lost is counted
}

// spans are those of one request.
type spans struct {
	tracing *tracing
	server  trace.Span
	forward trace.Span // of the pod that has the request, or is being asked; nil for none
	asked   int        // pods

	orphan      bool   // the client named no parent
	traceparent string // for the pod
}

// begin makes the span of ex, as a child of the one that the client names.
func (t *tracing) begin(ex *exchange) *spans {
	r := ex.request
	ctx := t.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	s := &spans{tracing: t, orphan: !trace.SpanContextFromContext(ctx).IsValid()}
	method := methodOf(r)
	o := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	if ex.hops == 0 { // else the request came to another activator then
		o = append(o, trace.WithTimestamp(ex.start))
	}
	_, s.server = t.tracer.Start(ctx, method+" "+ex.fn.name, o...)
	if !s.server.IsRecording() {
		return s
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	s.server.SetAttributes(
		semconv.HTTPRequestMethodKey.String(method),
		semconv.URLScheme(scheme), semconv.URLPath(r.URL.EscapedPath()), // never the query, which may hold secrets
		semconv.ServerAddress(inUTF8(hostName(r.Host))),
		semconv.NetworkProtocolVersion(protocolVersion(r)),
		attrNamespace.String(ex.fn.key.Namespace), attrFunction.String(ex.fn.key.Name),
	)
	if agent := r.UserAgent(); agent != "" {
		s.server.SetAttributes(semconv.UserAgentOriginal(inUTF8(agent)))
	}
	return s
}

// inUTF8 is s, which a client or a pod may have chosen, as protobuf takes it: it encodes no other string, and with it none of
// the batch.
func inUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// methodOf is r's method, or _OTHER for one that is none of the usual: clients choose it, and names of spans are few.
func methodOf(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodConnect,
		http.MethodOptions, http.MethodTrace:
		return r.Method
	default:
		return "_OTHER"
	}
}

func protocolVersion(r *http.Request) string {
	if r.ProtoMajor == 2 {
		return "2"
	}
	return strconv.Itoa(r.ProtoMajor) + "." + strconv.Itoa(r.ProtoMinor)
}

// child begins a span within that of the request.
func (s *spans) child(ex *exchange, name string, o ...trace.SpanStartOption) trace.Span {
	_, span := s.tracing.tracer.Start(trace.ContextWithSpan(ex.request.Context(), s.server), name, o...)
	return span
}

// held makes the span of a hold that has ended, in err or in that a pod may be tried.
func (s *spans) held(ex *exchange, began, ended time.Time, err error) {
	span := s.child(ex, "hold", trace.WithTimestamp(began))
	if span.IsRecording() {
		for _, m := range ex.fn.marks.between(began, ended) {
			span.AddEvent(m.name, trace.WithTimestamp(m.at), trace.WithAttributes(m.attributes...))
		}
		if err != nil {
			span.SetStatus(codes.Error, inUTF8(err.Error()))
		}
	}
	span.End(trace.WithTimestamp(ended))
}

// ask begins the span of asking p, and makes it the parent that p is told.
func (s *spans) ask(ex *exchange, p *pod) {
	s.forward = s.child(ex, "forward", trace.WithSpanKind(trace.SpanKindClient))
	carrier := propagation.MapCarrier{}
	s.tracing.propagator.Inject(trace.ContextWithSpan(ex.request.Context(), s.forward), carrier)
	s.traceparent = carrier["traceparent"]
	s.asked++
	if !s.forward.IsRecording() {
		return
	}
	s.forward.SetAttributes(semconv.HTTPRequestMethodKey.String(methodOf(ex.request)))
	address := p.address
	if admin, ok := adminOf(address); ok {
		address = admin
	}
	if host, port, err := net.SplitHostPort(address); err == nil {
		n, _ := strconv.Atoi(port) // which podSet.next has put there
		s.forward.SetAttributes(semconv.ServerAddress(host), semconv.ServerPort(n))
	}
	if p.name.Name != "" {
		s.forward.SetAttributes(semconv.K8SPodName(p.name.Name))
	}
	if s.asked > 1 {
		s.forward.SetAttributes(semconv.HTTPRequestResendCount(s.asked - 1))
	}
	if ex.refused != nil {
		s.forward.SetAttributes(attrFallback.String(ex.fallback.Service))
	}
}

// answered takes in what asking the pod has come to. The span lasts until the last byte of an answer.
func (s *spans) answered(res *http.Response, err error) {
	if err != nil {
		s.forward.SetStatus(codes.Error, inUTF8(err.Error()))
		s.forward.End()
		s.forward = nil
		return
	}
	if !s.forward.IsRecording() {
		return
	}
	s.forward.AddEvent("answer begins")
	s.forward.SetAttributes(semconv.HTTPResponseStatusCode(res.StatusCode))
	if res.StatusCode >= http.StatusBadRequest { // of a client's span, which this is
		s.forward.SetStatus(codes.Error, "")
		s.forward.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(res.StatusCode)))
	}
}

// onto has h, of a request to a pod, name the parent of what the pod does.
func (s *spans) onto(h http.Header) {
	h["Traceparent"] = []string{s.traceparent}
	if s.orphan {
		delete(h, "Tracestate") // of no traceparent, or of a broken one (Trace Context, 3.3.1.6)
	}
}

// replaces tells whether the pod is told something else under the name of a header of the client's, or nothing.
func (s *spans) replaces(header string) bool {
	return s != nil && (header == "Traceparent" || (s.orphan && header == "Tracestate"))
}

// end ends what is not ended yet, at the last byte out.
func (s *spans) end(ex *exchange) {
	failed := ""
	switch ex.outcome { //nolint:exhaustive // all others are failures of their own names
	case outcomeOK, outcomeFallback, outcomePlaceholder:
		if ex.status >= http.StatusInternalServerError {
			failed = strconv.Itoa(ex.status)
		}
	default:
		failed = outcomeNames[ex.outcome]
	}
	if s.forward != nil {
		if ex.outcome != outcomeOK && ex.outcome != outcomeFallback {
			s.forward.SetStatus(codes.Error, failed)
		}
		s.forward.End()
	}
	if s.server.IsRecording() {
		s.server.SetAttributes(attrOutcome.String(outcomeNames[ex.outcome]))
		if ex.status != 0 {
			s.server.SetAttributes(semconv.HTTPResponseStatusCode(ex.status))
		}
		if failed != "" {
			s.server.SetAttributes(semconv.ErrorTypeKey.String(failed))
		}
		if failed != "" && ex.outcome != outcomeClientGone { // which is no error of a server
			s.server.SetStatus(codes.Error, "")
		}
	}
	s.server.End()
}

// mark is something that the wake of a function has come to, as its held requests' spans tell it.
type mark struct {
	at         time.Time
	name       string
	attributes []attribute.KeyValue
}

// maxMarks are as many as one wake has, with some repeated patches.
const maxMarks = 8

// marks are the latest of a function.
type marks struct {
	mu   sync.Mutex // protects following
	last []mark
}

// mark takes in that fn's wake has come to something now.
func (p *proxy) mark(fn *function, name string, attributes ...attribute.KeyValue) {
	if p.traces == nil {
		return
	}
	fn.marks.mu.Lock()
	defer fn.marks.mu.Unlock()
	if len(fn.marks.last) == maxMarks {
		fn.marks.last = slices.Delete(fn.marks.last, 0, 1)
	}
	fn.marks.last = append(fn.marks.last, mark{time.Now(), name, attributes})
}

func (m *marks) between(began, ended time.Time) []mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []mark
	for _, k := range m.last {
		if !k.at.Before(began) && !k.at.After(ended) {
			found = append(found, k)
		}
	}
	return found
}

// markAddress marks the first address of a pod that this run of the waker has seen.
func (w *waking) markAddress(pods *podSet) {
	if w.addressed || len(pods.ready)+len(pods.coming) == 0 {
		return
	}
	w.addressed = true
	w.proxy.mark(w.fn, "pod address", attrPod.String(slices.Concat(pods.ready, pods.coming)[0].address))
}
