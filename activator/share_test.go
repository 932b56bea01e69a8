package activator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func named(kind string, n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%d", kind, i))
	}
	return names
}

// byName is what divide says, by the pods' names.
func byName(pods, owners []string) map[string]string {
	m := map[string]string{}
	for i, o := range divide(pods, owners) {
		m[pods[i]] = owners[o]
	}
	return m
}

func TestDivideIsBalancedAndTheSameForAll(t *testing.T) {
	for range 300 {
		pods, owners := named("pod", rand.IntN(60)), named("activator", 1+rand.IntN(7))
		of := byName(pods, owners)
		n := map[string]int{}
		for _, p := range pods {
			n[of[p]]++
		}
		least, most := len(pods), 0
		for _, o := range owners {
			least, most = min(least, n[o]), max(most, n[o])
		}
		if least != len(pods)/len(owners) || most != (len(pods)+len(owners)-1)/len(owners) {
			t.Fatalf("%d pods, %d owners: from %d to %d each", len(pods), len(owners), least, most)
		}
		shuffled := slices.Clone(pods)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for p, o := range byName(shuffled, owners) {
			if of[p] != o {
				t.Fatalf("whose %s is depends on the order of the pods", p)
			}
		}
	}
	if got := divide(named("pod", 3), nil); len(got) != 0 {
		t.Errorf("without owners: got %v", got)
	}
}

// Of those that stay, few change hands when an owner or a pod comes or goes: not many more than have to for the balance.
func TestDivideIsStable(t *testing.T) {
	moved := func(before, after map[string]string) int {
		n := 0
		for p, o := range before {
			if to, ok := after[p]; ok && to != o {
				n++
			}
		}
		return n
	}
	const rounds = 200
	for _, tt := range []struct {
		name         string
		pods, owners int
		change       func(pods, owners []string) ([]string, []string)
		mean         float64 // of the pods that move; what the balance needs is said beside it
	}{
		{"one of 2 owners goes", 40, 2, func(p, o []string) ([]string, []string) { return p, o[1:] }, 20},             // 20
		{"one of 3 owners goes", 60, 3, func(p, o []string) ([]string, []string) { return p, o[1:] }, 22.5},           // 20
		{"a third owner comes", 60, 2, func(p, o []string) ([]string, []string) { return p, append(o, "new") }, 22.5}, // 20
		{"a pod comes", 60, 3, func(p, o []string) ([]string, []string) { return append(p, "new"), o }, 1.5},          // 0
		{"a pod goes", 60, 3, func(p, o []string) ([]string, []string) { return p[1:], o }, 1.5},                      // 0
	} {
		t.Run(tt.name, func(t *testing.T) {
			sum := 0
			for i := range rounds {
				pods, owners := named(fmt.Sprintf("pod%d", i), tt.pods), named(fmt.Sprintf("activator%d", i), tt.owners)
				before := byName(pods, owners)
				sum += moved(before, byName(tt.change(pods, owners)))
			}
			if got := float64(sum) / rounds; got > tt.mean {
				t.Errorf("%.1f pods change hands on average, want %.1f at most", got, tt.mean)
			} else {
				t.Logf("%.1f pods change hands on average", got)
			}
		})
	}
}

// alone makes an activator that is the only one.
func alone(t *testing.T, change ...func(*Options)) *replica {
	t.Helper()
	return joined(t, 1, change...)[0]
}

// A place that is free is for who has waited longest.
func TestPlacesGoInTheOrderOfArrival(t *testing.T) {
	r := alone(t)
	order, next := make(chan string, 100), make(chan struct{})
	url := deploy(t, []*replica{r}, newTestFunction("hello", limited(1)), newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		order <- r.URL.Path
		<-next
	}))[0]
	fn := r.function()
	var clients sync.WaitGroup
	ask := func(path string) { clients.Go(func() { get(t, url+path) }) }
	ask("/first")
	if got := <-order; got != "/first" {
		t.Fatal(got)
	}
	const n = 20
	for i := range n {
		ask(fmt.Sprint("/", i))
		eventually(t, "it waits", func() bool { return held(fn) == i+1 })
	}
	for i := range n {
		next <- struct{}{}
		ask("/late") // each time one more comes at the moment at which a place becomes free
		if got, want := <-order, fmt.Sprint("/", i); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	close(next)
	clients.Wait()
}

