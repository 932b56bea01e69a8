package activator

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// podProtocol is what the gate speaks to a pod of obj for req: what the Service port says, else HTTP/1.1. gRPC is h2c
// in that case too: it has no form in HTTP/1.1, so that a Service port which says nothing can mean nothing else.
func podProtocol(obj *v1alpha1.Function, req *http.Request) v1alpha1.PodProtocol {
	switch p := obj.PodProtocol(); {
	case p != v1alpha1.PodByRequest:
		return p
	case isGRPC(req):
		return v1alpha1.PodH2C
	default:
		return v1alpha1.PodHTTP1
	}
}

// send sends req to pod in the protocol that it speaks.
func (p *proxy) send(req *http.Request, pod *pod, speak v1alpha1.PodProtocol, ex *exchange) (*http.Response, error) {
	req.URL.Host = pod.address
	delete(req.Header, headerHandedOn)
	if pod.peer {
		req.Header[headerHandedOn] = []string{ex.handedOn()}
	}
	if ex.spans != nil {
		ex.spans.onto(req.Header)
	}
	switch speak {
	case v1alpha1.PodH2C:
		return p.h2.roundTrip(req, pod)
	case v1alpha1.PodTLS:
		return nil, refuseTLS(ex.fn)
	default:
		return p.transport.RoundTrip(req)
	}
}

// isGRPC tells whether r is a call of gRPC, whose client understands no other answer. gRPC-Web is none: its answers are
// ordinary ones of any HTTP version.
func isGRPC(r *http.Request) bool {
	if r.ProtoMajor != 2 {
		return false
	}
	rest, ok := strings.CutPrefix(r.Header.Get("Content-Type"), "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// adaptUpgrade takes out of the request what the pod's protocol has no form for. It returns a refusal where the request
// means nothing without it.
//
// h2c is never offered to a pod: its settings are hop-by-hop and gone, and a client that asks for it, as some do with
// each first request, may be answered in HTTP/1.1 (RFC 9113, 3.1).
func adaptUpgrade(req *http.Request, fn *function, speak v1alpha1.PodProtocol) *refusal {
	to := req.Header.Get("Upgrade")
	switch {
	case to == "":
	case strings.EqualFold(to, "h2c"):
		delete(req.Header, "Upgrade")
		delete(req.Header, "Connection")
	case speak == v1alpha1.PodH2C:
		return refuseUpgrade(fn, to)
	}
	return nil
}

// unfit tells what is wrong with a request that net/http lets through, or "": in HTTP/2 what would be another request when
// it is written as HTTP/1.1, or one without its body. In HTTP/1.1 net/http looks for all of that.
func unfit(r *http.Request) string {
	if to := r.Header.Get("Upgrade"); strings.IndexFunc(to, func(c rune) bool { return c < ' ' || c > '~' }) >= 0 {
		return fmt.Sprintf("the upgrade %.40q is none", to) // ReverseProxy would have it that the pod broke off
	}
	if r.ProtoMajor != 2 {
		return ""
	}
	switch {
	case !isToken(r.Method):
		return fmt.Sprintf("the method %.40q is none", r.Method)
	case !httpguts.ValidHostHeader(r.Host):
		return fmt.Sprintf("the authority %.253q is none", r.Host)
	}
	lengths := r.Header["Content-Length"]
	if len(lengths) == 0 {
		return ""
	}
	if n, err := strconv.ParseUint(lengths[0], 10, 63); err != nil || len(lengths) > 1 || r.ContentLength != int64(n) {
		return fmt.Sprintf("the content-length %.40q is none", strings.Join(lengths, ", "))
	}
	return ""
}

// isToken tells whether s is a token of RFC 9110, 5.6.2, as methods are.
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool { return !httpguts.IsTokenRune(c) }) < 0
}

// serverProtocols are what a door understands. Without TLS, HTTP/2 is taken from clients that know that it is there.
func serverProtocols(tls bool) *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetHTTP2(tls)
	p.SetUnencryptedHTTP2(!tls)
	return p
}

