package activator

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pipes are pools whose connections lead nowhere. Dials wait for the channel, whose values they return.
func pipes(dials chan error) (all *pools, dialing, closed *atomic.Int32) {
	dialing, closed = &atomic.Int32{}, &atomic.Int32{}
	return &pools{open: map[*podConns]bool{}, dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		dialing.Add(1)
		defer dialing.Add(-1)
		select {
		case err := <-dials:
			if err != nil {
				return nil, &dialError{err}
			}
		case <-ctx.Done():
			return nil, &dialError{ctx.Err()}
		}
		ours, theirs := net.Pipe()
		return closeTold{ours, theirs, closed}, nil
	}}, dialing, closed
}

type closeTold struct {
	net.Conn
	peer   net.Conn
	closed *atomic.Int32
}

func (c closeTold) Close() error {
	c.closed.Add(1)
	return errors.Join(c.Conn.Close(), c.peer.Close())
}

// Requests that are let go at once dial a few at a time; who waits takes the first connection that comes free.
func TestDialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan error)
		all, dialing, _ := pipes(dials)
		var s podConns
		var served, kept atomic.Int32
		var running sync.WaitGroup
		for range 3 * maxDialsPerPod {
			running.Go(func() {
				c, k, err := s.get(t.Context(), all, "pod", time.Now(), false)
				if err != nil {
					t.Error(err)
					return
				}
				if served.Add(1); k {
					kept.Add(1)
				}
				c.release(true)
			})
		}
		synctest.Wait()
		if got := dialing.Load(); got != maxDialsPerPod {
			t.Errorf("%d dials at a time, want %d", got, maxDialsPerPod)
		}
		dials <- nil
		synctest.Wait()
		// The one connection has served all that waited, but for the next to dial.
		if got, want := served.Load(), int32(2*maxDialsPerPod); got != want || kept.Load() != want-1 {
			t.Errorf("%d requests were served, %d by a kept connection, want %d and one less", got, kept.Load(), want)
		}
		close(dials)
		running.Wait()
		all.close()
	})
}

// A thousand requests are let go at once, and a dial takes 10 ms. Quick ones share the first connections; slow ones get one
// each, 16 in 10 ms; and those that are behind quick ones which become slow wait no longer than if there had been none.
func TestDialsThatAreWorthTheirWhile(t *testing.T) {
	const requests, dial = 1000, 10 * time.Millisecond
	for name, tt := range map[string]struct {
		takes           func(i int32) time.Duration // the i-th to have a connection
		atMost, atLeast int32                       // dials
		within          time.Duration
	}{
		"quick":              {func(int32) time.Duration { return time.Millisecond / 10 }, 2 * maxDialsPerPod, 1, 50 * time.Millisecond},
		"slow":               {func(int32) time.Duration { return time.Minute }, requests, requests, time.Minute + requests/maxDialsPerPod*dial + dial},
		"quick, then slow":   {func(i int32) time.Duration { return time.Duration(min(1, i/501)) * time.Minute }, requests, 500, time.Minute + requests/maxDialsPerPod*dial},
		"as long as a dial":  {func(int32) time.Duration { return dial }, requests / 2, maxDialsPerPod, 30 * dial},
		"a hundred in dials": {func(int32) time.Duration { return 100 * dial }, requests, requests * 9 / 10, 170 * dial},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dials, begun atomic.Int32
				all := &pools{open: map[*podConns]bool{}, dial: func(context.Context, string, string) (net.Conn, error) {
					dials.Add(1)
					pass(dial)
					conn, peer := net.Pipe()
					return closeTold{conn, peer, &atomic.Int32{}}, nil
				}}
				var s podConns
				var running sync.WaitGroup
				start := time.Now()
				for range requests {
					running.Go(func() {
						c, _, err := s.get(t.Context(), all, "pod", start, false)
						if err != nil {
							t.Error(err)
							return
						}
						// And not a channel of package time: of those that are due at once, many at the same time, in a bubble,
						// the race detector's own runtime dies (golang/go#78156).
						pass(tt.takes(begun.Add(1)))
						c.release(true)
					})
				}
				running.Wait()
				t.Logf("%d dials, the last was served after %s", dials.Load(), time.Since(start))
				if n := dials.Load(); n > tt.atMost || n < tt.atLeast {
					t.Errorf("%d dials, want %d to %d", n, tt.atLeast, tt.atMost)
				}
				if took := time.Since(start); took > tt.within {
					t.Errorf("the last was served after %s, want %s at most", took, tt.within)
				}
				all.close()
			})
		})
	}
}

