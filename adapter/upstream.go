package adapter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/sony/gobreaker/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/rest"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"
)

const (
	defaultUpstreamTimeout = 5 * time.Second
	// viaHeader is on every request to another adapter. One that has it and would be forwarded goes round in circles.
	viaHeader = "Sluice-Via"
	// maxForwarded bounds the reads that wait for one upstream, well below what the server takes at once (400): a hanging
	// upstream leaves room for Sluice's own.
	maxForwarded = 100
	// maxUpstreamBody bounds an answer.
	maxUpstreamBody = 32 << 20
	// maxUpstreamHeader bounds an answer's header. Of net/http's 10 MiB a hundred reads at once would take all memory.
	maxUpstreamHeader = 64 << 10
	// maxUpstreamStatus bounds how much of an error is read for its words.
	maxUpstreamStatus = 64 << 10
	// tripAfter failures in a row the upstream is not asked for coolDown, and then with one read at first.
	tripAfter = 5
	coolDown  = 10 * time.Second
)

var (
	// forwardedHeaders are all that the upstream sees of the caller's: above all not who the caller is.
	forwardedHeaders = []string{"Accept", "Accept-Encoding"}
	// returnedHeaders are all that the caller sees of the upstream's.
	returnedHeaders = []string{"Content-Encoding", "Content-Length", "Content-Type", "Retry-After", "Vary", "Warning"}
)

// upstream is another adapter, which is asked for what is not ours: as ourselves, for the caller has been authorized
// for the very same read here. What becomes of it concerns nobody else: its reads are bounded in time, number and size.
type upstream struct {
	group   string
	service serviceRef
	timeout time.Duration
	// transport authenticates and verifies.
	transport http.RoundTripper
	breaker   *gobreaker.TwoStepCircuitBreaker[any]
	slots     chan struct{}
	metrics   *upstreamMetrics
	log       logr.Logger
	// lastFailure is what the breaker opened for.
	lastFailure atomic.Pointer[string]
	// found is what discovery last said; nil before.
	found atomic.Pointer[discovered]
}

// newUpstream prepares asking s for group.
func newUpstream(o Options, group string, s serviceRef, m *upstreamMetrics, log logr.Logger) (*upstream, error) {
	config := &rest.Config{
		Host: "https://" + s.address(),
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: o.Upstreams.CAFile, ServerName: s.host(), Insecure: o.Upstreams.InsecureSkipTLSVerify,
			// A connection of its own for each read under way: one that hangs holds up no other, and new ones find
			// the replicas that are left.
			NextProtos: []string{"http/1.1"},
		},
		BearerTokenFile: o.Upstreams.TokenFile,
		UserAgent:       Service,
		Dial:            o.dialUpstream,
	}
	if config.BearerTokenFile == "" {
		config.BearerToken, config.BearerTokenFile = o.Config.BearerToken, o.Config.BearerTokenFile
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of upstream %s: %w", s, err)
	}
	boundHeaders(transport)
	u := &upstream{
		group: group, service: s, timeout: o.Upstreams.Timeout, transport: transport,
		slots: make(chan struct{}, maxForwarded), metrics: m, log: log.WithValues("upstream", s.String(), "api", group),
	}
	u.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Name:        group,
		Timeout:     coolDown,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		IsExcluded:  func(err error) bool { return errors.Is(err, context.Canceled) }, // the caller left
		OnStateChange: func(_ string, from, to gobreaker.State) {
			u.log.Info("upstream's breaker changed", "from", from.String(), "to", to.String(), "err", u.failure())
		},
	})
	return u, nil
}

// boundHeaders bounds the header of an answer, for which rest.Config has no option.
func boundHeaders(transport http.RoundTripper) {
	for {
		switch t := transport.(type) {
		case utilnet.RoundTripperWrapper:
			transport = t.WrappedRoundTripper()
			continue
		case *http.Transport:
			// client-go keeps transports for who asks for the same again, who may be using it.
			if t.MaxResponseHeaderBytes != maxUpstreamHeader {
				t.MaxResponseHeaderBytes = maxUpstreamHeader
			}
		}
		return
	}
}