// A pod that refuses connections is set aside, and nobody has a place there meanwhile. When it takes some again it gets
// requests again, although nothing but the time tells.
func TestAPodThatRefusesHoldsNoPlaces(t *testing.T) {
	r := alone(t)
	inside, next := make(chan struct{}), make(chan struct{})
	good := newPod(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stay" {
			close(inside)
			<-next
		}
		echo(w, r)
	})
	bad := refusing(t)
	url := deploy(t, []*replica{r}, newTestFunction("hello", limited(1)), good, bad)[0]
	fn := r.function()
	for fn.pods.Load().ready[1].aside.Load() == nil { // until it was found out
		if got := get(t, url); got.status != http.StatusOK {
			t.Fatalf("got %d %s", got.status, got.body)
		}
	}
	var clients sync.WaitGroup
	ask := func(path string) {
		clients.Go(func() {
			if got := get(t, url+path); got.status != http.StatusOK {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	ask("/stay")
	<-inside
	ask("/waits")
	eventually(t, "it waits", func() bool { return held(fn) == 1 })
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", bad)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	eventually(t, "the pod that is back answers", func() bool { return held(fn) == 0 && fn.stats.snapshot().inFlight == 1 })
	close(next)
	clients.Wait()
}

// The time is over for some that wait, and the others are served.
func TestWhoWaitsTooLongForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil, func(o *Options) { o.PodName = "self" })
		self := &peer{name: "self"}
		p.proxy.peers.set.Store(&peerSet{self: self, owners: []*peer{self}})
		fn := p.add(newTestFunction("hello", limited(1), timeout(30*time.Second), maxHeld(2)))
		p.pods("hello", "10.0.0.1:80")
		busy, err := p.proxy.next(t.Context(), &exchange{fn: fn, start: time.Now()})
		if err != nil || busy == nil {
			t.Fatal(busy, err)
		}
		var waiting sync.WaitGroup
		answers := make([]*httptest.ResponseRecorder, 3)
		for i := range answers {
			answers[i] = httptest.NewRecorder()
			waiting.Go(func() {
				p.proxy.serve(answers[i], httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
			})
			synctest.Wait()
		}
		waiting.Wait()
		for i, want := range []struct {
			status         int
			reason, phrase string
		}{
			{504, "HoldTimeout", "spec.metrics[].concurrency.limit is 1"},
			{504, "HoldTimeout", "spec.scale.maxReplicas"},
			{503, "QueueFull", "has no pod with a free place"},
		} {
			got := answer{answers[i].Code, answers[i].Header(), answers[i].Body.String()}
			if got.status != want.status || got.header.Get(headerReason) != want.reason || !strings.Contains(got.body, want.phrase) {
				t.Errorf("got %d %s, want %+v", got.status, got.body, want)
			}
			if got.header.Get(headerColdStart) != "" {
				t.Errorf("%s is said of a function that is awake", headerColdStart)
			}
		}
		if p.wakes.Load() != 0 {
			t.Errorf("%d wakes of a function that is awake", p.wakes.Load())
		}
		fn.leave(busy)
		if again, err := p.proxy.next(t.Context(), &exchange{fn: fn, start: time.Now()}); again != busy || err != nil {
			t.Errorf("got %v, %v: the place is not free again", again, err)
		}
	})
}

