// Package load sends HTTP requests at set times and tells what became of each: an open-loop generator for the stories,
// the measurements and the demo.
//
// Open loop means that requests leave on a schedule, whether or not earlier ones have been answered, and that latency
// counts from the time a request was meant to leave. A server that stalls for a second is thus charged with every
// request that was due in that second, not only with the one that was caught in it ("coordinated omission").
//
// Every request that comes due ends in exactly one place of the Result: under a status, or under a kind of error. One
// that cannot leave, because MaxInFlight requests are under way, is an error of kind Saturated and never left out.
//
// So that a slip of the hand loads nobody else's machines, the generator dials loopback addresses and what
// Options.Allow names, nothing more; the check is made on the address of each connection.
package load