func (u *upstream) failure() string {
	if last := u.lastFailure.Load(); last != nil {
		return *last
	}
	return ""
}

// ServeHTTP forwards the read r.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if via := r.Header.Get(viaHeader); via != "" {
		u.refuse(w, r, "loop", http.StatusLoopDetected, fmt.Sprintf(
			"is asked by a Sluice adapter that was asked by one (%s): name the other adapter's own Service, not Sluice's", via))
		return
	}
	if message := u.found.Load().lacks(u.group, r.URL.Path); message != "" {
		u.refuse(w, r, "version", http.StatusNotFound, message)
		return
	}
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	default:
		u.refuse(w, r, "busy", http.StatusServiceUnavailable, fmt.Sprintf("is late with %d other reads", maxForwarded))
		return
	}
	done, err := u.breaker.Allow()
	if err != nil {
		u.refuse(w, r, "open", http.StatusServiceUnavailable, fmt.Sprintf(
			"is not asked for up to %s, since it failed %d times in a row: %s", coolDown, tripAfter, u.failure()))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), u.timeout)
	defer cancel()
	f := &forward{upstream: u, caller: r, began: time.Now()}
	// Also when the copy of a body breaks off, which ends in a panic that the server knows.
	defer func() { done(f.end()) }()
	f.serve(ctx, w)
}

// refuse answers in words, without having asked.
func (u *upstream) refuse(w http.ResponseWriter, r *http.Request, outcome string, code int32, message string) {
	u.metrics.requests.WithLabelValues(u.group, outcome).Inc()
	u.answer(w, r, code, message)
}

func (u *upstream) answer(w http.ResponseWriter, r *http.Request, code int32, message string) {
	responsewriters.ErrorNegotiated(&apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reasons[code],
		Message: "this is not Sluice's, and upstream " + u.service.String() + " " + oneLine(message),
	}}, apiserver.Codecs, custommetrics.SchemeGroupVersion, w, r)
}

var reasons = map[int32]metav1.StatusReason{
	http.StatusNotFound:           metav1.StatusReasonNotFound,
	http.StatusServiceUnavailable: metav1.StatusReasonServiceUnavailable,
	http.StatusBadGateway:         "BadGateway",
	http.StatusLoopDetected:       "LoopDetected",
}

// forward is one read that is forwarded.
type forward struct {
	upstream *upstream
	caller   *http.Request
	began    time.Time
	code     int // of the upstream's answer; 0 for none
	// failed is why the upstream is to be thought broken; nil if it answered, whatever it said.
	failed error
}

