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
)

// refusal is an answer that the gate gives by itself. As an error it travels from where it was decided to the one
// place that writes answers.
type refusal struct {
	status     int
	outcome    outcome
	reason     string        // one CamelCase word
	sentence   string        // for a human: what happened, and what to do
	retryAfter time.Duration // 0 for none
	function   string        // namespace/name, empty when it is not known
}

func (r *refusal) Error() string { return r.sentence }

// write answers with the refusal. held is how long the request waited, 0 for not at all.
func (r *refusal) write(w http.ResponseWriter, held time.Duration) {
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
		h.Set("Retry-After", strconv.Itoa(int(r.retryAfter.Seconds())))
	}
	setColdStart(h, held)
	w.WriteHeader(r.status)
	_, _ = w.Write(append(body, '\n')) // a client that went away is no concern
}

func setColdStart(h http.Header, held time.Duration) {
	if held > 0 {
		h.Set(headerColdStart, strconv.FormatInt(held.Milliseconds(), 10)+"ms")
	}
}

func refuseHost(host string) *refusal {
	return &refusal{
		status: http.StatusNotFound, reason: "UnknownHost",
		sentence: fmt.Sprintf("no function serves the host %q; add it to spec.traffic.hosts of a Function with spec.traffic.mode Proxied", host),
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
		sentence:   fmt.Sprintf("the Function %s has no ready pod, and %s; try again, or raise the bound", fn.key, why),
		retryAfter: 2 * time.Second,
	}
}

// refuseTimeout answers a request that was held as long as it may be.
func refuseTimeout(ex *exchange) *refusal {
	fn := ex.fn
	if ex.dialErr != nil && len(fn.pods.Load().ready) > 0 {
		return refuseDial(ex)
	}
	timeout := fn.object.Load().HoldTimeout()
	sentence := fmt.Sprintf("the Function %s had no ready pod within %s (spec.activation.timeout)", fn.key, timeout)
	if fn.queue.lastWakeErr() != nil {
		// Not what the API server said: that is for the log, not for strangers.
		sentence += "; the last attempt to wake it failed, for the reason that the activator's log gives"
	} else {
		w := workloadOf(fn.object.Load())
		sentence += fmt.Sprintf("; look at its pods: kubectl -n %s describe %s %s", w.name.Namespace, strings.ToLower(w.kind), w.name.Name)
	}
	return &refusal{
		status: http.StatusGatewayTimeout, outcome: outcomeHoldTimeout, reason: "HoldTimeout", function: fn.key.String(),
		sentence: sentence,
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

func refuseUpstream(ex *exchange) *refusal {
	return &refusal{
		status: http.StatusBadGateway, outcome: outcomeUpstreamError, reason: "UpstreamError", function: ex.fn.key.String(),
		sentence: fmt.Sprintf("a pod of the Function %s broke off before it answered; the request was not sent again, because "+
			"the pod may have acted on it; look at the pod's log", ex.fn.key),
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
