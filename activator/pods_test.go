package activator

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func endpoints(addresses ...string) []v1alpha1.PodEndpoint {
	var eps []v1alpha1.PodEndpoint
	for _, a := range addresses {
		eps = append(eps, v1alpha1.PodEndpoint{Address: a, Port: 80, Ready: true})
	}
	return eps
}

func TestNextKeepsWhatIsKnownOfAPod(t *testing.T) {
	first := (&podSet{}).next(endpoints("10.0.0.1", "10.0.0.2"))
	first.ready[0].inFlight.Store(7)
	if again := first.next(endpoints("10.0.0.2", "10.0.0.1")); again != first {
		t.Error("the same endpoints made another snapshot")
	}
	second := first.next(endpoints("10.0.0.1", "10.0.0.3"))
	if got := second.ready[0].inFlight.Load(); got != 7 {
		t.Errorf("in flight at a pod that stayed: got %d, want 7", got)
	}
	second.ready[0].refused(time.Now())
	back := second.next(endpoints("10.0.0.3")).next(endpoints("10.0.0.1", "10.0.0.3"))
	if !back.ready[0].usable() {
		t.Error("a pod whose endpoint went and came back is still set aside")
	}
	if got := back.ready[0].inFlight.Load(); got != 7 {
		t.Errorf("in flight at a pod that went and came back: got %d, want 7", got)
	}
	unready := endpoints("10.0.0.1", "10.0.0.3")
	unready[0].Ready = false
	if got := back.next(unready).coming[0].inFlight.Load(); got != 7 {
		t.Errorf("in flight at a pod that turned unready: got %d, want 7", got)
	}
	noPort := endpoints("10.0.0.1")
	noPort[0].Port = 0
	if n := len(first.next(noPort).ready); n != 0 {
		t.Errorf("pods without the port: got %d, want 0", n)
	}
}

// A request may take its place at a pod at the moment at which the pod leaves.
func TestAPodThatLeftIsRememberedWhileItHasRequests(t *testing.T) {
	s := (&podSet{}).next(endpoints("10.0.0.1", "10.0.0.2"))
	gone := s.ready[1]
	s = s.next(endpoints("10.0.0.1"))
	gone.inFlight.Add(1)
	s = s.next(endpoints("10.0.0.1", "10.0.0.3"))
	if back := s.next(endpoints("10.0.0.1", "10.0.0.2")); back.ready[1].inFlight.Load() != 1 {
		t.Error("a request that came just after the pod had left is forgotten")
	}
	gone.inFlight.Add(-1)
	if s = s.next(endpoints("10.0.0.1")).next(endpoints("10.0.0.4")); len(s.left) != 1 {
		t.Errorf("%d pods are remembered, want the one that has just left", len(s.left))
	}
}

func TestPick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := (&podSet{}).next(endpoints("10.0.0.1", "10.0.0.2"))
		busy, idle := s.ready[0], s.ready[1]
		busy.inFlight.Store(5)
		for range 100 {
			if s.pick(nil) != idle {
				t.Fatal("of two pods, the one with more in flight was picked")
			}
		}
		if s.pick([]*pod{idle}) != busy || s.pick([]*pod{idle, busy}) != nil {
			t.Error("a pod that was tried is picked again")
		}
		idle.refused(time.Now())
		if s.pick(nil) != busy || !s.usable() {
			t.Error("a pod that was set aside is picked")
		}
		busy.refused(time.Now())
		if s.pick(nil) != nil || s.usable() {
			t.Error("all are set aside, and yet one is picked")
		}
		if got := time.Until(s.nextUsable()); got != setAside {
			t.Errorf("next usable in %s, want %s", got, setAside)
		}
		pass(setAside)
		if s.pick(nil) != idle {
			t.Error("a pod stays set aside for good")
		}
	})
}

func TestPickSpreads(t *testing.T) {
	s := (&podSet{}).next(endpoints("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	for range 400 {
		s.pick(nil).inFlight.Add(1)
	}
	for _, p := range s.ready {
		// Two choices keep the difference tiny; one random choice would not.
		if n := p.inFlight.Load(); n < 90 || n > 110 {
			t.Errorf("pod %s has %d of 400 requests, want about 100", p.address, n)
		}
	}
}
