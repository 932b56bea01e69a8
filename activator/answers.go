package activator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of the gate's own.
const (
	headerReason    = "Sluice-Reason"     // why the gate answered by itself
	headerColdStart = "Sluice-Cold-Start" // how long the request was held
	headerProbe     = "Sluice-Probe"      // asks a gate port whose it is; see gateHandler
	headerGate      = "Sluice-Gate"       // the answer to that: namespace/name
	headerVia       = "Sluice-Via"        // the functions whose gates the request has come through
	headerFallback  = "Sluice-Fallback"   // the Service whose pod answered in place of the function's
)

// refusal is an answer that the gate gives by itself. As an error it travels from where it was decided to the one
// place that writes answers.
type refusal struct {
	status     int
	grpc       int // status of gRPC, 0 for the one that belongs to status
	outcome    outcome
	reason     string        // one CamelCase word
	sentence   string        // for a human: what happened, and what to do
	retryAfter time.Duration // 0 for none
	function   string        // namespace/name, empty when it is not known
	canned     *canned       // what the Function has for an answer, nil for the gate's own
	askPods    bool          // what the function's pods say belongs to the sentence
}

// When to send a request again: that found the queue full, or was not held; that was held as long as it may be.
const (
	retryCold = 2 * time.Second
	retryLate = 5 * time.Second
)

func retryAfter(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

func (r *refusal) Error() string { return r.sentence }

// write answers with the refusal, in the form that gRPC has for errors if the request was a call of gRPC. held is how
// long the request waited, 0 for not at all.
func (r *refusal) write(w http.ResponseWriter, held time.Duration, grpc bool) {
	if grpc {
		r.writeGRPC(w, held)
		return
	}
	if r.canned != nil {
		r.writeCanned(w, held)
		return
	}
	body, err := json.Marshal(struct {
		Error    string `json:"error"`
		Reason   string `json:"reason"`
		Function string `json:"function,omitempty"`
	}{r.sentence, r.reason, r.function})
	if err != nil {
		// Three strings always marshal.
		http.Error(w, r.sentence, r.status)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set(headerReason, r.reason)
	if r.retryAfter > 0 {
		h.Set("Retry-After", retryAfter(r.retryAfter))
	}
	setColdStart(h, held)
	w.WriteHeader(r.status)
	_, _ = w.Write(append(body, '\n')) // a client that went away is no concern
}

// refuse answers by the gate itself.
func (ex *exchange) refuse(w http.ResponseWriter, ref *refusal) {
	ex.outcome, ex.status = ref.outcome, ref.status
	if ex.grpc {
		ex.status = http.StatusOK
	}
	ref.write(w, ex.held, ex.grpc)
}

func setColdStart(h http.Header, held time.Duration) {
	if held > 0 {
		h.Set(headerColdStart, strconv.FormatInt(held.Milliseconds(), 10)+"ms")
	}
}

func refuseHost(host string) *refusal {
	return &refusal{
		status: http.StatusNotFound, reason: "UnknownHost",
		sentence: fmt.Sprintf("no function serves the host %q; add it to spec.traffic.hosts of a Function with spec.traffic.mode Proxied, "+
			"and see whether another one holds it already (condition Ready, reason HostConflict)", host),
	}
}

func refuseLoop(fn *function) *refusal {
	return &refusal{
		status: http.StatusLoopDetected, outcome: outcomeLoop, reason: "Loop", function: fn.key.String(),
		sentence: fmt.Sprintf("the request has come through the gate of the Function %s before; its pods, or an endpoint of its "+
			"Service, lead back to the gate", fn.key),
	}
}

func refuseDeleted(fn *function) *refusal {
	return &refusal{
		status: http.StatusNotFound, outcome: outcomeDeleted, reason: "FunctionDeleted", function: fn.key.String(),
		sentence: fmt.Sprintf("the Function %s was deleted; ask its Service again", fn.key),
	}
}

func refuseQueueFull(fn *function, why string) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, outcome: outcomeQueueFull, reason: "QueueFull", function: fn.key.String(),
		sentence:   fmt.Sprintf("the Function %s has no %s, and %s; try again, or raise the bound", fn.key, fn.lacks(), why),
		retryAfter: retryCold,
	}
}

// lacks says what requests are held for.
func (fn *function) lacks() string {
	s := fn.pods.Load()
	switch {
	case !s.full():
		return "ready pod"
	case fn.peers.load().self == nil:
		return "pod that this activator may use: it does not find itself behind its own Service (see its option --pod-name)"
	default:
		return fmt.Sprintf("pod with a free place (spec.metrics[].concurrency.limit is %d)", s.share.mine.limit)
	}
}

// refuseTimeout answers a request that was held as long as it may be.
func refuseTimeout(ex *exchange) *refusal {
	fn := ex.fn
	if fn.pods.Load().full() {
		return &refusal{
			status: http.StatusGatewayTimeout, outcome: outcomeHoldTimeout, reason: "HoldTimeout", function: fn.key.String(),
			sentence: fmt.Sprintf("the Function %s had no %s within %s (spec.activation.timeout); raise spec.scale.maxReplicas or the limit, "+
				"or see what its pods are busy with", fn.key, fn.lacks(), fn.object.Load().HoldTimeout()),
			retryAfter: retryLate,
		}
	}
	if ex.dialErr != nil && len(fn.pods.Load().ready) > 0 {
		return refuseDial(ex)
	}
	timeout := fn.object.Load().HoldTimeout()
	sentence := fmt.Sprintf("the Function %s had no ready pod within %s (spec.activation.timeout)", fn.key, timeout)
	failed := fn.queue.lastWakeErr() != nil
	if failed {
		// Not what the API server said: that is for the log, not for strangers.
		sentence += "; the last attempt to wake it failed, for the reason that the activator's log gives"
	} else {
		w := workloadOf(fn.object.Load())
		sentence += fmt.Sprintf("; look at its pods: kubectl -n %s describe %s %s", w.name.Namespace, strings.ToLower(w.kind), w.name.Name)
	}
	return &refusal{
		status: http.StatusGatewayTimeout, outcome: outcomeHoldTimeout, reason: "HoldTimeout", function: fn.key.String(),
		sentence: sentence, retryAfter: retryLate, askPods: !failed,
	}
}