// serve asks the upstream, and passes its answer on. httputil.ReverseProxy passes on more than that: informational
// answers, of which the generic API server takes the first for the answer itself, and trailers.
func (f *forward) serve(ctx context.Context, w http.ResponseWriter) {
	r, err := f.request(ctx)
	if err != nil {
		f.explain(w, err)
		return
	}
	resp, err := f.upstream.transport.RoundTrip(r)
	if err != nil {
		f.explain(w, err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	f.code = resp.StatusCode
	if refused := f.check(resp); refused != nil {
		f.upstream.answer(w, f.caller, refused.code, refused.message)
		return
	}
	for _, name := range returnedHeaders {
		if values := resp.Header.Values(name); len(values) > 0 {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, &boundedBody{Reader: resp.Body, forward: f, left: maxUpstreamBody}); err != nil {
		panic(http.ErrAbortHandler) // the header has said that all is well
	}
}

// request is what the upstream gets: the path for which the caller was authorized, as it was understood here.
func (f *forward) request(ctx context.Context) (*http.Request, error) {
	asked := url.URL{
		Scheme: "https", Host: f.upstream.service.address(),
		Path: f.caller.URL.Path, RawQuery: f.caller.URL.Query().Encode(),
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, asked.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set(viaHeader, Service)
	for _, name := range forwardedHeaders {
		if values := f.caller.Header.Values(name); len(values) > 0 {
			r.Header[name] = values
		}
	}
	return r, nil
}

// refusal is an answer of the upstream that is put into other words.
type refusal struct {
	code    int32
	message string
}

// check looks at the upstream's answer before any of it is passed on; nil lets it pass.
func (f *forward) check(resp *http.Response) *refusal {
	kubernetes := isAPI(resp.Header.Get("Content-Type"))
	switch {
	case resp.ContentLength > maxUpstreamBody:
		return &refusal{http.StatusBadGateway, fmt.Sprintf("answers with more than %d MiB", maxUpstreamBody>>20)}
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return &refusal{http.StatusBadGateway, "refuses Sluice's own credentials, allow Sluice's ServiceAccount to read its " +
			"metrics: " + words(resp)}
	case resp.StatusCode >= http.StatusInternalServerError:
		if !kubernetes {
			// An answer in the API's own form is an answer, be it of one metric that cannot be had now. This is not.
			f.failed = fmt.Errorf("it answers %s", resp.Status)
		}
		code := int32(http.StatusBadGateway)
		if resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusLoopDetected {
			code = int32(resp.StatusCode)
		}
		return &refusal{code, "answers " + words(resp)}
	case resp.StatusCode != http.StatusOK && resp.StatusCode < http.StatusBadRequest, !kubernetes:
		return &refusal{http.StatusBadGateway, fmt.Sprintf("is no metrics API: it answers %s with content type %q",
			resp.Status, resp.Header.Get("Content-Type"))}
	}
	return nil
}

// words are those of an answer that is an error.
func words(resp *http.Response) string {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxUpstreamStatus))
	if err == nil && resp.Header.Get("Content-Encoding") == "" {
		if object, _, err := apiserver.Codecs.UniversalDeserializer().Decode(body, nil, nil); err == nil {
			if status, ok := object.(*metav1.Status); ok && status.Message != "" {
				return strconv.Itoa(resp.StatusCode) + ": " + status.Message
			}
		}
	}
	return resp.Status
}

// explain answers instead of the upstream, which did not.
func (f *forward) explain(w http.ResponseWriter, err error) {
	u := f.upstream
	var timeout net.Error
	f.failed = err
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		f.failed = fmt.Errorf("it did not answer within %s: %w", u.timeout, context.DeadlineExceeded)
	}
	u.answer(w, f.caller, http.StatusServiceUnavailable, "cannot be asked: "+f.failed.Error())
}

// end notes what became of it, and returns what the breaker is to think.
func (f *forward) end() error {
	u, outcome := f.upstream, strconv.Itoa(f.code)
	switch {
	case f.caller.Context().Err() != nil: // whatever came then, if only of the connection's being closed
		outcome, f.failed = "canceled", context.Canceled
	case f.failed == nil:
	case errors.Is(f.failed, context.DeadlineExceeded):
		outcome = "timeout"
	case f.code < http.StatusInternalServerError:
		outcome = "error"
	}
	u.metrics.requests.WithLabelValues(u.group, outcome).Inc()
	u.metrics.duration.WithLabelValues(u.group).Observe(time.Since(f.began).Seconds())
	if f.failed != nil && outcome != "canceled" {
		u.lastFailure.Store(new(oneLine(f.failed.Error())))
	}
	return f.failed
}

// boundedBody breaks an answer off that is too long, and notes one that breaks off by itself: that one is a failure,
// while of the other there is less for who asks for less.
type boundedBody struct {
	io.Reader
	forward *forward
	left    int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > b.left {
		return b.left, fmt.Errorf("it answers with more than %d MiB", maxUpstreamBody>>20)
	}
	b.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		b.forward.failed = fmt.Errorf("its answer broke off: %w", err)
	}
	return n, err
}

// isAPI tells whether contentType is one that Kubernetes API servers answer with.
func isAPI(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	switch strings.TrimSpace(media) {
	case "application/json", "application/vnd.kubernetes.protobuf", "application/yaml", "application/cbor":
		return true
	}
	return false
}
