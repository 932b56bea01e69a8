package activator

import (
	"bufio"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	rtmetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/apimachinery/pkg/types"
)

func held(fn *function) int { return int(fn.stats.snapshot().held) }

func TestHeldRequestsAreAnsweredByOneWrite(t *testing.T) {
	address := newPod(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	there := make(chan struct{}) // a pod: until then the patch is under way, or it would be repeated after a while
	p := newPlane(t, func(d types.NamespacedName, n int32) (bool, error) {
		if d.String() != "default/hello" || n != 1 {
			t.Errorf("wake %s to %d replicas, want default/hello to 1", d, n)
		}
		<-there
		return true, nil
	})
	answerAll := sync.OnceFunc(func() { close(there) })
	defer answerAll()
	fn := p.add(newTestFunction("hello"))
	url := p.gateURL(fn)
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			path := fmt.Sprintf("/%d", i)
			got := get(t, url+path)
			if got.status != http.StatusOK || got.body != path {
				t.Errorf("got %d %q, want 200 %q", got.status, got.body, path)
			}
			if d, err := time.ParseDuration(got.header.Get(headerColdStart)); err != nil || d > 10*time.Second {
				t.Errorf("%s: got %q, want the time held", headerColdStart, got.header.Get(headerColdStart))
			}
		})
	}
	// The patch is waited for too: none is sent for who has a pod already.
	eventually(t, "all are held", func() bool { return held(fn) == n && p.wakes.Load() > 0 })
	p.pods("hello", address)
	answerAll()
	wg.Wait()
	if got := p.wakes.Load(); got != 1 {
		t.Errorf("patches: got %d, want 1", got)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeOK: n})
	if got := get(t, url+"/warm"); got.header.Get(headerColdStart) != "" {
		t.Errorf("a warm answer carries %s %q", headerColdStart, got.header.Get(headerColdStart))
	}
}

func TestQueueKeepsOrderWhenOneLeaves(t *testing.T) {
	q := queue{kick: make(chan struct{}, 1)}
	places := make([]*list.Element, 4)
	for i := range places {
		var err error
		if places[i], err = q.join(len(places), &waiter{released: make(chan struct{})}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.join(len(places), &waiter{released: make(chan struct{})}); !errors.Is(err, errQueueFull) {
		t.Errorf("join a full queue: got %v, want %v", err, errQueueFull)
	}
	q.leave(places[1])
	last, err := q.join(len(places), &waiter{released: make(chan struct{})})
	if err != nil {
		t.Errorf("join after one left: %v", err)
	}
	var got []*list.Element
	for e := q.waiting.Front(); e != nil; e = e.Next() {
		got = append(got, e)
	}
	if want := []*list.Element{places[0], places[2], places[3], last}; !slices.Equal(got, want) {
		t.Errorf("the queue is not in the order of arrival")
	}
	q.mu.Lock()
	q.releaseLocked()
	q.mu.Unlock()
	for _, e := range got {
		select {
		case <-e.Value.(*waiter).released:
		default:
			t.Error("release left one behind")
		}
	}
	q.leave(last) // as every released request does
	if n := q.waiting.Len(); n != 0 {
		t.Errorf("after release: %d wait, want 0", n)
	}
}

func TestWakeAsksForAsManyReplicasAsAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int32
		p := newPlane(t, func(_ types.NamespacedName, n int32) (bool, error) {
			got = append(got, n)
			return len(got) == 1, nil // as the API server: only the first finds zero replicas
		})
		obj := newTestFunction("hello", timeout(3*time.Second))
		obj.Spec.Activation.PerReplica = 10
		fn := p.add(obj)
		for range 25 {
			go p.proxy.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
		}
		pass(4 * time.Second)
		p.proxy.wakers.Wait()
		// Only the first patch counts, so it must ask for the whole burst.
		if len(got) != 2 || got[0] != 3 {
			t.Errorf("replicas asked for: got %v, want two patches, the first for 3", got)
		}
	})
}