// refuseDial answers a request for which every ready pod refused the connection.
func refuseDial(ex *exchange) *refusal {
	return &refusal{
		status: http.StatusBadGateway, outcome: outcomeDialFailed, reason: "DialFailed", function: ex.fn.key.String(),
		sentence: fmt.Sprintf("no ready pod of the Function %s accepts connections, though Kubernetes calls them ready; "+
			"give the container a readinessProbe on the port it serves", ex.fn.key),
	}
}

// refuseNoFiles answers a request whose pod was not connected to because this activator can open no file.
func refuseNoFiles(ex *exchange) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, outcome: outcomeNoFiles, reason: "TooManyOpenFiles", function: ex.fn.key.String(),
		sentence: fmt.Sprintf("this activator has as many files open as it may, and so cannot connect to a pod of the Function %s; "+
			"send the request again, and see the activator's log", ex.fn.key),
		retryAfter: retryCold,
	}
}

func refuseUpstream(ex *exchange) *refusal {
	of := "the Function " + ex.fn.name
	if ex.refused != nil {
		of = fmt.Sprintf("Service %s, the fallback of the Function %s,", ex.fallback.Service, ex.fn.key)
	}
	return &refusal{
		status: http.StatusBadGateway, outcome: outcomeUpstreamError, reason: "UpstreamError", function: ex.fn.key.String(),
		sentence: fmt.Sprintf("a pod of %s broke off before it answered; the request was not sent again, because "+
			"the pod may have acted on it; look at the pod's log", of),
	}
}

// refuseHandedOn answers a request that another activator has handed on for a function which this one does not know.
func refuseHandedOn() *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, outcome: outcomeDeleted, reason: "FunctionDeleted", retryAfter: time.Second,
		sentence: "this activator does not know the function, which was made or deleted a moment ago; send the request again",
	}
}

func refuseStopping(fn *function) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, outcome: outcomeStopping, reason: "Stopping", function: fn.key.String(),
		sentence:   "this activator is stopping and its drain has taken its time; send the request again",
		retryAfter: time.Second,
	}
}

// refuseClient answers a client that broke off its own request; it may still be reading.
func refuseClient(fn *function) *refusal {
	return &refusal{
		status: http.StatusBadRequest, outcome: outcomeClientGone, reason: "RequestBroken", function: fn.key.String(),
		sentence: "the connection ended before the whole request had arrived; send it again",
	}
}

// refuseUnfit answers a request that no pod can be asked.
func refuseUnfit(fn *function, what string) *refusal {
	return &refusal{
		status: http.StatusBadRequest, outcome: outcomeProtocol, reason: "RequestMalformed", function: fn.key.String(),
		sentence: fmt.Sprintf("the request is malformed: %s; correct the client", what),
	}
}

// refuseUpgrade answers a request that cannot be passed to a pod, because HTTP/2 has no Upgrade.
func refuseUpgrade(fn *function, to string) *refusal {
	return &refusal{
		status: http.StatusNotImplemented, outcome: outcomeProtocol, reason: "UpgradeUnsupported", function: fn.key.String(),
		sentence: fmt.Sprintf("the request asks to switch to %.40q, and the appProtocol of the Service port of the Function %s says that its "+
			"pods speak HTTP/2, which cannot; give upgrades a Service port of their own, with appProtocol kubernetes.io/ws", to, fn.key),
	}
}

// refuseNotHTTP2 answers a request whose pods speak another protocol than their Service port says.
func refuseNotHTTP2(fn *function) *refusal {
	return &refusal{
		status: http.StatusBadGateway, outcome: outcomeProtocol, reason: "PodNotHTTP2", function: fn.key.String(),
		sentence: fmt.Sprintf("a pod of the Function %s answered with something else than HTTP/2; correct the appProtocol of its Service "+
			"port, which gRPC needs to be kubernetes.io/h2c or unset", fn.key),
	}
}

// refuseTLS answers a request whose pods would have to be talked to by TLS.
func refuseTLS(fn *function) *refusal {
	return &refusal{
		status: http.StatusBadGateway, outcome: outcomeProtocol, reason: "AppProtocolUnsupported", function: fn.key.String(),
		sentence: fmt.Sprintf("the appProtocol of the Service port of the Function %s says that its pods speak TLS, and the gate does not; "+
			"let them serve without TLS, and change the appProtocol", fn.key),
	}
}

// refuseMisdirected answers a request that came over a connection of TLS to another function.
func refuseMisdirected(host, name string) *refusal {
	return &refusal{
		status: http.StatusMisdirectedRequest, reason: "MisdirectedRequest",
		sentence: fmt.Sprintf("the connection was made to %.253q, whose function does not serve the host %.253q; make one to that host", name, host),
	}
}
