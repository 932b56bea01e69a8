package v1alpha1

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Names that the API server and the processes of Sluice share.
const (
	// Group of the Function kind.
	Group = "sluice.dev"
	// SystemNamespace is where Sluice runs unless it is told otherwise.
	SystemNamespace = "sluice-system"
	// ActivatorService is the Service in front of all activators; its port "metrics" is scraped by the adapter.
	ActivatorService = "sluice-activator"
	// ActivatorMetricsPort is the name of that port.
	ActivatorMetricsPort = "metrics"
	// GateManager is the value of endpointslice.kubernetes.io/managed-by on every EndpointSlice that leads to the
	// gate. By it, a function's own pods are told from the gate.
	GateManager = "gate.sluice.dev"
	// FunctionLabel carries the Function's name on everything made for it.
	FunctionLabel = "sluice.dev/function"
	// Finalizer keeps a Function until its workload runs again without the gate.
	Finalizer = "sluice.dev/wake"
)

// Metrics of functions, as custom.metrics.k8s.io serves them for functions.sluice.dev.
const (
	// RequestsPerSecond is the rate at which requests arrive, over the window of the Function's requestRate metric.
	RequestsPerSecond = "requests_per_second"
	// RequestsInFlight is the mean number of requests that were held or being served, over DefaultWindow.
	RequestsInFlight = "requests_in_flight"
	// RequestDurationSeconds is the mean duration of the requests that ended, over the window of requests_per_second.
	RequestDurationSeconds = "request_duration_seconds"
	// IdleSeconds is how long no request has started or been in flight, in seconds: 0 while any is. It is a lower
	// bound: nothing is claimed of the time before the adapter began to look.
	IdleSeconds = "idle_seconds"
)

// Metrics of an activator, by namespace and function, as its /metrics serves them to the adapter. The series of a
// function appear with its first request and stay as long as the Function: one that is absent from a complete
// exposition reads zero. held + forwarded = in flight.
const (
	// ActivatorStarted counts requests at their first byte in.
	ActivatorStarted = "sluice_requests_started_total"
	// ActivatorInFlight is the gauge of requests between first byte in and last byte out, held ones included.
	ActivatorInFlight = "sluice_requests_in_flight"
	// ActivatorHeld is the gauge of requests that wait for a pod.
	ActivatorHeld = "sluice_requests_held"
	// ActivatorBusySeconds is the time integral of ActivatorInFlight: its increase over a time, divided by that time,
	// is the mean number in flight, however short the requests.
	ActivatorBusySeconds = "sluice_request_seconds_total"
	// ActivatorHeldSeconds is the time integral of ActivatorHeld.
	ActivatorHeldSeconds = "sluice_held_seconds_total"
	// ActivatorFinished counts requests at their last byte out, by outcome.
	ActivatorFinished = "sluice_requests_finished_total"

	// LabelNamespace and LabelFunction tell the function on all of them.
	LabelNamespace = "namespace"
	LabelFunction  = "function"
	LabelOutcome   = "outcome"
)

// DefaultWindow is the window of a rate or mean where the Function names none.
const DefaultWindow = 30 * time.Second

// GroupVersion of the Function kind.
var GroupVersion = schema.GroupVersion{Group: Group, Version: "v1alpha1"}

// FunctionResource is the resource under which metrics of Functions are served.
var FunctionResource = schema.GroupResource{Group: Group, Resource: "functions"}