func TestQueueFull(t *testing.T) {
	for _, tt := range []struct {
		name     string
		option   func(*Options)
		sentence string
	}{
		{"function", func(*Options) {}, "spec.activation.maxHeld"},
		{"total", func(o *Options) { o.MaxHeld = 1 }, "MaxHeld"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil, tt.option)
			bound := int32(1)
			if tt.name == "total" {
				bound = 100
			}
			fn := p.add(newTestFunction("hello", maxHeld(bound)))
			url := p.gateURL(fn)
			ctx, cancel := context.WithCancel(t.Context())
			first := make(chan struct{})
			go func() {
				defer close(first)
				_, _ = http.DefaultTransport.RoundTrip(newRequest(t, http.MethodGet, url, nil).WithContext(ctx)) //nolint:bodyclose // it is given up
			}()
			eventually(t, "one is held", func() bool { return held(fn) == 1 })
			got := get(t, url)
			if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "2" || got.header.Get(headerReason) != "QueueFull" {
				t.Errorf("got %d %v, want 503 QueueFull with Retry-After", got.status, got.header)
			}
			if b := got.refusal(t); b.Reason != "QueueFull" || b.Function != "default/hello" || !strings.Contains(b.Error, tt.sentence) {
				t.Errorf("body: got %+v, want the bound %s named", b, tt.sentence)
			}
			cancel()
			<-first
			wantFinished(t, fn, map[outcome]uint64{outcomeQueueFull: 1, outcomeClientGone: 1})
		})
	}
}

func TestHoldTimeout(t *testing.T) {
	tests := []struct {
		name     string
		wake     wakerFunc
		sentence string
		logged   int // errors, however often the patch was repeated
	}{
		{"woken, but no pod", nil, "kubectl -n default describe deployment hello", 0},
		{"wake refused", func(types.NamespacedName, int32) (bool, error) { return false, errors.New("forbidden by RBAC") }, "the activator's log", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, tt.wake)
				logged := 0
				p.proxy.log = funcr.New(func(_, line string) {
					if strings.Contains(line, `"error"`) {
						logged++
					}
				}, funcr.Options{})
				fn := p.add(newTestFunction("hello", timeout(30*time.Second)))
				w := httptest.NewRecorder()
				start := time.Now()
				p.proxy.serve(w, httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
				if got := time.Since(start); got != 30*time.Second {
					t.Errorf("held for %s, want exactly 30s", got)
				}
				got := answer{w.Code, w.Header(), w.Body.String()}
				if got.status != http.StatusGatewayTimeout || got.header.Get(headerReason) != "HoldTimeout" || got.header.Get(headerColdStart) != "30000ms" {
					t.Errorf("got %d %v, want 504 HoldTimeout after 30000ms", got.status, got.header)
				}
				if b := got.refusal(t); !strings.Contains(b.Error, tt.sentence) || !strings.Contains(b.Error, "30s") {
					t.Errorf("sentence %q does not say %q", b.Error, tt.sentence)
				}
				n := fn.stats.snapshot()
				if n.waited.seconds() != 30 || n.busy.seconds() != 30 || n.held != 0 || n.inFlight != 0 {
					t.Errorf("counts: got %+v, want 30 s held, of 30 s busy", n)
				}
				wantFinished(t, fn, map[outcome]uint64{outcomeHoldTimeout: 1})
				p.proxy.wakers.Wait()
				if logged != tt.logged {
					t.Errorf("errors logged: got %d, want %d", logged, tt.logged)
				}
			})
		})
	}
}

func TestWakeIsRepeatedWhileRequestsAreHeld(t *testing.T) {
	tests := []struct {
		name     string
		wake     wakerFunc
		min, max int64 // in 10 s
	}{
		// 0.25, 0.5, 1, 2, 4 ... s apart, or 2, 4 ..., give or take a fifth.
		{"it says it is awake", func(types.NamespacedName, int32) (bool, error) { return false, nil }, 5, 7},
		{"it was woken", func(types.NamespacedName, int32) (bool, error) { return true, nil }, 3, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, tt.wake)
				fn := p.add(newTestFunction("hello", timeout(10*time.Second)))
				p.proxy.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
				p.proxy.wakers.Wait()
				if got := p.wakes.Load(); got < tt.min || got > tt.max {
					t.Errorf("patches in 10s: got %d, want %d to %d", got, tt.min, tt.max)
				}
				pass(time.Hour)
				if got := p.wakes.Load(); got > tt.max {
					t.Errorf("patches go on when nothing is held: %d", got)
				}
			})
		})
	}
}

func TestClientsThatComeAndGoDoNotEachCauseAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		fn := p.add(newTestFunction("hello"))
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			p.proxy.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx), fn, &gate{fn: fn})
			cancel()
			synctest.Wait()
		}
		// 100 requests in one second, at most one patch in 250 ms.
		if got := p.wakes.Load(); got < 2 || got > 5 {
			t.Errorf("patches: got %d, want 2 to 5", got)
		}
	})
}

func TestDeletedWhileHeld(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	url := p.gateURL(fn)
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := get(t, url); got.status != http.StatusNotFound || got.header.Get(headerReason) != "FunctionDeleted" {
			t.Errorf("held when deleted: got %d %q, want 404 FunctionDeleted", got.status, got.header.Get(headerReason))
		}
	})
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	p.table.removeFunction(fn.key)
	wg.Wait()
	if got := get(t, url); got.status != http.StatusNotFound {
		t.Errorf("after deletion: got %d, want 404", got.status)
	}
}