// Bounds of HTTP/2 from clients. What a client sends before anybody reads it is buffered by the gate: a request that is
// held buffers up to streamBuffer. The connection's buffer has room for that of all its streams, so that one whose pod
// does not read never stops the others.
const (
	streamsPerConn = 250
	streamBuffer   = 64 << 10
)

func serverHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          streamsPerConn,
		MaxReceiveBufferPerStream:     streamBuffer,
		MaxReceiveBufferPerConnection: streamsPerConn * streamBuffer,
	}
}

// Codes of gRPC.
const (
	grpcCancelled = 1 + iota
	grpcUnknown
	_
	grpcDeadlineExceeded
	_
	_
	grpcPermissionDenied
	grpcResourceExhausted
	_
	_
	_
	grpcUnimplemented
	grpcInternal
	grpcUnavailable
)

// grpcStatus is the code of gRPC that a client makes of an HTTP status (doc/http-grpc-status-mapping.md of gRPC).
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return grpcInternal
	case http.StatusForbidden:
		return grpcPermissionDenied
	case http.StatusNotFound, http.StatusNotImplemented:
		return grpcUnimplemented
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return grpcUnavailable
	default:
		return grpcUnknown
	}
}

// grpcReset is the code that a client would have made of err, by which a pod reset the stream of a call, had it been the
// pod's client itself (PROTOCOL-HTTP2.md of gRPC): servers end calls in that way whose timeout is over. 0 for Unavailable.
func grpcReset(err error, since time.Duration, timeout string) int {
	var reset streamError
	if !errors.As(err, &reset) {
		return 0
	}
	const cancel, enhanceYourCalm, inadequateSecurity = 8, 11, 12
	switch reset.Code {
	case cancel:
		if limit, ok := grpcTimeout(timeout); ok && since >= limit {
			return grpcDeadlineExceeded
		}
		return grpcCancelled
	case enhanceYourCalm:
		return grpcResourceExhausted
	case inadequateSecurity:
		return grpcPermissionDenied
	default:
		return 0
	}
}

// grpcTimeout reads the header grpc-timeout: up to eight digits and a unit.
func grpcTimeout(s string) (time.Duration, bool) {
	units := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	if time.Duration(n) > time.Duration(1<<63-1)/unit {
		return 1<<63 - 1, true
	}
	return time.Duration(n) * unit, true
}

// writeGRPC answers a call of gRPC with the refusal: an answer of trailers only, which HTTP/2 sends as one header block.
func (r *refusal) writeGRPC(w http.ResponseWriter, held time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h["Content-Length"] = nil // the server's guess, 0, would be one field more than gRPC servers send
	h.Set(headerReason, r.reason)
	h.Set("Grpc-Status", fmt.Sprint(cmp.Or(r.grpc, grpcStatus(r.status))))
	h.Set("Grpc-Message", grpcMessage(r.sentence))
	if r.retryAfter > 0 {
		h.Set("Grpc-Retry-Pushback-Ms", fmt.Sprint(r.retryAfter.Milliseconds())) // gRFC A6
	}
	setColdStart(h, held)
	w.WriteHeader(http.StatusOK)
}

// breakOffGRPC ends an answer that had begun and cannot be finished as gRPC ends one: with a status. Without it clients
// make an internal error of the broken stream, which they never try again.
func (r *refusal) breakOffGRPC(w http.ResponseWriter) {
	h := w.Header()
	for _, k := range [...]string{"Grpc-Status", "Grpc-Message"} {
		h.Del(k)
		h.Del(http.TrailerPrefix + k)
	}
	h.Set(http.TrailerPrefix+"Grpc-Status", fmt.Sprint(grpcStatus(r.status)))
	h.Set(http.TrailerPrefix+"Grpc-Message", grpcMessage(r.sentence))
}

// grpcMessage encodes a message as gRPC's PROTOCOL-HTTP2.md has it: percent-encoded but for printable ASCII.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
