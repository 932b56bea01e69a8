//go:build e2e

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var soak = flag.Duration("soak", time.Minute, "how long the stories Steady last")

// What the stories Steady send: bursts with gaps, in which the function goes to sleep.
const (
	steadyRate  = 20.0
	steadyBurst = 1250 * time.Millisecond
	// steadyCycle is the time for which there is one sleep and one wake at least.
	steadyCycle = 10 * time.Second
)

// steadyWays are those of the stories Steady: both modes, both doors where there are two (mode Direct has no part in the
// shared one), and two protocols.
func steadyWays() []way {
	var ways []way
	for _, grpc := range []bool{false, true} {
		ways = append(ways,
			way{mode: v1alpha1.Direct, grpc: grpc},
			way{mode: v1alpha1.Proxied, grpc: grpc},
			way{mode: v1alpha1.Proxied, door: true, grpc: grpc},
		)
	}
	return ways
}

// otherWays are tried for one sleep and one wake alone.
func otherWays() []way {
	return []way{
		{mode: v1alpha1.Proxied, door: true, tls: true},
		{mode: v1alpha1.Proxied, door: true, tls: true, grpc: true},
		{mode: v1alpha1.Proxied, tcp: true},
	}
}

// steady sends a function calls that must not come twice, in bursts with gaps in which it goes to sleep: for the time of
// -soak, and longer where it has not woken once in steadyCycle by then. None fails, none is lost, none comes twice.
//
// A client of gRPC keeps its channel, as does one of HTTP whose connections end at the gate. In mode Direct connections of
// HTTP/1.1 end at pods that go, and with them what the client has just sent: nothing tells it before, with or without
// Sluice. So there each burst has connections of its own.
func steady(s *story, w way) {
	const name = "hello"
	a := s.arrivals()
	trust := w.asleep(s, name, a)
	kept := w.grpc || w.mode == v1alpha1.Proxied
	call, leave := w.caller(s, name, trust)
	defer func() { leave() }()

	var sent []string
	var toZero, slowest time.Duration
	failures, bursts, woken, want := 0, 0, 0, int(*soak/steadyCycle)
	atZero, began := true, time.Now()
	for ; time.Since(began) < *soak || woken < want; bursts++ {
		if !kept && bursts > 0 {
			leave()
			call, leave = w.caller(s, name, trust)
		}
		b := s.burst(fmt.Sprintf("%s-%s-%d", s.namespace, w.name(), bursts), steadyRate, steadyBurst, call)
		sent, failures, slowest = append(sent, b.sent...), failures+b.failures, max(slowest, b.slowest)
		for _, said := range b.failed {
			s.Errorf("burst %d: %s", bursts, said)
		}
		if failures > 20 {
			s.Fatal("enough has failed to see what is wrong")
		}
		switch {
		case !atZero:
		case *s.deployment(name).Spec.Replicas > 0:
			woken++
		default:
			// The client's connections lead to the last pod, which goes on answering for some seconds after the zero. The
			// next burst is a new client's.
			leave()
			call, leave = w.caller(s, name, trust)
		}
		if ahead := time.Duration(woken)*steadyCycle - time.Since(began); ahead > 0 && rand.IntN(2) == 0 {
			wait(s.Context(), rand.N(toZero+1)) // the next burst comes at any moment of the way to sleep
			atZero = *s.deployment(name).Spec.Replicas == 0
			continue
		}
		toZero, atZero = s.timeToZero(name), true
		wait(s.Context(), rand.N(time.Second))
	}
	wakes := len(s.wakes(name))
	s.Logf("%s: %d calls in %d bursts, %d failed, slowest %s; %d wakes in %s, latest time to sleep %s", w.name(), len(sent), bursts, failures,
		slowest.Round(time.Millisecond), wakes, time.Since(began).Round(time.Second), toZero.Round(time.Millisecond))
	if wakes < want {
		s.Errorf("woken %d times; want %d at least", wakes, want)
	}
	a.check(s, sent)
}

// through sends a sleeping function a burst, and one when it is awake.
func through(s *story, w way) {
	const name = "hello"
	a := s.arrivals()
	trust := w.asleep(s, name, a)
	call, leave := w.caller(s, name, trust)
	defer leave()
	var sent []string
	for i := range 2 {
		b := s.burst(fmt.Sprintf("%s-%s-%d", s.namespace, w.name(), i), steadyRate, steadyBurst, call)
		sent = append(sent, b.sent...)
		for _, said := range b.failed {
			s.Errorf("burst %d: %s", i, said)
		}
		s.Logf("burst %d: %d calls, slowest %s", i, len(b.sent), b.slowest.Round(time.Millisecond))
		s.awaitPhase(name, v1alpha1.Active, 20*time.Second)
	}
	if wakes := len(s.wakes(name)); wakes != 1 {
		s.Errorf("woken %d times; want once", wakes)
	}
	a.check(s, sent)
	leave() // of TCP an open connection is a request
	s.timeToZero(name)
}
