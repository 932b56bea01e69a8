//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// leavesTheGate is how soon, after a function in mode Direct is Active, none of its requests passes through the gate.
const leavesTheGate = 5 * time.Second

// directLeavesTheGate: clients that keep their connections, of HTTP/1.1 and of gRPC, have theirs made through the gate
// while the function sleeps. Within seconds of its being awake they have all moved to the pods, by themselves and without
// a failure.
func directLeavesTheGate(s *story) {
	w := way{mode: v1alpha1.Direct}
	const name = "hello"
	a := s.arrivals()
	w.asleep(s, name, a)
	var (
		mu   sync.Mutex // protects following
		sent []string
		wg   sync.WaitGroup
	)
	stop := make(chan struct{})
	end := sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
	s.Cleanup(end)
	for i := range 8 {
		w := way{mode: v1alpha1.Direct, grpc: i%2 == 1}
		one, leave := w.caller(s, name, nil)
		// Each client has calls under way all the time.
		wg.Go(func() {
			defer leave()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				id := fmt.Sprintf("%s-%d-%d", s.namespace, i, n)
				mu.Lock()
				sent = append(sent, id)
				mu.Unlock()
				if err := one(context.Background(), id); err != nil {
					s.Errorf("%s, call %s: %v", w.name(), id, err)
				}
			}
		})
	}
	s.awaitPhase(name, v1alpha1.Active, 20*time.Second)
	began := time.Now()
	last := s.activatorStarted(s.Context(), name)
	s.awaitGate(name, false)
	eventually(s.T, leavesTheGate, "calls to pass beside the gate", func(ctx context.Context) string {
		before := last
		last = s.activatorStarted(ctx, name)
		if last != before {
			return fmt.Sprintf("%v more passed through the gate", last-before)
		}
		return ""
	})
	s.Logf("no call passed through the gate %s after the function was Active; %v had", time.Since(began).Round(time.Millisecond), last)
	always(s.T, 3*time.Second, "calls beside the gate", func(ctx context.Context) string {
		if n := s.activatorStarted(ctx, name); n != last {
			return fmt.Sprintf("%v passed through the gate", n-last)
		}
		return ""
	})
	end()
	if n := float64(len(sent)); n < 2*last {
		s.Errorf("%v calls, and %v of them through the gate: too few to tell", n, last)
	}
	a.check(s, sent)
}
