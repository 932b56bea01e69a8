package activator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// proxy takes requests whose function is known, counts them, holds them where there is no pod, and forwards them.
// There is one, with one Transport and one ReverseProxy, whatever the number of functions.
type proxy struct {
	log          logr.Logger
	metrics      *metrics
	waker        waker
	podReader    podReader // nil for none: then no pod is probed ahead
	traces       *tracing  // nil while requests are not traced
	maxHeld      int
	patchTimeout time.Duration

	dial      func(ctx context.Context, network, address string) (net.Conn, error) // to a pod; errors are dialErrors
	transport *http.Transport                                                      // HTTP/1.1 to pods
	h2        *h2Client
	reverse   *httputil.ReverseProxy
	buffers   bufferPool
	pools     pools
	peers     *peers

	draining atomic.Bool    // answers ask clients to close their connections
	spares   spares         // connections of probes, for the first request of a pod
	probing  atomic.Int64   // probers that run
	scouts   atomic.Int64   // that run
	held     atomic.Int64   // requests held for all functions
	active   atomic.Int64   // requests in serve, upgraded connections included
	wakers   sync.WaitGroup // see ensureWaker
	patches  chan struct{}  // holds one for each patch under way

	mayNotScout sync.Once // is told
	noFiles     seldom    // is told
	noAccept    seldom    // is told, of servers of TCP
}

// idleConnTimeout is how long a connection to a pod is kept for the next request. Many servers close idle connections
// after 5 s (Node's default); a request without idempotence, sent on a connection that the pod is just closing, fails
// and must not be sent again. So the gate closes first.
const idleConnTimeout = 4 * time.Second

// dialKeepAlive is how long a connection to a pod is silent before TCP asks whether the pod is still there.
const dialKeepAlive = 30 * time.Second

func newProxy(log logr.Logger, m *metrics, w waker, o Options) *proxy {
	p := &proxy{log: log, metrics: m, waker: w, maxHeld: o.MaxHeld, patchTimeout: o.PatchTimeout}
	p.patches, p.peers = make(chan struct{}, maxPatches), newPeers(m, o)
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: dialKeepAlive}
	p.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if conn := p.spares.take(address, false); conn != nil {
			return conn, nil
		}
		var conn net.Conn
		var err error
		if admin, ok := adminOf(address); ok {
			handed, _ := ctx.Value(handedKey{}).(string)
			conn, err = p.peers.dial(ctx, admin, handed)
		} else {
			conn, err = dialer.DialContext(ctx, network, address)
		}
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	dialHTTP1 := func(ctx context.Context, network, address string) (net.Conn, error) {
		if conn := p.spares.take(address, true); conn != nil {
			return conn, nil
		}
		return p.dial(ctx, network, address)
	}
	p.transport = &http.Transport{
		// No Proxy: pods are dialled directly, whatever the environment says.
		DialContext:            dialHTTP1,
		DisableCompression:     true, // bodies pass untouched
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        idleConnTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
	p.h2 = newH2Client(p.transport, p.dial, o.DialTimeout)
	p.pools.dial, p.pools.open = dialHTTP1, map[*podConns]bool{}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper{p},
		ModifyResponse: p.modifyResponse,
		ErrorHandler:   p.answerError,
		BufferPool:     &p.buffers,
		ErrorLog:       netLog(log),
	}
	return p
}

// close ends the connections to pods that wait for a request.
func (p *proxy) close() {
	p.spares.close()
	p.transport.CloseIdleConnections()
	p.h2.close()
	p.pools.close()
	p.peers.close()
}

// exchange is one request on its way.
type exchange struct {
	fn         *function
	gate       *gate               // by which it came, nil for the shared door
	grpc       bool                // is a call of gRPC
	client     http.ResponseWriter // the server's
	request    *http.Request       // the server's; nil for TCP
	start      time.Time
	hops       int // how often it was handed on before it came here; see handon.go
	held       time.Duration
	bodyUnread bool         // there is a body, and nothing of it was read
	body       *attemptBody // the client's, if it has one and speaks HTTP/1.1
	bodyBroken atomic.Bool  // the client's body ended in an error; set by who sends it to the pod
	bodyCut    atomic.Bool  // the gate ended the client's body, because the pod was gone
	pod        *pod         // that has the request, nil before one has
	tried      []*pod       // that could not be dialled since it was last held
	dialErr    error        // of the last dial that failed
	outcome    outcome
	status     int   // of the answer
	remaining  int64 // bytes of it to come, where the pod told its length

	static   *v1alpha1.StaticAnswer   // of a request that is no traffic: it neither counts nor wakes
	refused  *refusal                 // once the request is on its way to the fallback: why no pod of the function has it
	fallback *v1alpha1.FallbackStatus // with refused
	spans    *spans                   // nil while requests are not traced

	mu   sync.Mutex // protects following
	over bool       // the handler has returned, and client is another request's by now
}