// Packets are lost for a moment, when a burst comes to a pod that has much to do, and dials take a second; after that one takes a
// millisecond again, and the load has doubled. It gets the connections that it needs, though those that there are become free far
// more often than dials were seen to bring new ones.
func TestConnectionsFollowALoadThatLasts(t *testing.T) {
	const before, burst, after, takes = 500, 500, 1000, 50 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Bool
		all := &pools{open: map[*podConns]bool{}, dial: func(context.Context, string, string) (net.Conn, error) {
			if pass(time.Millisecond); lost.Load() {
				pass(time.Second)
			}
			conn, peer := net.Pipe()
			return closeTold{conn, peer, &atomic.Int32{}}, nil
		}}
		var s podConns
		var running sync.WaitGroup
		var last atomic.Int64 // wait of a request that came last
		request := func() {
			running.Go(func() {
				came := time.Now()
				c, _, err := s.get(t.Context(), all, "pod", came, false)
				if err != nil {
					t.Error(err)
					return
				}
				last.Store(int64(time.Since(came)))
				pass(rand.N(2 * takes))
				c.release(true)
			})
		}
		load := func(perSecond int, d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); pass(time.Second / time.Duration(perSecond)) {
				request()
			}
		}
		load(before, time.Second)
		lost.Store(true)
		time.AfterFunc(100*time.Millisecond, func() { lost.Store(false) })
		for range burst {
			request()
		}
		load(before, time.Second)
		load(after, 2*time.Second)
		if took := time.Duration(last.Load()); took > 10*time.Millisecond {
			t.Errorf("two seconds later requests wait for a connection for %s, want 10ms at most", took)
		}
		running.Wait()
		all.close()
	})
}

// A dial that fails ends the wait of all for a connection to that pod: another pod may do.
func TestFailedDialEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan error)
		all, _, _ := pipes(dials)
		var s podConns
		var failed atomic.Int32
		var running sync.WaitGroup
		for range 2 * maxDialsPerPod {
			running.Go(func() {
				if _, _, err := s.get(t.Context(), all, "pod", time.Now(), false); isDialError(err) {
					failed.Add(1)
				}
			})
		}
		synctest.Wait()
		dials <- errors.New("refused")
		synctest.Wait()
		if got, want := failed.Load(), int32(maxDialsPerPod+1); got != want {
			t.Errorf("after one failed dial %d requests have an error, want it and those that waited: %d", got, want)
		}
		for range maxDialsPerPod - 1 {
			dials <- errors.New("refused")
		}
		running.Wait()
	})
}

// A request that is given up frees its place, whether it waits or dials, and its dial is no failure of the pod.
func TestGivenUpRequestsFreeTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan error)
		all, dialing, _ := pipes(dials)
		var s podConns
		var running sync.WaitGroup
		ctx, giveUp := context.WithCancel(t.Context())
		for range 2 * maxDialsPerPod {
			running.Go(func() {
				if _, _, err := s.get(ctx, all, "pod", time.Now(), false); err == nil {
					t.Error("a request that was given up has a connection")
				}
			})
		}
		synctest.Wait()
		got := make(chan error, 1)
		running.Go(func() {
			c, _, err := s.get(t.Context(), all, "pod", time.Now(), false)
			if err == nil {
				c.release(false)
			}
			got <- err
		})
		synctest.Wait()
		giveUp()
		synctest.Wait()
		if n := dialing.Load(); n != 1 {
			t.Errorf("%d dials are under way, want that of the request that stayed", n)
		}
		dials <- nil
		if err := <-got; err != nil {
			t.Errorf("the request that stayed: %v", err)
		}
		running.Wait()
		if s.dialing != 0 || len(s.waiting) != 0 {
			t.Errorf("dialing %d, waiting %d, want 0 and 0", s.dialing, len(s.waiting))
		}
	})
}

// Idle connections are closed in time, and not used after it, and all of them at the end.
func TestIdleConnectionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := make(chan error)
		close(dials)
		all, _, closed := pipes(dials)
		var s podConns
		take := func() *podConn {
			t.Helper()
			c, _, err := s.get(t.Context(), all, "pod", time.Now(), false)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		a, b := take(), take()
		a.release(true)
		pass(idleConnTimeout / 2)
		b.release(true)
		pass(idleConnTimeout/2 + time.Millisecond)
		synctest.Wait()
		if n := closed.Load(); n != 1 {
			t.Errorf("%d connections are closed, want the one that was idle for %s", n, idleConnTimeout)
		}
		if c := take(); c != b {
			t.Error("the connection that was not idle for long was not used")
		}
		pass(2 * idleConnTimeout)
		synctest.Wait()
		if len(all.open) != 0 {
			t.Error("pools without an idle connection are remembered")
		}
		b.release(true)
		all.close()
		take().release(true)
		if n := closed.Load(); n != 3 {
			t.Errorf("%d connections are closed after the end, want 3", n)
		}
	})
}

// A kept connection that the pod closes as the request comes: a request that may be repeated is, on a new connection, and
// another is not.
func TestKeptConnectionClosedUnderRequest(t *testing.T) {
	for _, tt := range []struct {
		method     string
		wantStatus int
		wantSeen   int32
	}{
		{http.MethodGet, http.StatusOK, 3},
		{http.MethodPost, http.StatusBadGateway, 2},
	} {
		t.Run(tt.method, func(t *testing.T) {
			var requests atomic.Int32
			_, _, url := warm(t, newPod(t, func(w http.ResponseWriter, _ *http.Request) {
				if requests.Add(1) == 2 {
					panic(http.ErrAbortHandler) // closes the connection without a word
				}
				_, _ = io.WriteString(w, "ok")
			}))
			if a := get(t, url); a.status != http.StatusOK {
				t.Fatalf("first request: %+v", a)
			}
			if a := do(t, newRequest(t, tt.method, url, nil)); a.status != tt.wantStatus {
				t.Errorf("second request: %+v, want status %d", a, tt.wantStatus)
			}
			if got := requests.Load(); got != tt.wantSeen {
				t.Errorf("the pod has seen %d requests, want %d", got, tt.wantSeen)
			}
		})
	}
}
