package activator

import (
	"context"
	"net/http"
	"time"
)

// next returns a pod for ex, and counts ex there. While there is none that may be tried, it holds ex. Whoever got a pod has
// to leave it.
func (p *proxy) next(ctx context.Context, ex *exchange) (*pod, error) {
	fn := ex.fn
	for {
		s := fn.pods.Load()
		if s.share != nil {
			if pod := fn.takeUnlessOthersWait(ex.hops); pod != nil {
				return pod, nil
			}
		} else if pod := s.pick(ex.tried); pod != nil {
			pod.inFlight.Add(1)
			if fn.pods.Load().share == nil {
				return pod, nil
			}
			// There is a limit since a moment ago, and this request may not have been seen by who asked for it.
			fn.leave(pod)
			continue
		}
		pod, err := p.hold(ctx, ex)
		if pod != nil || err != nil {
			return pod, err
		}
		ex.tried = ex.tried[:0]
	}
}

// reach has a pod answer by send. It tries each ready pod once, as long as they cannot be dialled; then it holds the
// request until one may be tried again. Once a connection stood, the request is never tried again here. (On a kept
// connection that the pod had closed, net/http and sendPlain repeat a request if the method is idempotent and there is no
// body; RFC 9110, 9.2.2.)
func (p *proxy) reach(ctx context.Context, ex *exchange, send func(*pod) (*http.Response, error)) (*http.Response, error) {
	for {
		pod, err := p.next(ctx, ex)
		if err != nil {
			return nil, err
		}
		res, err := p.try(ex, pod, send) //nolint:contextcheck // the exchange has it
		if !isDialError(err) {
			return res, err
		}
		if err := p.notDialled(ctx, ex, pod, err); err != nil {
			return nil, err
		}
	}
}

// try has pod, at which ex is counted, answer by send.
func (p *proxy) try(ex *exchange, pod *pod, send func(*pod) (*http.Response, error)) (*http.Response, error) {
	ex.pod = pod
	start := time.Now()
	if ex.spans != nil {
		ex.spans.ask(ex, pod)
	}
	res, err := send(pod)
	if ex.spans != nil {
		ex.spans.answered(res, err)
	}
	switch {
	case isDialError(err):
		ex.pod = nil
	case err == nil && pod.peer:
		p.metrics.handedOn.Inc()
		ex.outcome = outcomeOf(res.Header)
	}
	if err == nil && ex.held > 0 && ex.hops == 0 && ex.refused == nil {
		p.metrics.coldStart.WithLabelValues("hold").Observe(ex.held.Seconds())
		p.metrics.coldStart.WithLabelValues("first_byte").Observe(time.Since(start).Seconds())
	}
	return res, err
}

// notDialled takes in that a dial of pod failed. Its error says that ex gets no other.
func (p *proxy) notDialled(ctx context.Context, ex *exchange, pod *pod, err error) error {
	defer ex.fn.leave(pod) // after it was set aside, or who waits would be sent there
	if ctx.Err() != nil {
		return err
	}
	if lacksFiles(err) {
		// The pod may be as well as ever, and any other would be as far away.
		p.tellNoFiles(ex.fn, err)
		return refuseNoFiles(ex)
	}
	ex.dialErr = err
	ex.fn.refused(pod) //nolint:contextcheck // what may come of it is about the pod
	ex.fn.queue.tell() // who waits may have this pod again after a while
	if ex.tried = append(ex.tried, pod); time.Since(ex.start) > ex.fn.object.Load().HoldTimeout() {
		return refuseDial(ex)
	}
	return nil
}
