package activator

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What Functions have the gate answer where it would hold or refuse a request: see Fallback, Placeholder and StaticAnswer
// of the API.

// canned is the body of an answer that a Function has written down.
type canned struct{ contentType, body string }

// unserved is the refusal in err if that says that no pod was found for a request: nothing of it was sent to anybody, and
// nothing of its body was read. nil for other errors, and for none.
func unserved(err error) *refusal {
	if err == nil {
		return nil
	}
	if ref, ok := errors.AsType[*refusal](err); ok {
		switch ref.outcome { //nolint:exhaustive // all others are about something else
		case outcomeQueueFull, outcomeHoldTimeout, outcomeDialFailed:
			return ref
		}
	}
	return nil
}

// onlyReads tells whether r asks for nothing but to be shown something, so that an answer in place of the function's own
// does no harm: what does something must never be told that it was done, nor be given up before it has to be.
func onlyReads(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	to := r.Header.Get("Upgrade")
	return to == "" || strings.EqualFold(to, "h2c") // which is only an offer
}

// staticFor is what obj has the gate answer to r while there is no pod; nil for nothing.
func staticFor(obj *v1alpha1.Function, r *http.Request) *v1alpha1.StaticAnswer {
	if len(obj.Spec.Activation.Static) == 0 || !onlyReads(r) {
		return nil
	}
	return obj.Spec.Activation.StaticFor(hostName(r.Host), r.URL.Path)
}

// answerStatic is the answer of a Function's own to a request that wakes nobody.
func (p *proxy) answerStatic(fn *function, s *v1alpha1.StaticAnswer) *refusal {
	p.metrics.statics.Inc()
	return &refusal{
		status: cmp.Or(int(s.Status), http.StatusOK), reason: "Static", function: fn.name,
		sentence: "answered by spec.activation.static",
		canned:   &canned{cmp.Or(s.ContentType, "text/plain; charset=utf-8"), s.Body},
	}
}

// placeholderFor is what obj has the gate answer in place of holding the request of ex; nil for nothing.
func placeholderFor(obj *v1alpha1.Function, ex *exchange) *v1alpha1.Placeholder {
	page := obj.Spec.Activation.Placeholder
	if page == nil || ex.request == nil || !onlyReads(ex.request) {
		return nil
	}
	return page
}

// answerPlaceholder has the function woken though nobody waits for it, and returns what to answer meanwhile.
func (p *proxy) answerPlaceholder(fn *function, obj *v1alpha1.Function, page *v1alpha1.Placeholder) *refusal {
	if !fn.queue.want(time.Now().Add(obj.HoldTimeout())) {
		return refuseDeleted(fn)
	}
	p.ensureWaker(fn)
	return &refusal{
		status: cmp.Or(int(page.Status), http.StatusServiceUnavailable), outcome: outcomePlaceholder, reason: "Placeholder", function: fn.name,
		sentence: "answered by spec.activation.placeholder", retryAfter: retryCold,
		canned: &canned{cmp.Or(page.ContentType, "text/html; charset=utf-8"), page.Body},
	}
}

// writeCanned answers as the Function has it.
func (r *refusal) writeCanned(w http.ResponseWriter, held time.Duration) {
	h := w.Header()
	h.Set(headerReason, r.reason)
	if r.retryAfter > 0 {
		h.Set("Retry-After", retryAfter(r.retryAfter))
		h.Set("Cache-Control", "no-store") // it stands for another answer, whatever its status
	}
	setColdStart(h, held)
	if r.canned.body != "" {
		h.Set("Content-Type", r.canned.contentType)
		h.Set("Content-Length", strconv.Itoa(len(r.canned.body)))
	}
	w.WriteHeader(r.status)
	if r.canned.body != "" {
		_, _ = w.Write([]byte(r.canned.body)) // a client that went away is no concern
	}
}

// maxFallbackDials bounds the pods of a fallback that are tried for one request, which has waited for long already.
const maxFallbackDials = 3

// fallsBack tells whether the request of ex, which ended in err, is one for the function's fallback; it then is on its
// way there.
func (ex *exchange) fallsBack(err error) bool {
	ref := unserved(err)
	if ref == nil {
		return false
	}
	to := ex.fn.object.Load().Fallback()
	// A client of gRPC makes nothing of an answer in HTTP/1.1.
	if to == nil || (ex.grpc && v1alpha1.PodProtocolOf(to.AppProtocol) != v1alpha1.PodH2C) {
		return false
	}
	ex.refused, ex.fallback = ref, to
	return true
}

// fallBack sends req, for which no pod was found, to a pod of the function's fallback. Where that has none either, the
// answer is what it would have been without.
func (p *proxy) fallBack(req *http.Request, ex *exchange) (*http.Response, error) {
	speak := v1alpha1.PodProtocolOf(ex.fallback.AppProtocol)
	if ref := adaptUpgrade(req, ex.fn, speak); ref != nil {
		return nil, ex.refused
	}
	req.Header.Set(headerReason, ex.refused.reason)
	var tried []*pod
	pods := ex.fn.fallback.Load()
	for to := pods.pick(nil); to != nil && len(tried) < maxFallbackDials; to = pods.pick(tried) {
		to.inFlight.Add(1)
		res, err := p.try(ex, to, func(pod *pod) (*http.Response, error) { return p.send(req, pod, speak, ex) }) //nolint:contextcheck // the exchange has it
		switch {
		case err == nil:
			ex.outcome = outcomeFallback
			res.Header.Set(headerFallback, ex.fallback.Service)
			res.Header.Set(headerReason, ex.refused.reason)
			return res, nil
		case !isDialError(err):
			return nil, err
		}
		ex.fn.leave(to)
		if req.Context().Err() != nil {
			return nil, err
		}
		if lacksFiles(err) {
			p.tellNoFiles(ex.fn, err)
			break
		}
		ex.fn.refused(to) //nolint:contextcheck // what may come of it is about the pod
		tried = append(tried, to)
	}
	ref := *ex.refused
	ref.sentence += "; no pod of its fallback, Service " + ex.fallback.Service + ", takes it either"
	return nil, &ref
}
