// Package scaler keeps functions at the scale their traffic asks for: it tends their HorizontalPodAutoscalers, puts
// idle functions to sleep at zero replicas, and sees to it that the gate is in the path while they have no pod.
//
// A tour:
//
//   - decide.go is the pure core. From the time, the Function, what was observed and what is remembered it makes one
//     decision, which is what log, Event, status and metric show. It does no I/O, so testdata/*.txt can tell whole
//     nights of a function step by step.
//   - reconcile.go makes the world match: it observes (observe.go), decides, and writes only what differs (hpa.go,
//     gate.go, ports.go, status.go). finalize.go lets a Function go without leaving its workload asleep.
//   - metrics.go polls the custom metrics API for functions that are awake or may be woken by a metric; prove.go proves
//     that new connections to a Service reach the gate. Both only remember; reconcile reads what they know and never
//     waits for them.
//   - scaler.go wires it all into a controller manager and runs it.
//
// # The sleep order
//
// A function is put to sleep in this order, and any request or unknown metric on the way takes the gate out again:
// it is idle for long enough and every metric is known; the gate's endpoints join the function's own Service; a new
// connection to that Service is answered by the gate; a grace passes, for the nodes that the proof did not see; a
// sample observed after the gate joined says that nothing came; replicas becomes 0 by a write that is refused if
// anybody scaled meanwhile. Waking runs the other way: the gate stays until a pod is ready.
//
// A function without traffic has no gate: it sleeps at once when its external metrics (external.go) have been quiet for
// long enough.
//
// The scaler is the only writer of 0. It writes no other number of replicas, except to wake from zero: a function that
// an external metric has something to do for, and the workload of a Function that is being deleted, or whose spec does
// not let it sleep any more.
package scaler
