package activator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// However many functions wake at once, few patches are under way; none is sent for a function whose clients have left
// meanwhile, and waiting for its turn counts against no patch's time.
func TestPatchesAreBounded(t *testing.T) {
	const functions = 3 * maxPatches
	synctest.Test(t, func(t *testing.T) {
		turns := make(chan struct{})
		p := newPlane(t, func(types.NamespacedName, int32) (bool, error) {
			<-turns
			return true, nil
		})
		var running sync.WaitGroup
		stay, leave := context.WithCancel(t.Context())
		held := func(ctx context.Context, i int) {
			fn := p.add(newTestFunction(fmt.Sprintf("fn-%d", i)))
			running.Go(func() { _, _ = p.proxy.hold(ctx, &exchange{fn: fn, start: fn.stats.start()}) })
			pass(2 * gatherLimit) // so that their order is known
		}
		for i := range functions {
			if i%3 == 2 {
				held(stay, i)
			} else {
				held(t.Context(), i)
			}
		}
		pass(10 * p.proxy.patchTimeout)
		synctest.Wait()
		if got := p.wakes.Load(); got != maxPatches {
			t.Errorf("%d patches at a time, want %d", got, maxPatches)
		}
		leave()
		synctest.Wait()
		close(turns)
		synctest.Wait()
		pass(time.Second)
		patched := 0
		for i := range functions {
			if i < maxPatches || i%3 != 2 {
				patched++
			}
		}
		if got := p.wakes.Load(); got != int64(patched) {
			t.Errorf("%d patches in all, want %d: none for a function that nobody waits for", got, patched)
		}
		for i := range functions {
			p.pods(fmt.Sprintf("fn-%d", i), "10.0.0.1:80")
		}
		running.Wait()
	})
}

// While the API server is away patches fail. However long that takes, one is sent soon after it is back.
func TestPatchesThatFailAreRepeatedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var back time.Time
		woken := make(chan time.Time, 1)
		p := newPlane(t, func(types.NamespacedName, int32) (bool, error) {
			if time.Now().Before(back) {
				return false, errors.New("connection refused")
			}
			select {
			case woken <- time.Now():
			default:
			}
			return true, nil
		})
		for i, outage := range []time.Duration{20 * time.Second, 50 * time.Second, 3 * time.Minute} {
			fn := p.add(newTestFunction(fmt.Sprint("fn-", i), timeout(10*time.Minute)))
			back = time.Now().Add(outage)
			var running sync.WaitGroup
			running.Go(func() { _, _ = p.proxy.hold(t.Context(), &exchange{fn: fn, start: fn.stats.start()}) })
			if late := (<-woken).Sub(back); late > 5*time.Second {
				t.Errorf("after an outage of %s the function was woken %s after the API server was back, want 5 s at most", outage, late)
			}
			p.pods(fn.key.Name, "10.0.0.1:80")
			running.Wait()
		}
	})
}

// Repetitions are a fifth sooner or later than they would be, any of it as likely, so that they are far apart after a few.
func TestJitterIsEven(t *testing.T) {
	const draws, parts = 20_000, 10
	for _, d := range []time.Duration{firstProbe, firstRepatch, maxRepatch} {
		var counts [parts]int
		for range draws {
			got := jitter(d)
			if got < d*4/5 || got >= d*6/5 {
				t.Fatalf("%s becomes %s, want a fifth more or less at most", d, got)
			}
			counts[int64(got-d*4/5)*parts/int64(d*2/5)]++
		}
		for i, n := range counts {
			// Seven standard deviations.
			if n < draws/parts-300 || n > draws/parts+300 {
				t.Errorf("%s: %d of %d draws are in part %d of %d, want about a tenth", d, n, draws, i+1, parts)
			}
		}
	}
}

// Two activators hold requests for the same functions, which have come at the same moment. Their first patches are at the same
// time, and their repetitions are not.
func TestRepetitionsOfTwoActivatorsDoNotFallTogether(t *testing.T) {
	const functions, near = 100, 5 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		patched := [2]map[string][]time.Time{{}, {}}
		var running sync.WaitGroup
		var mu sync.Mutex // protects patched
		for a := range patched {
			p := newPlane(t, func(w types.NamespacedName, _ int32) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				patched[a][w.Name] = append(patched[a][w.Name], time.Now())
				return false, nil
			})
			for i := range functions {
				fn := p.add(newTestFunction(fmt.Sprint("fn-", i), timeout(12*time.Second)))
				running.Go(func() { _, _ = p.proxy.hold(t.Context(), &exchange{fn: fn, start: fn.stats.start()}) })
			}
		}
		running.Wait()
		repetitions, together := 0, 0
		for name, ours := range patched[0] {
			theirs := patched[1][name]
			if apart := ours[0].Sub(theirs[0]).Abs(); apart > near {
				t.Errorf("%s: the first patches are %s apart", name, apart)
			}
			for _, at := range ours[1:] {
				repetitions++
				if slices.ContainsFunc(theirs[1:], func(other time.Time) bool { return at.Sub(other).Abs() <= near }) {
					together++
				}
			}
		}
		// The first repetitions fall into the same 100 ms, one in ten of them so near to the other's; later ones far fewer.
		if repetitions < 4*functions || together*10 > repetitions {
			t.Errorf("%d of %d repetitions are within %s of the other activator's, want a tenth at most", together, repetitions, near)
		}
	})
}
