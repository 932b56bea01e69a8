//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// leavesTheGate is how soon, after the gate has left the Service, no request passes through it, and
// besideTheGate for how long that is looked at.
const (
	leavesTheGate = 5 * time.Second
	besideTheGate = 3 * time.Second
)

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
	s.awaitGate(name, false)
	last, since := s.activatorStarted(s.Context(), name), time.Now()
	eventually(s.T, leavesTheGate+besideTheGate, "calls to pass beside the gate", func(ctx context.Context) string {
		if n := s.activatorStarted(ctx, name); n != last {
			more := n - last
			last, since = n, time.Now()
			return fmt.Sprintf("%v more passed through the gate", more)
		}
		if beside := time.Since(since); beside < besideTheGate {
			return fmt.Sprintf("none passed through the gate for %s", beside)
		}
		return ""
	})
	s.Logf("no call passed through the gate %s after the function was Active; %v had", since.Sub(began).Round(time.Millisecond), last)
	eventually(s.T, 30*time.Second, "as many calls beside the gate as through it", func(context.Context) string {
		mu.Lock()
		defer mu.Unlock()
		if n := float64(len(sent)); n < 2*last {
			return fmt.Sprintf("%v calls, and %v of them through the gate", n, last)
		}
		return ""
	})
	end()
	if n := s.activatorStarted(s.Context(), name); n != last {
		s.Errorf("%v calls passed through the gate later", n-last)
	}
	a.check(s, sent)
}