// end says that the handler returns. Who closes the client's body afterwards, as net/http's client does in a goroutine of
// its own, leaves the client alone.
func (ex *exchange) end() {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.over = true
}

// cutBody ends the read of the client's body that is under way, unless the handler has returned.
func (ex *exchange) cutBody(gone <-chan struct{}) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.over {
		return
	}
	select {
	case <-gone:
	default:
		ex.bodyCut.Store(true) // the server calls the client gone from now on, which is not so
	}
	// Writers that cannot do it are none of a server's.
	_ = http.NewResponseController(ex.client).SetReadDeadline(time.Unix(1, 0))
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// serve answers r for fn, which came by a gate, or by the shared door if that is nil. It returns when the last byte is out.
func (p *proxy) serve(w http.ResponseWriter, r *http.Request, fn *function, by *gate) {
	ex := &exchange{fn: fn, gate: by, static: staticFor(fn.object.Load(), r)}
	if ex.static == nil {
		ex.start = fn.stats.start()
	} else {
		ex.start = time.Now()
	}
	p.serveExchange(w, r, ex)
}

// serveExchange answers r. If it was handed on, whoever has done that counts it.
func (p *proxy) serveExchange(w http.ResponseWriter, r *http.Request, ex *exchange) {
	forward := p.serveAny
	if isPlain(r) && podProtocol(ex.fn.object.Load(), r) == v1alpha1.PodHTTP1 {
		forward = p.servePlain
	}
	p.serveBy(w, r, ex, forward)
}

func (p *proxy) serveBy(w http.ResponseWriter, r *http.Request, ex *exchange, forward func(http.ResponseWriter, *http.Request, *exchange)) {
	p.active.Add(1)
	ex.grpc, ex.client, ex.request = isGRPC(r), w, r
	if p.traces != nil && ex.static == nil {
		ex.spans = p.traces.begin(ex)
	}
	returned := false
	defer func() { //nolint:contextcheck // the request's context is what it asks
		if !returned {
			// ReverseProxy aborts an answer that it could not copy to its end by a panic, which net/http expects.
			ex.outcome = ex.brokenOff(r.Context())
		}
		p.finish(ex)
		ex.end()
		p.active.Add(-1)
	}()
	if ref := refuseOutright(r, ex); ref != nil {
		ex.refuse(w, ref)
		returned = true
		return
	}
	// net/http guesses a Content-Type where a pod gives none; with the key present it leaves that be.
	w.Header()["Content-Type"] = nil
	forward(w, r, ex)
	returned = true
}

// finish counts that ex is over.
func (p *proxy) finish(ex *exchange) {
	if ex.pod != nil {
		ex.fn.leave(ex.pod)
	}
	if ex.spans != nil {
		ex.spans.end(ex)
	}
	if ex.hops == 0 && ex.static == nil {
		ex.fn.stats.finish(ex.outcome)
	}
}

// refuseOutright is the answer to a request that is not to be held or forwarded at all, or nil.
func refuseOutright(r *http.Request, ex *exchange) *refusal {
	if ex.hops == 0 && slices.Contains(r.Header[headerVia], ex.fn.name) {
		// An endpoint that leads back here would have the gate forward to itself without end.
		return refuseLoop(ex.fn)
	}
	if what := unfit(r); what != "" {
		return refuseUnfit(ex.fn, what)
	}
	return nil
}

