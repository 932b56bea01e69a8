package activator

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Three activators have far more requests than their pods take: each pod has its limit at some moment, and never more.
func TestNoPodHasMoreThanItsLimit(t *testing.T) {
	for _, tt := range []struct {
		pods  int
		limit int32
	}{{1, 1}, {1, 4}, {2, 3}, {3, 1}, {7, 2}} {
		t.Run(fmt.Sprintf("%d pods of %d", tt.pods, tt.limit), func(t *testing.T) {
			all := joined(t, 3)
			meters, addresses := newMeteredPods(t, tt.pods)
			for _, m := range meters {
				m.fillsBy(tt.limit)
			}
			urls := deploy(t, all, newTestFunction("hello", limited(tt.limit)), addresses...)
			const clients, each = 48, 8
			var running sync.WaitGroup
			for c := range clients {
				tr := &http.Transport{}
				t.Cleanup(tr.CloseIdleConnections)
				running.Go(func() {
					for i := range each {
						method, body := http.MethodGet, io.Reader(nil)
						if (c+i)%3 == 0 {
							method, body = http.MethodPost, strings.NewReader("some words")
						}
						res, err := tr.RoundTrip(newRequest(t, method, urls[(c+i)%len(urls)]+"?d=2ms", body))
						if err != nil {
							t.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, res.Body)
						_ = res.Body.Close()
						if res.StatusCode != http.StatusOK {
							t.Errorf("got %d", res.StatusCode)
						}
					}
				})
			}
			running.Wait()
			served := int64(0)
			for i, m := range meters {
				served += m.served.Load()
				if got := m.top.Load(); got != int64(tt.limit) {
					t.Errorf("pod %d had %d requests at the same time, want %d", i, got, tt.limit)
				}
			}
			if served != clients*each {
				t.Errorf("the pods served %d requests, want %d", served, clients*each)
			}
			var started uint64
			for _, r := range all {
				fn := r.function()
				eventually(t, "all requests finished", func() bool { return r.proxy.active.Load() == 0 })
				n := fn.stats.snapshot()
				started += n.started
				if n.finished[outcomeOK] != n.started || n.inFlight != 0 || n.held != 0 {
					t.Errorf("%s: got %+v, want all that started finished", r.name, n)
				}
				for _, p := range fn.pods.Load().ready {
					if got := p.inFlight.Load(); got != 0 {
						t.Errorf("%s counts %d at %s at the end", r.name, got, p.address)
					}
				}
			}
			// Also what was handed on counts once.
			if started != clients*each {
				t.Errorf("counted %d requests, want %d", started, clients*each)
			}
		})
	}
}

// Activators and pods come and go while requests run, and each activator learns of it at another time. Requests that are
// under way stay; no pod ever has more than its limit.
func TestNoPodHasMoreThanItsLimitWhateverChanges(t *testing.T) {
	const limit, seconds = 2, 3
	all := joined(t, 3)
	meters, addresses := newMeteredPods(t, 4)
	urls := deploy(t, all, newTestFunction("hello", limited(limit), timeout(20*time.Second)), addresses...)
	end := time.Now().Add(seconds * time.Second)
	var running sync.WaitGroup
	var answered atomic.Int64
	for c := range 24 {
		tr := &http.Transport{}
		t.Cleanup(tr.CloseIdleConnections)
		running.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				d := time.Duration(rand.IntN(30)) * time.Millisecond
				res, err := tr.RoundTrip(newRequest(t, http.MethodGet, fmt.Sprintf("%s?d=%s", urls[(c+i)%len(urls)], d), nil))
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("got %d %s", res.StatusCode, body)
				}
				answered.Add(1)
			}
		})
	}
	for _, r := range all {
		running.Go(func() {
			for time.Now().Before(end) {
				// One of the activators is seen as stopping, or none; and one of the pods as gone, as unready, or as none of it.
				var ready []*replica
				for i, out := 0, rand.IntN(4); i < len(all); i++ {
					if i != out {
						ready = append(ready, all[i])
					}
				}
				r.sees(all, ready)
				i := 1 + rand.IntN(len(addresses)-1)
				slice := newSlice("hello", i, addresses[i], rand.IntN(2) == 0)
				if rand.IntN(3) == 0 {
					slice.Endpoints = nil
				}
				r.table.setSlice(slice)
				sleep(t.Context(), time.Duration(rand.IntN(60))*time.Millisecond)
			}
			r.sees(all, all)
			r.pods("hello", addresses...)
		})
	}
	running.Wait()
	for i, m := range meters {
		if got := m.top.Load(); got > limit {
			t.Errorf("pod %d had %d requests at the same time, want %d at most", i, got, limit)
		}
	}
	t.Logf("%d requests were answered", answered.Load())
	eventually(t, "each pod is somebody's again", func() bool {
		return all[0].settled()+all[1].settled()+all[2].settled() == len(addresses)
	})
}
