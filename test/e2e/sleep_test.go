//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	sleepCycles = 20
	sleepIdle   = 2 * time.Second
	sleepBound  = sleepIdle + 15*time.Second
)

func anyMomentDirect(s *story)  { s.anyMoment(direct("hello"), "hello") }
func anyMomentProxied(s *story) { s.anyMoment(proxied("hello"), "sluice-hello") }

// Without traffic the function is at zero within idleAfter + 15 s, and a request that arrives at any moment on the way
// there is answered. The first cycles measure how long the way is; the others start their requests at moments spread
// over it, a little past its end included, so that the request meets every step of going to sleep.
func (s *story) anyMoment(fn *v1alpha1.Function, service string) {
	s.workload(fn.Name, 1)
	s.create(idleAfter(fn, sleepIdle))
	s.awaitPhase(fn.Name, v1alpha1.Active, 30*time.Second)
	url := s.clusterIP(service)

	var way time.Duration
	for range 2 {
		s.mustAnswer(url, "")
		way = max(way, s.timeToZero(fn.Name))
	}
	s.Logf("from the last answer to replicas 0: %s (idleAfter %s)", way.Round(time.Millisecond), sleepIdle)

	slept := 0
	for i := range sleepCycles {
		s.mustAnswer(url, "")
		moment := time.Duration((float64(i) + rand.Float64()) / sleepCycles * float64(way+time.Second))
		wait(s.Context(), moment)
		if *s.deployment(fn.Name).Spec.Replicas == 0 {
			slept++
		}
		// A few at once and in a row, since the edges of a step are narrower than one request.
		var wg sync.WaitGroup
		for j := range 6 {
			wg.Go(func() {
				wait(s.Context(), time.Duration(j/2)*40*time.Millisecond)
				if said := call(s.Context(), url, "").ok(); said != "" {
					s.Errorf("cycle %d, %s after the last answer: %s", i, moment.Round(time.Millisecond), said)
				}
			})
		}
		wg.Wait()
	}
	s.Logf("%d cycles, %d of them met the function at zero", sleepCycles, slept)
	if slept == 0 || slept == sleepCycles {
		s.Errorf("%d of %d cycles met the function at zero: the moments do not cover the way", slept, sleepCycles)
	}
	s.timeToZero(fn.Name)

	// A function that may not sleep any more does not.
	s.change(fn.Name, func(fn *v1alpha1.Function) { fn.Spec.Scale.MinReplicas = 1 })
	s.awaitPhase(fn.Name, v1alpha1.Active, 20*time.Second)
}

// timeToZero waits for replicas 0, within the bound that is promised.
func (s *story) timeToZero(name string) time.Duration {
	s.Helper()
	began := time.Now()
	eventually(s.T, sleepBound, "replicas 0", func(ctx context.Context) string {
		var d appsv1.Deployment
		if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &d); err != nil {
			return err.Error()
		}
		if *d.Spec.Replicas != 0 {
			fn := s.function(name)
			return fmt.Sprintf("%d replicas, phase %s, last decision %+v", *d.Spec.Replicas, fn.Status.Phase, fn.Status.LastDecision)
		}
		return ""
	})
	return time.Since(began)
}

// wait is for moments that a story chooses, never for something to have happened.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
