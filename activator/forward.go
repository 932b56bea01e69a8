package activator

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// proxy takes requests whose function is known, counts them, holds them where there is no pod, and forwards them.
// There is one, with one Transport and one ReverseProxy, whatever the number of functions.
type proxy struct {
	log          logr.Logger
	metrics      *metrics
	waker        waker
	maxHeld      int
	patchTimeout time.Duration

	transport *http.Transport
	reverse   *httputil.ReverseProxy

	draining atomic.Bool    // answers ask clients to close their connections
	held     atomic.Int64   // requests held for all functions
	active   atomic.Int64   // requests in serve, upgraded connections included
	wakers   sync.WaitGroup // see ensureWaker
}

// idleConnTimeout is how long a connection to a pod is kept for the next request. Many servers close idle connections
// after 5 s (Node's default); a request without idempotence, sent on a connection that the pod is just closing, fails
// and must not be sent again. So the gate closes first.
const idleConnTimeout = 4 * time.Second

func newProxy(log logr.Logger, m *metrics, w waker, o Options) *proxy {
	p := &proxy{log: log, metrics: m, waker: w, maxHeld: o.MaxHeld, patchTimeout: o.PatchTimeout}
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}
	p.transport = &http.Transport{
		// No Proxy: pods are dialled directly, whatever the environment says.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
		DisableCompression:     true, // bodies pass untouched
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        idleConnTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper{p},
		ModifyResponse: p.modifyResponse,
		ErrorHandler:   p.answerError,
		BufferPool:     &bufferPool{},
		ErrorLog:       netLog(log),
	}
	return p
}

// exchange is one request on its way.
type exchange struct {
	fn         *function
	gated      bool // came by a gate port
	start      time.Time
	held       time.Duration
	bodyUnread bool        // there is a body, and nothing of it was read
	bodyBroken atomic.Bool // the client's body ended in an error; set by the Transport's writer
	pod        *pod        // that has the request, nil before one has
	dialErr    error       // of the last dial that failed
	outcome    outcome
	remaining  int64 // bytes of the answer to come, where the pod told its length
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// serve answers r for fn. It returns when the last byte is out.
func (p *proxy) serve(w http.ResponseWriter, r *http.Request, fn *function, gated bool) {
	p.active.Add(1)
	ex := &exchange{fn: fn, gated: gated, start: fn.stats.start()}
	returned := false
	defer func() { //nolint:contextcheck // the request's context is what it asks
		if !returned {
			// ReverseProxy aborts an answer that it could not copy to its end by a panic, which net/http expects.
			ex.outcome = p.brokenOff(r.Context())
		}
		if ex.pod != nil {
			ex.pod.inFlight.Add(-1)
		}
		fn.stats.finish(ex.outcome)
		p.active.Add(-1)
	}()
	if slices.Contains(r.Header[headerVia], fn.name) {
		// An endpoint that leads back here would have the gate forward to itself without end.
		ref := refuseLoop(fn)
		ex.outcome = ref.outcome
		ref.write(w, 0)
		returned = true
		return
	}
	if r.ContentLength != 0 {
		// Else the server takes what is left of the body away from the Transport when the answer begins, and an answer
		// that depends on the rest of the request never comes. Not every writer has it; a server's has.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	// net/http guesses a Content-Type where a pod gives none; with the key present it leaves that be.
	w.Header()["Content-Type"] = nil
	p.reverse.ServeHTTP(streamWriter{w, ex}, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, ex)))
	returned = true
}

// brokenOff tells on whose account an answer that had begun did not reach its end.
func (p *proxy) brokenOff(ctx context.Context) outcome {
	switch {
	case errors.Is(context.Cause(ctx), errStopping):
		return outcomeStopping
	case ctx.Err() != nil:
		return outcomeClientGone
	default:
		return outcomeUpstreamError
	}
}

// rewrite leaves the request as it came: the function must not see a difference between the gate and its own Service.
// Only X-Forwarded-For and Sluice-Via grow, and the companions of the former are added where they are missing.
func rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	for _, h := range [...]string{"Forwarded", "X-Forwarded-For"} {
		if v, ok := in.Header[h]; ok {
			out.Header[h] = v
		}
	}
	pr.SetXForwarded()
	for _, h := range [...]string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := in.Header[h]; ok {
			out.Header[h] = v
		}
	}
	out.URL.RawQuery = in.URL.RawQuery // ReverseProxy drops parameters that Go cannot parse
	out.Header[headerVia] = append(slices.Clip(in.Header[headerVia]), exchangeOf(in.Context()).fn.name)
	// The server fills in.Trailer at the end of the body, just before the Transport sends out.Trailer; ReverseProxy
	// copies the map and so would send none.
	out.Trailer = in.Trailer
}

// roundTripper is what ReverseProxy sends by: it finds a pod, waits for one, and tries another where nothing was sent.
type roundTripper struct{ p *proxy }

