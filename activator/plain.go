package activator

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// isPlain tells whether r is of the many requests that servePlain forwards: HTTP/1 semantics without a body, without an
// upgrade and without a header that only a hop may read.
func isPlain(r *http.Request) bool {
	if r.ContentLength != 0 || (r.Body != nil && r.Body != http.NoBody) || r.Method == http.MethodConnect ||
		len(r.RequestURI) == 0 || r.RequestURI[0] != '/' || strings.IndexByte(r.Host, '%') >= 0 {
		return false
	}
	for _, k := range [...]string{"Upgrade", "Te", "Trailer", "Transfer-Encoding"} {
		if _, ok := r.Header[k]; ok {
			return false
		}
	}
	for _, v := range r.Header["Connection"] {
		if !strings.EqualFold(v, "keep-alive") && !strings.EqualFold(v, "close") {
			return false
		}
	}
	return true
}

// servePlain forwards what httputil.ReverseProxy and http.Transport forward too, in the same way, at half the cost: it
// writes the pod's request from the client's header without a copy of it, and reads the answer in the request's own
// goroutine, where a Transport has two more for each connection. A profile of warm requests had a third of the gate's
// time in these, in garbage and in waking them up. That is possible only where nothing of the client has to be sent
// while the answer may already come, so requests with a body go the other way.
func (p *proxy) servePlain(w http.ResponseWriter, r *http.Request, ex *exchange) {
	ctx := r.Context()
	var conn *podConn
	res, err := p.reach(ctx, ex, func(pod *pod) (res *http.Response, err error) { //nolint:bodyclose // the connection is released instead, below
		conn, res, err = p.sendPlain(w, r, ex, pod)
		return res, err
	})
	switch {
	case ex.fallsBack(err):
		p.serveAny(w, r, ex)
	case err != nil:
		p.answer(w, r, ex, err)
	default:
		p.passPlain(w, res, ex, conn)
	}
}

// passPlain passes on the answer that conn brings. It is not a part of servePlain because a request that is held has all of
// servePlain's variables on its stack, which must not outgrow 4 KiB; see TestStackOfAHeldRequest.
func (p *proxy) passPlain(w http.ResponseWriter, res *http.Response, ex *exchange, conn *podConn) {
	removeHopByHop(res.Header)
	p.adorn(res, ex)
	h := w.Header()
	maps.Copy(h, res.Header)
	announced := len(res.Trailer)
	if announced > 0 {
		h.Add("Trailer", strings.Join(slices.Collect(maps.Keys(res.Trailer)), ", "))
	}
	w.WriteHeader(res.StatusCode)
	err := p.copyPlain(w, res, ex)
	conn.release(conn.unwatch() && err == nil && !res.Close)
	if err != nil {
		panic(http.ErrAbortHandler) // which has net/http break the answer off; see serve
	}
	if len(res.Trailer) > 0 {
		writeTrailers(w, res.Trailer, announced)
	}
}

// sendPlain sends r to pod and returns the head of the answer, whose body conn brings. A request whose kept connection
// turns out to be closed before anything of an answer came is repeated on a new one if it may be, as http.Transport does.
func (p *proxy) sendPlain(w http.ResponseWriter, r *http.Request, ex *exchange, pod *pod) (*podConn, *http.Response, error) {
	ctx := r.Context()
	for again := false; ; again = true {
		conn, kept, err := pod.conns.get(ctx, &p.pools, pod.address, ex.start, again)
		if err != nil {
			return nil, nil, err
		}
		conn.watch(ctx)
		res, err := conn.exchange(w, r, ex, pod)
		if err == nil {
			return conn, res, nil
		}
		clean := conn.unwatch()
		conn.release(false)
		if !clean || !kept || conn.heard || !mayRepeat(r) {
			return nil, nil, err
		}
	}
}

// mayRepeat tells whether r, which has no body, may reach a pod twice (RFC 9110, 9.2.2). The methods are those for which
// http.Transport takes that for granted.
func mayRepeat(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	default:
		return false
	}
}

// copyPlain passes the answer's body on, at once where more is to come; see streamWriter.
func (p *proxy) copyPlain(w http.ResponseWriter, res *http.Response, ex *exchange) error {
	if res.Body == http.NoBody {
		return nil
	}
	stream := res.ContentLength < 0 || isEventStream(res.Header)
	if stream {
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
	}
	buf := p.buffers.Get()
	defer p.buffers.Put(buf)
	for {
		n, rerr := res.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if ex.remaining -= int64(n); stream || ex.remaining > 0 {
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			}
		}
		switch rerr {
		case nil:
		case io.EOF:
			return nil
		default:
			return rerr
		}
	}
}

func isEventStream(h http.Header) bool {
	v := h.Get("Content-Type")
	if !strings.HasPrefix(v, "text/") { // nearly all that is none
		return false
	}
	t, _, _ := mime.ParseMediaType(v)
	return t == "text/event-stream"
}

func writeTrailers(w http.ResponseWriter, trailer http.Header, announced int) {
	// Before the end, so that net/http does not count a small body and give its length, after which nothing may come.
	_ = http.NewResponseController(w).Flush()
	h := w.Header()
	for k, vv := range trailer {
		if len(trailer) != announced {
			k = http.TrailerPrefix + k
		}
		h[k] = append(h[k], vv...)
	}
}

// hopByHop are the headers that are for the next hop alone; RFC 2616, 13.5.1, as ReverseProxy has it.
var hopByHop = [...]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

func removeHopByHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, k := range hopByHop {
		delete(h, k)
	}
}

// exchange sends the head of r, as it is to reach the pod, and reads the head of the answer. Answers that are not final go to w.
func (c *podConn) exchange(w http.ResponseWriter, r *http.Request, ex *exchange, pod *pod) (*http.Response, error) {
	c.heard = false
	c.writeHead(r, ex, pod)
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	c.left = maxResponseHeader
	for {
		res, err := http.ReadResponse(c.r, r)
		switch {
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusSwitchingProtocols:
			return nil, errors.New("the pod switched protocols unasked")
		case res.StatusCode >= http.StatusOK:
			c.left = -1
			return res, nil
		case res.StatusCode != http.StatusContinue: // to which there is no body
			h := w.Header()
			maps.Copy(h, res.Header)
			w.WriteHeader(res.StatusCode)
			clear(h)
			h["Content-Type"] = nil // as serve has it
		}
	}
}

// writeHead writes the head of r for the pod: what rewrite and http.Transport would make of it. The server has checked
// that names and values are fit to be written.
func (c *podConn) writeHead(r *http.Request, ex *exchange, pod *pod) {
	w := c.w
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(r.URL.RequestURI())
	w.WriteString(" HTTP/1.1\r\n")
	writeField(w, "Host", cmp.Or(r.Host, pod.address))
	saysHost, proto := false, "http"
	if r.TLS != nil {
		proto = "https"
	}
	for k, vv := range r.Header {
		switch k {
		case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Content-Length", "Host",
			headerHandedOn:
			continue
		case "X-Forwarded-For":
			if ex.hops == 0 {
				continue // below
			}
		case "User-Agent":
			if len(vv) > 0 && vv[0] != "" {
				writeField(w, k, vv[0])
			}
			continue
		case "Traceparent", "Tracestate":
			if ex.spans.replaces(k) {
				continue
			}
		case "X-Forwarded-Host":
			saysHost = true
		case "X-Forwarded-Proto":
			proto = ""
		}
		for _, v := range vv {
			writeField(w, k, v)
		}
	}
	if pod.peer {
		writeField(w, headerHandedOn, ex.handedOn())
	}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && ex.hops == 0 {
		w.WriteString("X-Forwarded-For: ")
		for _, v := range r.Header["X-Forwarded-For"] {
			w.WriteString(v)
			w.WriteString(", ")
		}
		w.WriteString(ip)
		w.WriteString("\r\n")
	}
	if !saysHost && ex.hops == 0 {
		writeField(w, "X-Forwarded-Host", r.Host)
	}
	if proto != "" && ex.hops == 0 {
		writeField(w, "X-Forwarded-Proto", proto)
	}
	if ex.hops == 0 {
		writeField(w, headerVia, ex.fn.name)
	}
	if ex.spans != nil {
		writeField(w, "Traceparent", ex.spans.traceparent)
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		w.WriteString("Content-Length: 0\r\n")
	}
	w.WriteString("\r\n")
}

func writeField(w *bufio.Writer, name, value string) {
	w.WriteString(name)
	w.WriteString(": ")
	w.WriteString(value)
	w.WriteString("\r\n")
}
