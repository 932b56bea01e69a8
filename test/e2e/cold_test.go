//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A request to a sleeping function is answered by a pod, through the function's own ClusterIP; once it is awake the
// gate has left the path.
func coldStartDirect(s *story) {
	s.asleep(direct("hello"))
	a := s.mustAnswer(s.clusterIP("hello"), "")
	s.Logf("cold: %s, held %s", a, a.header.Get("Sluice-Cold-Start"))
	if a.header.Get("Sluice-Cold-Start") == "" {
		s.Error("a cold answer does not say how long it was held: no header Sluice-Cold-Start")
	}
	s.awaitGate("hello", false)
	// kube-proxy follows within a second or so; from then on no answer can come through the gate.
	eventually(s.T, 10*time.Second, "requests to pass beside the gate", func(ctx context.Context) string {
		before := s.activatorStarted(ctx, "hello")
		for range 20 {
			if said := call(ctx, s.clusterIP("hello"), "").ok(); said != "" {
				s.Fatal(said)
			}
		}
		if n := s.activatorStarted(ctx, "hello") - before; n != 0 {
			return fmt.Sprintf("%v of 20 passed through the gate", n)
		}
		return ""
	})
}

// The same in mode Proxied, through each of the three ways in.
func coldStartProxied(s *story) {
	host := "hello." + s.namespace + ".example.com"
	ways := []struct {
		name string
		url  func() string
		host string
	}{
		{name: "own", url: func() string { return s.clusterIP("own") }},
		{name: "through", url: func() string { return s.clusterIP("sluice-through") }},
		{name: "door", url: s.door, host: host},
	}
	var wg sync.WaitGroup
	for _, way := range ways {
		fn := proxied(way.name)
		if way.host != "" {
			fn = proxied(way.name, way.host)
		}
		s.asleep(fn)
	}
	for _, way := range ways {
		url := way.url()
		wg.Go(func() {
			a := call(s.Context(), url, way.host)
			if said := a.ok(); said != "" {
				s.Errorf("%s: %s", way.name, said)
				return
			}
			s.Logf("%s: cold after %s, held %s", way.name, a.took.Round(time.Millisecond), a.header.Get("Sluice-Cold-Start"))
		})
	}
	wg.Wait()
	// Warm, the gate stays in the path of these and gives no reason to change the connection. An activator that has woken
	// nobody learns of the pods by their EndpointSlice, and so later than one that has probed them.
	for _, way := range ways[1:] {
		s.awaitPhase(way.name, v1alpha1.Active, 20*time.Second)
		if a := s.mustAnswer(way.url(), way.host); a.header.Get("Sluice-Cold-Start") != "" {
			s.Errorf("%s: a warm answer claims a cold start of %s", way.name, a.header.Get("Sluice-Cold-Start"))
		}
	}
	if a := call(s.Context(), s.door(), "nobody.example.com"); a.status != 404 {
		s.Errorf("a host that no Function declares: %s; want 404", a)
	}
}

// Fifty requests at once are all answered, and wake the function by one write.
func fiftyAtOnceWakeOnce(s *story) {
	s.asleep(proxied("hello"))
	url := s.clusterIP("sluice-hello")
	before := s.deployment("hello").Generation
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if said := call(s.Context(), url, "").ok(); said != "" {
				s.Errorf("request %d: %s", i, said)
			}
		})
	}
	wg.Wait()
	if got := s.deployment("hello").Generation - before; got != 1 {
		s.Errorf("the Deployment's spec was written %d times; want once", got)
	}
	if got := len(s.scaleWrites("hello")); got != 1 {
		s.Errorf("the audit log has %d accepted writes to the scale of hello; want 1", got)
	}
}