// RoundTrip sends req, which is ReverseProxy's own copy and may be changed. It tries each ready pod once, as long as
// they cannot be dialled; then it holds the request until one may be tried again. Once a connection stood, the
// request is never tried again here. (net/http itself repeats a request on a kept connection that the pod had closed,
// if the method is idempotent and there is no body; RFC 9110, 9.2.2.)
func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	ex := exchangeOf(ctx)
	if req.Body != nil {
		req.Body = &attemptBody{body: req.Body, broken: &ex.bodyBroken}
		ex.bodyUnread = true
	}
	req.URL.Scheme = "http"
	var tried []*pod
	for {
		pod := ex.fn.pods.Load().pick(tried)
		if pod == nil {
			if err := t.p.hold(ctx, ex); err != nil {
				return nil, err
			}
			tried = tried[:0]
			continue
		}
		res, err := t.p.try(req, ex, pod)
		if !isDialError(err) || ctx.Err() != nil {
			return res, err
		}
		ex.dialErr = err
		pod.refused(time.Now())
		if tried = append(tried, pod); time.Since(ex.start) > ex.fn.object.Load().HoldTimeout() {
			return nil, refuseDial(ex)
		}
	}
}

// try sends req to pod.
func (p *proxy) try(req *http.Request, ex *exchange, pod *pod) (*http.Response, error) {
	ex.pod = pod
	pod.inFlight.Add(1)
	req.URL.Host = pod.address
	start := time.Now()
	res, err := p.transport.RoundTrip(req)
	switch {
	case isDialError(err):
		ex.pod = nil
		pod.inFlight.Add(-1)
	case err == nil && ex.held > 0:
		p.metrics.coldStart.WithLabelValues("hold").Observe(ex.held.Seconds())
		p.metrics.coldStart.WithLabelValues("first_byte").Observe(time.Since(start).Seconds())
	}
	return res, err
}

func (p *proxy) modifyResponse(res *http.Response) error {
	ex := exchangeOf(res.Request.Context())
	ex.remaining = res.ContentLength
	setColdStart(res.Header, ex.held)
	// In mode Direct a pod that answers means that the Service leads to pods again. A client that kept its connection
	// would stay with the gate for good.
	direct := ex.gated && !ex.fn.object.Load().IsProxied()
	if (direct || p.draining.Load()) && res.StatusCode != http.StatusSwitchingProtocols {
		res.Header.Set("Connection", "close")
	}
	return nil
}

// answerError turns an error of RoundTrip into the gate's own answer. Errors become HTTP only here.
func (p *proxy) answerError(w http.ResponseWriter, r *http.Request, err error) {
	ctx := r.Context()
	ex := exchangeOf(ctx)
	var ref *refusal
	switch {
	case errors.As(err, &ref):
	case errors.Is(context.Cause(ctx), errStopping):
		ref = refuseStopping(ex.fn)
	case ctx.Err() != nil, errors.Is(err, errClientGone), ex.bodyBroken.Load():
		ref = refuseClient(ex.fn)
	default:
		p.log.V(1).Info("a pod broke off", "namespace", ex.fn.key.Namespace, "function", ex.fn.key.Name, "err", err.Error())
		ref = refuseUpstream(ex)
	}
	ex.outcome = ref.outcome
	if p.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	ref.write(w, ex.held)
}

// waitInactive waits until no request is in serve. It is for the drain, when no new ones can come: it looks, so that
// the warm path pays for one atomic counter and no more.
func (p *proxy) waitInactive(ctx context.Context) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for p.active.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// dialError marks an error before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func isDialError(err error) bool {
	var de *dialError
	return errors.As(err, &de)
}

// attemptBody is the client's body, lent to one attempt after another. The Transport closes the body it is given when
// a dial fails, which must not end the body for the next attempt; the server closes it after the handler.
type attemptBody struct {
	body   io.Reader
	broken *atomic.Bool
}

func (b *attemptBody) Read(buf []byte) (int, error) {
	n, err := b.body.Read(buf)
	if err != nil && err != io.EOF {
		b.broken.Store(true)
	}
	return n, err
}

func (b *attemptBody) Close() error { return nil }

// streamWriter passes on at once what a pod writes. ReverseProxy does so for answers of unknown length; this does it
// for the others, but leaves the last piece to the end of the request. ReverseProxy.FlushInterval -1 would flush header
// and body of each small answer on their own, which costs a third more processor time: BenchmarkWarm.
type streamWriter struct {
	http.ResponseWriter
	ex *exchange
}

func (w streamWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.ex.remaining -= int64(n); err == nil && w.ex.remaining > 0 {
		err = http.NewResponseController(w.ResponseWriter).Flush()
	}
	return n, err
}

// WriteHeader keeps the pod's own 100 Continue back: the server has one for the client, when the body is first read.
func (w streamWriter) WriteHeader(status int) {
	if status != http.StatusContinue {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Unwrap gives http.ResponseController what else the server's writer can do.
func (w streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const bufferSize = 32 << 10

// bufferPool is the buffers that answers are copied by. It keeps pointers to arrays, so that Put allocates nothing.
type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }
