package requests

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// countingPods are n pods that answer with handler, and connected how many connections were made to them.
func countingPods(t *testing.T, n int, handler http.HandlerFunc) (targets []providers.Target, connected *atomic.Int64) {
	t.Helper()
	connected = new(atomic.Int64)
	for range n {
		server := httptest.NewUnstartedServer(handler)
		server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connected.Add(1)
			}
		}
		server.Start()
		t.Cleanup(server.Close)
		targets = append(targets, providers.Target{
			Kind: providers.Pod, Function: hello, Address: strings.TrimPrefix(server.URL, "http://"),
			Scrape: providers.Scrape{Path: "/metrics", Preset: v1alpha1.Kubeless},
		})
	}
	return targets, connected
}

// At the limit of open files nobody could connect to the adapter any more.
func TestMoreTargetsThanConnections(t *testing.T) {
	targets, connected := countingPods(t, 40, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, expositionOfPod(10))
	})
	s := NewScraper()
	t.Cleanup(s.Close)
	s.MaxConnections = 30
	const rounds = 5
	for range rounds {
		for _, target := range targets {
			if _, err := s.Measure(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			if open := len(s.connections.slots()); open > 30 {
				t.Fatalf("%d connections are open, want 30 at most", open)
			}
		}
	}
	// Some 27 are kept. Were the one that is longest unused closed for each new one, none would ever be there at its turn.
	if n := connected.Load(); n >= 40*rounds*3/4 {
		t.Errorf("%d connections were made for %d measurements, want most kept", n, 40*rounds)
	}
}

func TestTooManyConnectionsInUse(t *testing.T) {
	asked, answer := make(chan struct{}, 3), make(chan struct{})
	targets, _ := countingPods(t, 3, func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, expositionOfPod(10))
	})
	s := NewScraper()
	t.Cleanup(s.Close)
	s.MaxConnections = 2
	var running sync.WaitGroup
	for _, target := range targets[:2] {
		running.Go(func() {
			if _, err := s.Measure(t.Context(), target); err != nil {
				t.Error(err)
			}
		})
	}
	<-asked
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Measure(ctx, targets[2]); err == nil || !strings.Contains(err.Error(), "raise the adapter's limit of open files") {
		t.Errorf("a third target: error %v, want one that says what to raise", err)
	}
	close(answer)
	running.Wait()
	for _, target := range []providers.Target{targets[0], targets[2]} { // the first makes room at its next turn
		if _, err := s.Measure(t.Context(), target); err != nil {
			t.Errorf("after all have answered: %v", err)
		}
	}
}

// Pods that hang keep neither the activators waiting, without which no function has a value, nor the pods of another
// namespace.
func TestPodsThatHangAreAlone(t *testing.T) {
	asked, answer := make(chan struct{}, 4), make(chan struct{})
	hanging, _ := countingPods(t, 3, func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-answer
	})
	healthy, _ := countingPods(t, 2, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, expositionOfPod(10))
	})
	s := NewScraper()
	t.Cleanup(s.Close)
	s.pods.Most, s.MaxConnections = 2, 3
	for i := range hanging {
		hanging[i].Function.Namespace = "hangs"
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(func() { close(answer) })
	t.Cleanup(cancel)
	for _, target := range hanging[:2] {
		running.Go(func() { _, _ = s.Measure(ctx, target) })
	}
	<-asked
	<-asked

	short, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer done()
	if _, err := s.Measure(short, hanging[2]); err == nil || !strings.Contains(err.Error(), "pods of namespace hangs were being measured all the time") {
		t.Errorf("one more that hangs: error %v, want one that names the namespace", err)
	}
	if _, err := s.Measure(t.Context(), healthy[0]); err != nil {
		t.Errorf("a pod of another namespace: %v", err)
	}
	for len(s.connections.slots()) < cap(s.connections.slots()) {
		s.connections.slots() <- struct{}{} // all connections are in use
	}
	gates, _ := countingPods(t, 1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, expositionOfActivator(1))
	})
	gates[0].Kind = providers.Activator
	limit, enough := context.WithTimeout(t.Context(), 10*time.Second)
	defer enough()
	if _, err := s.Measure(limit, gates[0]); err != nil {
		t.Errorf("an activator while no pod can be connected to: %v", err)
	}
}