// The limit comes, changes and goes with the function's spec.
func TestTheLimitChanges(t *testing.T) {
	all := joined(t, 2)
	m, leave := &meter{}, make(chan struct{})
	urls := deploy(t, all, newTestFunction("hello"), newPod(t, func(http.ResponseWriter, *http.Request) {
		defer m.begin()()
		<-leave
	}))
	set := func(n int32) {
		for _, r := range all {
			r.table.setFunction(newTestFunction("hello", limited(n)))
		}
	}
	const clients = 12
	var running sync.WaitGroup
	ask := func() {
		for i := range clients {
			running.Go(func() {
				if got := get(t, urls[i%2]); got.status != http.StatusOK {
					t.Errorf("got %d %s", got.status, got.body)
				}
			})
		}
	}
	end := func(n int) {
		for range n {
			leave <- struct{}{}
		}
	}
	endAll := sync.OnceFunc(func() { close(leave) })
	defer endAll()
	want := func(what string, inside int64, waiting int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s: %d are inside and %d wait", what, inside, waiting), func() bool {
			return m.now.Load() == inside && all[0].waits()+all[1].waits() == waiting
		})
	}
	ask()
	want("without a limit", clients, 0)
	set(2)
	ask()
	want("those that were there stay", clients, clients)
	end(clients - 2)
	want("nobody comes in their place", 2, clients)
	m.top.Store(0)
	end(1)
	want("one for one", 2, clients-1)
	set(5)
	want("more", 5, clients-4)
	set(1)
	end(4)
	want("fewer", 1, clients-4)
	end(1)
	want("one for one again", 1, clients-5)
	if got := m.top.Load(); got != 5 {
		t.Errorf("there were %d inside, want 5 at most", got)
	}
	set(0)
	want("without a limit again", clients-4, 0)
	endAll()
	running.Wait()
}

// A pod that refused is back, of which only the time tells. Who was given a placeholder meanwhile leaves no waker behind.
func TestNobodyIsLeftWhoWakesForAPlaceholder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, fn := besides(t, true, func(context.Context, claimsQuestion) ([]int64, error) { return []int64{0}, nil })
		p.pods("hello", "10.0.0.1:80")
		fn.pods.Load().ready[0].refused(time.Now())
		_ = p.proxy.answerPlaceholder(fn, fn.object.Load(), &page)
		pass(setAside)
		synctest.Wait()
		fn.queue.mu.Lock()
		if fn.queue.waking {
			t.Error("it is woken still")
		}
		fn.queue.mu.Unlock()
		p.table.removeFunction(fn.key)
	})
}

// The activator loses its pods to one that refused a moment ago. Who waits is handed on as soon as that may be asked again.
func TestWhoWaitsGoesOnWithThePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, fn := besides(t, true, func(context.Context, claimsQuestion) ([]int64, error) { return []int64{0}, nil })
		p.table.setFunction(newTestFunction("hello", limited(1)))
		p.pods("hello", "10.0.0.1:80")
		synctest.Wait()
		busy, err := p.proxy.next(t.Context(), &exchange{fn: fn, start: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		fn.handOns["10.0.0.9.peer:9090"].refused(time.Now())
		got := make(chan *pod, 1)
		go func() {
			pod, _ := p.proxy.next(t.Context(), &exchange{fn: fn, start: time.Now()})
			got <- pod
		}()
		synctest.Wait()

		other := newSlice(v1alpha1.ActivatorService, 0, "10.0.0.9:9090", true)
		other.Namespace = p.proxy.peers.service.Namespace
		other.Ports[0].Name = new(v1alpha1.ActivatorMetricsPort)
		other.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: other.Namespace, Name: "other"}
		p.table.setSlice(other)
		pass(setAside)
		synctest.Wait()
		select {
		case pod := <-got:
			if !pod.peer {
				t.Errorf("got the pod %s, want the other activator", pod.address)
			}
			fn.leave(pod)
		default:
			t.Error("it waits still")
		}
		fn.leave(busy)
		p.table.removeFunction(fn.key)
	})
}

// A pod that was made anew under its name is listed beside the one before it, as it is for activators of a StatefulSet.
func TestTwoPodsOfOneName(t *testing.T) {
	p := newPlane(t, nil, func(o *Options) { o.PodName = "activator-0" })
	for i, address := range []string{"10.0.0.8:9090", "10.0.0.9:9090"} {
		slice := newSlice(v1alpha1.ActivatorService, i, address, false)
		slice.Namespace = p.proxy.peers.service.Namespace
		slice.Ports[0].Name = new(v1alpha1.ActivatorMetricsPort)
		slice.Endpoints[0].TargetRef = &corev1.ObjectReference{
			Kind: "Pod", Namespace: slice.Namespace, Name: "activator-0", UID: types.UID(address),
		}
		p.table.setSlice(slice)
	}
	fn := p.add(newTestFunction("hello", limited(1)))
	p.pods("hello", "10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80")
	for i := range 3 {
		if _, err := p.proxy.next(t.Context(), &exchange{fn: fn, start: time.Now()}); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}