// serveAny forwards any request.
func (p *proxy) serveAny(w http.ResponseWriter, r *http.Request, ex *exchange) {
	if r.ContentLength != 0 {
		// Else the server takes what is left of the body away from the Transport when the answer begins, and an answer
		// that depends on the rest of the request never comes. Not every writer has it; a server's has.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, ex))
	if ex.grpc {
		w.Header()["Content-Length"] = nil // nor a length of an answer of trailers only
		returned := false
		defer p.endGRPC(w, r, ex, &returned)
		p.reverse.ServeHTTP(streamWriter{w, ex}, r)
		returned = true
		return
	}
	p.reverse.ServeHTTP(streamWriter{w, ex}, r)
}

// endGRPC gives an answer of gRPC that broke off on the pod's or the gate's account a status, in place of the panic by
// which ReverseProxy has the stream reset.
func (p *proxy) endGRPC(w http.ResponseWriter, r *http.Request, ex *exchange, returned *bool) {
	if *returned {
		return
	}
	switch ex.outcome = ex.brokenOff(r.Context()); ex.outcome {
	case outcomeStopping:
		refuseStopping(ex.fn).breakOffGRPC(w)
	case outcomeUpstreamError:
		refuseUpstream(ex).breakOffGRPC(w)
	default:
		return
	}
	if reason := recover(); reason != http.ErrAbortHandler { //nolint:errorlint // what a panic carries is no chain
		panic(reason)
	}
	*returned = true
}

// brokenOff tells on whose account an answer that had begun did not reach its end.
func (ex *exchange) brokenOff(ctx context.Context) outcome {
	switch {
	case errors.Is(context.Cause(ctx), errStopping):
		return outcomeStopping
	case ctx.Err() != nil && !ex.bodyCut.Load():
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
	ex := exchangeOf(in.Context())
	if ex.hops == 0 { // else the activator that the client came to has done it
		pr.SetXForwarded()
		out.Header[headerVia] = append(slices.Clip(in.Header[headerVia]), ex.fn.name)
	}
	for _, h := range [...]string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := in.Header[h]; ok {
			out.Header[h] = v
		}
	}
	out.URL.RawQuery = in.URL.RawQuery // ReverseProxy drops parameters that Go cannot parse
	// The server fills in.Trailer at the end of the body, just before the Transport sends out.Trailer; ReverseProxy
	// copies the map and so would send none.
	out.Trailer = in.Trailer
}

// roundTripper is what ReverseProxy sends by: it finds a pod, waits for one, and tries another, or the fallback, where
// nothing was sent.
type roundTripper struct{ p *proxy }

// RoundTrip sends req, which is ReverseProxy's own copy and may be changed.
func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	ex := exchangeOf(ctx)
	if req.Body != nil {
		body := &attemptBody{body: req.Body, ex: ex}
		req.Body = body
		if req.ProtoMajor == 1 {
			ex.body = body
		}
		// An HTTP/2 server tells of a client that is gone whether its body is read or not.
		ex.bodyUnread = req.ProtoMajor == 1
	}
	req.URL.Scheme = "http"
	body := req.Body
	if ex.refused == nil {
		speak := podProtocol(ex.fn.object.Load(), req)
		if ref := adaptUpgrade(req, ex.fn, speak); ref != nil {
			return nil, ref
		}
		res, err := t.p.reach(ctx, ex, func(pod *pod) (*http.Response, error) { return t.p.send(req, pod, speak, ex) })
		if !ex.fallsBack(err) {
			return res, err
		}
	}
	req.Body = body // and not what was lent of it
	return t.p.fallBack(req, ex)
}

func (p *proxy) modifyResponse(res *http.Response) error {
	p.adorn(res, exchangeOf(res.Request.Context()))
	return nil
}

// adorn adds to a pod's answer what the gate has to say.
func (p *proxy) adorn(res *http.Response, ex *exchange) {
	ex.status, ex.remaining = res.StatusCode, res.ContentLength
	setColdStart(res.Header, ex.held)
	// In mode Direct a pod that answers means that the Service leads to pods again. A client that kept its connection
	// would stay with the gate for good.
	direct := ex.gate != nil && ex.refused == nil && !ex.fn.object.Load().IsProxied()
	if (direct || p.isLast(ex)) && res.StatusCode != http.StatusSwitchingProtocols {
		res.Header.Set("Connection", "close")
	}
}

// isLast tells whether ex's connection must take no other request after it.
func (p *proxy) isLast(ex *exchange) bool {
	return p.draining.Load() || (ex.gate != nil && ex.gate.leaving.Load()) || ex.midBody()
}

// midBody tells whether the end of the client's body was not seen. The server reads on to it only after it has stopped its
// own read of the connection, as EnableFullDuplex has it, and then waits for what follows twice at the same time, so that the
// next request fails. And it goes on even where what it reads are no chunks: at a place that the client chose. So that
// connection must end with the answer.
func (ex *exchange) midBody() bool { return ex.body != nil && !ex.body.wasEnded() }

func (p *proxy) answerError(w http.ResponseWriter, r *http.Request, err error) {
	p.answer(w, r, exchangeOf(r.Context()), err)
}

// answer turns an error of reach into the gate's own answer. Errors become HTTP only here.
func (p *proxy) answer(w http.ResponseWriter, r *http.Request, ex *exchange, err error) {
	ctx := r.Context()
	var ref *refusal
	switch {
	case errors.As(err, &ref):
	case errors.Is(context.Cause(ctx), errStopping):
		ref = refuseStopping(ex.fn)
	case errors.Is(err, errNotHTTP2):
		ref = refuseNotHTTP2(ex.fn)
	case ctx.Err() != nil && !ex.bodyCut.Load(), errors.Is(err, errClientGone), ex.bodyBroken.Load():
		ref = refuseClient(ex.fn)
	default:
		p.log.V(1).Info("a pod broke off", "namespace", ex.fn.key.Namespace, "function", ex.fn.key.Name, "err", err.Error())
		ref = refuseUpstream(ex)
		if ex.grpc {
			ref.grpc = grpcReset(err, time.Since(ex.start), r.Header.Get("Grpc-Timeout"))
		}
	}
	if p.isLast(ex) {
		w.Header().Set("Connection", "close")
	}
	if ref.askPods { // only now: nobody waits for it who gets another answer
		if said := p.podsSay(ex.fn); said != "" { //nolint:contextcheck // what they say serves all that are answered
			ref.sentence += "; " + said
		}
	}
	ex.refuse(w, ref)
}

// dialError marks an error before anything was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func isDialError(err error) bool {
	var de *dialError
	return errors.As(err, &de)
}
