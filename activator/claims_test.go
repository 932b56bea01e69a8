package activator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// roundTrip is another activator, in the time of a bubble.
type roundTrip func(ctx context.Context, q claimsQuestion) (inside []int64, err error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) {
	var q claimsQuestion
	if err := json.NewDecoder(req.Body).Decode(&q); err != nil {
		return nil, err
	}
	inside, err := f(req.Context(), q)
	switch {
	case errors.Is(err, errWait):
		return &http.Response{StatusCode: http.StatusConflict, Body: http.NoBody}, nil
	case err != nil:
		return nil, err
	}
	body, err := json.Marshal(claimsAnswer{inside})
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(body))}, err
}

// besides makes an activator whose are all pods of hello; the other one, which is ready or not, answers by f.
func besides(t *testing.T, ready bool, f roundTrip) (*plane, *function) {
	t.Helper()
	p := newPlane(t, nil)
	self := &peer{name: "self", ready: true}
	p.proxy.peers.set.Store(&peerSet{
		self: self, owners: []*peer{self}, others: []*peer{{name: "other", admin: "10.0.0.9:9090", ready: ready}},
	})
	p.proxy.peers.client.Transport = f
	return p, p.add(newTestFunction("hello", limited(2)))
}

// free is how many more requests the pods take.
func free(fn *function) (n int64) {
	for _, p := range fn.pods.Load().ready {
		for ; p.free(2); n++ {
			p.inFlight.Add(1)
		}
		p.inFlight.Store(0)
	}
	return n
}

func TestWhatOthersSayOfAPod(t *testing.T) {
	silence := func(ctx context.Context, _ claimsQuestion) ([]int64, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	refuse := func(context.Context, claimsQuestion) ([]int64, error) { return nil, syscall.ECONNREFUSED }
	say := func(n int64) roundTrip {
		return func(context.Context, claimsQuestion) ([]int64, error) { return []int64{n}, nil }
	}
	for _, tt := range []struct {
		name        string
		ready       bool
		other       roundTrip
		want        int64 // that are free at once
		later       int64 // after 10 s
		unconfirmed bool
	}{
		{"nothing there", true, say(0), 2, 2, false},
		{"one there", true, say(1), 1, 1, false},
		{"more than the limit there", true, say(7), 0, 0, false},
		{"it is mine", true, say(unsettled), 0, 0, false},
		{"cannot tell", true, func(context.Context, claimsQuestion) ([]int64, error) { return nil, errWait }, 0, 0, false},
		{"silent", true, silence, 0, 2, true},
		{"silent and not ready", false, silence, 0, 2, true},
		{"nobody listens, and it is ready", true, refuse, 0, 2, true},
		{"nobody listens, and it is not ready", false, refuse, 2, 2, false},
		{"another answer than to the question", true, func(context.Context, claimsQuestion) ([]int64, error) { return nil, nil }, 0, 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, fn := besides(t, tt.ready, tt.other)
				p.pods("hello", "10.0.0.1:80")
				synctest.Wait()
				if got := free(fn); got != tt.want {
					t.Errorf("at once %d are free, want %d", got, tt.want)
				}
				pass(silentAfter - time.Millisecond)
				if got := free(fn); tt.unconfirmed && got != 0 {
					t.Errorf("%d are free before the time is over", got)
				}
				pass(5 * time.Second)
				if got := free(fn); got != tt.later {
					t.Errorf("later %d are free, want %d", got, tt.later)
				}
				if got := counterValue(t, p.proxy.metrics.unconfirmed) > 0; got != tt.unconfirmed {
					t.Errorf("counted as unconfirmed: %v", got)
				}
				p.table.removeFunction(fn.key)
				pass(maxAsk + time.Second) // until nobody asks any more
			})
		})
	}
}

// A pod that is new is asked about at once, however long another one has been waited for.
func TestANewPodDoesNotWaitForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Bool
		p, fn := besides(t, true, func(_ context.Context, q claimsQuestion) ([]int64, error) {
			inside := make([]int64, len(q.Pods))
			for i, ref := range q.Pods {
				if ref.Address == "10.0.0.1:80" && !ended.Load() {
					inside[i] = 2
				}
			}
			return inside, nil
		})
		p.pods("hello", "10.0.0.1:80")
		pass(time.Minute)
		if got := free(fn); got != 0 {
			t.Errorf("%d are free, want none: the other one has two there", got)
		}
		p.table.setSlice(newSlice("hello", 1, "10.0.0.2:80", true))
		synctest.Wait()
		if got := free(fn); got != 2 {
			t.Errorf("%d are free, want 2 at the new pod", got)
		}
		ended.Store(true)
		pass(maxAsk)
		if got := free(fn); got != 4 {
			t.Errorf("%d are free after the other one's requests have ended, want 4", got)
		}
	})
}

// That it did not answer long ago says nothing of how long it is silent now.
func TestSilenceBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent atomic.Bool
		silent.Store(true)
		p, fn := besides(t, true, func(ctx context.Context, q claimsQuestion) ([]int64, error) {
			if silent.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return make([]int64, len(q.Pods)), nil
		})
		p.pods("hello", "10.0.0.1:80")
		pass(2 * time.Second)
		p.table.removeFunction(fn.key) // and nobody is asked any more
		pass(time.Hour)

		fn = p.add(newTestFunction("hello", limited(2)))
		pass(silentAfter - time.Millisecond)
		if got := free(fn); got != 0 {
			t.Errorf("%d are free though the other one has had no time to answer", got)
		}
		silent.Store(false)
		pass(maxAsk + time.Second)
		if got := free(fn); got != 2 {
			t.Errorf("%d are free after its answer, want 2", got)
		}
	})
}

// manyAsk makes an activator with far more functions than may ask at a time. The other one does not answer.
func manyAsk(t *testing.T) *plane {
	t.Helper()
	p, _ := besides(t, true, func(ctx context.Context, _ claimsQuestion) ([]int64, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for i := range 20 * maxAsking {
		fn := p.add(newTestFunction(fmt.Sprint("f", i), limited(1)))
		p.pods(fn.key.Name, fmt.Sprintf("10.1.%d.%d:80", i/250, i%250))
	}
	synctest.Wait()
	return p
}

// The last function has its pods when the first has.
func TestManyAskOneThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := manyAsk(t)
		pass(silentAfter + 2*askTimeout)
		unsettled := 0
		for _, fn := range p.table.all() {
			unsettled += len(fn.pods.Load().share.unsettled())
		}
		if unsettled > 0 {
			t.Errorf("%d functions wait still", unsettled)
		}
	})
}

func TestTheActivatorEndsThoughManyAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := manyAsk(t)
		began := time.Now()
		p.proxy.peers.close()
		if d := time.Since(began); d > askTimeout {
			t.Errorf("it took %s, want the time of one question at most", d)
		}
		p.proxy.peers.stop = make(chan struct{}) // newPlane closes it too
	})
}