// Readiness toggles as fast as it can while requests come: none may be left behind in the queue while a pod is ready.
func TestNoWakeUpIsLost(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	stop := make(chan struct{})
	var toggler, clients sync.WaitGroup
	toggler.Go(func() {
		for ready := true; ; ready = !ready {
			select {
			case <-stop:
				p.table.setSlice(newSlice("hello", 0, "127.0.0.1:1", true))
				return
			default:
				p.table.setSlice(newSlice("hello", 0, "127.0.0.1:1", ready))
			}
		}
	})
	var passed atomic.Int64
	for range 32 {
		clients.Go(func() {
			for range 500 {
				ex := &exchange{fn: fn, start: fn.stats.start()}
				for fn.pods.Load().pick(nil) == nil {
					if _, err := p.proxy.hold(t.Context(), ex); err != nil {
						t.Error(err)
						return
					}
				}
				fn.stats.finish(outcomeOK)
				passed.Add(1)
			}
		})
	}
	clients.Wait()
	close(stop)
	toggler.Wait()
	if got := passed.Load(); got != 32*500 {
		t.Errorf("passed: got %d, want %d", got, 32*500)
	}
	if got := fn.stats.snapshot(); got.held != 0 || fn.queue.waiting.Len() != 0 || p.proxy.held.Load() != 0 {
		t.Errorf("still held: %d counted, %d waiting, %d in total", got.held, fn.queue.waiting.Len(), p.proxy.held.Load())
	}
}

// The same, one cycle at a time: the pod becomes ready once and stays so while requests arrive around that moment.
// A lost wake-up shows as a request that waits for its timeout.
func TestNoWakeUpIsLostAtTheLastChange(t *testing.T) {
	for range 300 {
		p := newPlane(t, nil)
		fn := p.add(newTestFunction("hello", timeout(5*time.Second)))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := p.proxy.hold(t.Context(), &exchange{fn: fn, start: time.Now()}); err != nil {
					t.Errorf("lost: %v", err)
				}
			})
		}
		p.table.setSlice(newSlice("hello", 0, "127.0.0.1:1", true))
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}

func TestBodyIsNotReadWhileHeld(t *testing.T) {
	address := newPod(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.gateURL(fn), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	// To read the body would be to ask for it: nothing may come before there is a pod.
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n != 0 {
		t.Errorf("the gate asked for the body of a held request (%v)", err)
	}
	p.pods("hello", address)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(conn)
	line, err := br.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("got %q, %v, want 100 Continue", line, err)
	}
	fmt.Fprint(conn, "hello")
	rest, err := io.ReadAll(br)
	if err != nil || !strings.Contains(string(rest), "HTTP/1.1 200") || !strings.Contains(string(rest), "hello") {
		t.Errorf("got %q, %v, want 200 with the body", rest, err)
	}
}

// TestStackOfAHeldRequest holds what a held request has on the stacks of its two goroutines against what any request has
// that waits in a handler. Stacks grow by doubling: a few variables too many in any function from net/http's down to await
// cost 4 KiB and, because the runtime makes stacks as large as they are on average, 2 KiB more for the other goroutine. (Under the
// race detector all frames are larger, and it shows nothing.)
func TestStackOfAHeldRequest(t *testing.T) {
	const requests = 500
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", maxHeld(requests)))
	var waiting atomic.Int64
	waits := func(_ http.ResponseWriter, r *http.Request) {
		waiting.Add(1)
		<-r.Context().Done()
	}
	floor := stacksOf(t, p.serve(http.HandlerFunc(waits)), requests, func() bool { return waiting.Load() == requests })
	got := stacksOf(t, p.gateURL(fn), requests, func() bool { return held(fn) == requests })
	t.Logf("stack of a held request: %d bytes; of one that a bare handler lets wait: %d", got, floor)
	if got > floor*3/2 {
		t.Errorf("a held request has %d bytes of stack, want at most half more than the %d that it takes to wait at all", got, floor)
	}
}

// stacksOf is the stack of each of so many requests that wait at url, in bytes.
func stacksOf(t *testing.T, url string, requests int, wait func() bool) uint64 {
	t.Helper()
	stacks := func() uint64 {
		runtime.GC()
		sample := []rtmetrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
		rtmetrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before, running := stacks(), runtime.NumGoroutine()
	var conns []net.Conn
	for range requests {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
	}
	eventually(t, "all wait", wait)
	each := (stacks() - before) / uint64(requests)
	for _, conn := range conns {
		_ = conn.Close()
	}
	eventually(t, "their goroutines have ended", func() bool { return runtime.NumGoroutine() <= running })
	return each
}
