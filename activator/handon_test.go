package activator

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What a client says of a request is not believed, whatever it knows of the headers; and the addresses by which activators
// speak to each other take nothing from others.
func TestNobodyElseHandsOn(t *testing.T) {
	r := alone(t)
	seen := make(chan http.Header, 10)
	url := deploy(t, []*replica{r}, newTestFunction("hello", limited(1)), newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		seen <- r.Header
	}))[0]
	fn := r.function()
	for i, body := range []string{"", "words"} {
		req := newRequest(t, http.MethodPost, url, strings.NewReader(body))
		req.Header.Set(headerHandedOn, "default/hello 1 0")
		if got := do(t, req); got.status != http.StatusOK {
			t.Fatalf("got %d %s", got.status, got.body)
		}
		h := <-seen
		if h.Get(headerHandedOn) != "" || h.Get(headerVia) != fn.name || h.Get("X-Forwarded-For") == "" {
			t.Errorf("the pod got %v", h)
		}
		if got := fn.stats.snapshot().started; got != uint64(i+1) {
			t.Errorf("counted %d requests, want %d", got, i+1)
		}
	}
	for _, what := range []string{"", headerHandedOn + ": default/hello 1 0\r\n"} {
		got := rawAsk(t, r.admin, "GET "+handOnPath+" HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: sluice\r\n"+what+"\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 403 ") {
			t.Errorf("got %q, want 403", got)
		}
	}
	question := `{"function":"default/hello","pods":[]}`
	got := do(t, newRequest(t, http.MethodPost, "http://"+r.admin+claimsPath, strings.NewReader(question)))
	if got.status != http.StatusConflict {
		t.Errorf("a stranger's question: got %d %s, want 409", got.status, got.body)
	}
}

// Activators that take each other for the owner, for as long as that is so: the request goes back and forth maxHops times.
func TestRequestsAreNotHandedOnForEver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*v1alpha1.Function)
	}{{"HTTP", func(*v1alpha1.Function) {}}, {"TCP", overTCP}} {
		t.Run(tt.name, func(t *testing.T) {
			all := newReplicas(t, 2)
			all[0].sees(all, all[1:])
			all[1].sees(all, all[:1])
			obj := newTestFunction("hello", limited(1), timeout(500*time.Millisecond), tt.change)
			pod := newPod(t, echo)
			for _, r := range all {
				r.add(obj)
				r.pods("hello", pod)
			}
			from := all[0]
			if obj.IsTCP() {
				c := dialTCP(t, from.tcpGate(from.function()))
				if n, err := c.Read(make([]byte, 1)); err == nil {
					t.Errorf("read %d bytes", n)
				}
			} else {
				got := get(t, from.gateURL(from.function()))
				if got.status != http.StatusGatewayTimeout || got.header.Get(headerReason) != "HoldTimeout" {
					t.Errorf("got %d %s, want 504 HoldTimeout", got.status, got.body)
				}
				wantFinished(t, from.function(), map[outcome]uint64{outcomeHoldTimeout: 1})
			}
			eventually(t, "all is over", func() bool { return all[0].proxy.active.Load()+all[1].proxy.active.Load() == 0 })
			hops := counterValue(t, all[0].proxy.metrics.handedOn) + counterValue(t, all[1].proxy.metrics.handedOn)
			if hops != maxHops {
				t.Errorf("handed on %v times, want %d", hops, maxHops)
			}
		})
	}
}

// A request that was handed on and waits there has the bounds and the answers of one that did not.
func TestHandedOnRequestsAreHeld(t *testing.T) {
	inside, next := make(chan struct{}, 2), make(chan struct{})
	const short = 200 * time.Millisecond
	from, to, gate := handsOn(t, newTestFunction("hello", limited(1), maxHeld(1), timeout(short)), newPod(t, func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-next
		echo(w, r)
	}))
	answerAll := sync.OnceFunc(func() { close(next) })
	defer answerAll()
	url := "http://" + gate
	var clients sync.WaitGroup
	ask := func() {
		clients.Go(func() {
			if got := get(t, url); got.status != http.StatusOK {
				t.Errorf("got %d %s, want the pod's answer", got.status, got.body)
			}
		})
	}
	refused := func() answer { // or its time is over, should it be inside
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return do(t, newRequest(t, http.MethodGet, url, nil).WithContext(ctx))
	}
	ask()
	<-inside
	began := time.Now()
	if got := refused(); got.status != http.StatusGatewayTimeout || !strings.Contains(got.body, "concurrency.limit") {
		t.Errorf("got %d %s, want 504 with the limit named", got.status, got.body)
	}
	if d := time.Since(began); d < short || d > short+5*time.Second {
		t.Errorf("waited %s, want %s", d, short)
	}
	eventually(t, "its time is over", func() bool { return to.waits() == 0 })

	for _, r := range []*replica{from, to} { // from now on there is time enough
		r.table.setFunction(newTestFunction("hello", limited(1), maxHeld(1), timeout(20*time.Second)))
	}
	ask()
	eventually(t, "it waits at the other one", func() bool { return to.waits() == 1 })
	if n := held(from.function()) + held(to.function()); n != 0 {
		t.Errorf("%d are counted as held, want it to be in flight where it came to", n)
	}
	if got := from.function().stats.snapshot().inFlight; got != 2 {
		t.Errorf("%d in flight, want 2", got)
	}
	if got := refused(); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" || got.header.Get(headerReason) != "QueueFull" {
		t.Errorf("got %d %s, want 503 QueueFull", got.status, got.body)
	}
	answerAll()
	clients.Wait()
	wantFinished(t, from.function(), map[outcome]uint64{outcomeOK: 2, outcomeHoldTimeout: 1, outcomeQueueFull: 1})
	wantFinished(t, to.function(), map[outcome]uint64{})
	eventually(t, "none is held", func() bool { return to.proxy.held.Load() == 0 })
}

// The order of arrival is that of all activators.
func TestHandedOnRequestsKeepTheirTurn(t *testing.T) {
	order, next := make(chan string, 100), make(chan struct{})
	from, to, gate := handsOn(t, newTestFunction("hello", limited(1)), newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		order <- r.URL.Path
		<-next
	}))
	urls := []string{"http://" + gate, to.gateURL(to.function())}
	var clients sync.WaitGroup
	ask := func(i int) {
		clients.Go(func() {
			if got := get(t, fmt.Sprint(urls[i%2], "/", i)); got.status != http.StatusOK {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	const n = 12
	for i := range n {
		ask(i)
		eventually(t, "it is inside, or waits", func() bool {
			return from.function().stats.snapshot().inFlight+to.function().stats.snapshot().inFlight == int64(i+1) &&
				to.waits() == i
		})
		if i == 0 {
			eventually(t, "it is inside", func() bool { return len(order) == 1 })
		}
	}
	close(next)
	clients.Wait()
	for i := range n {
		if got, want := <-order, fmt.Sprint("/", i); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

// A client that leaves frees its place, at a pod and in the queue, wherever that is.
func TestAClientThatLeavesFreesItsPlaceForOthers(t *testing.T) {
	requests := map[string]string{
		"no body":    "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"a body":     "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"half of it": "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc",
		"an upgrade": "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	}
	for name, request := range requests {
		for _, handed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", handed on ", handed), func(t *testing.T) {
				m := newMeteredPod(t)
				from, to, gate := handsOn(t, newTestFunction("hello", limited(1)), m.address)
				if !handed {
					from, gate = to, strings.TrimPrefix(to.gateURL(to.function()), "http://")
				}
				dial := func() net.Conn {
					conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", gate)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = conn.Close() })
					fmt.Fprint(conn, strings.Replace(request, " / ", " /?d=1h ", 1))
					return conn
				}
				first := dial()
				eventually(t, "one is inside", func() bool { return m.now.Load() == 1 })
				second := dial()
				eventually(t, "one waits", func() bool { return to.waits() == 1 })
				_ = second.Close()
				eventually(t, "it waits no more", func() bool { return to.waits() == 0 && to.proxy.held.Load() == 0 })
				third := dial()
				eventually(t, "one waits", func() bool { return to.waits() == 1 })
				_ = first.Close()
				eventually(t, "the third is inside", func() bool { return m.served.Load() == 2 })
				_ = third.Close()
				eventually(t, "nobody is", func() bool { return to.function().pods.Load().ready[0].inFlight.Load() == 0 })
				wantFinished(t, from.function(), map[outcome]uint64{outcomeClientGone: 3})
			})
		}
	}
}

// The activator that a pod belongs to ends in the middle of everything. What it had at the pod is over; those that it held for
// others are answered as broken off; the pod is the other one's, which goes on with it.
func TestTheOwnerDies(t *testing.T) {
	m := newMeteredPod(t)
	from, to, gate := handsOn(t, newTestFunction("hello", limited(1)), m.address)
	url := "http://" + gate
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			if got := get(t, url+"?d=1h"); got.status != http.StatusBadGateway && got.status != http.StatusServiceUnavailable {
				t.Errorf("got %d %s, want 502 or 503", got.status, got.body)
			}
		})
	}
	eventually(t, "one is inside and two wait", func() bool { return m.now.Load() == 1 && to.waits() == 2 })
	to.stop()
	clients.Wait()
	eventually(t, "the pod has seen that its request is over", func() bool { return m.now.Load() == 0 })
	// Until its end is seen, who comes waits.
	clients.Go(func() {
		if got := get(t, url); got.status != http.StatusOK {
			t.Errorf("got %d %s", got.status, got.body)
		}
	})
	eventually(t, "one waits", func() bool { return held(from.function()) == 1 })
	from.sees([]*replica{from, to}, []*replica{from})
	clients.Wait()
	if m.top.Load() != 1 || m.served.Load() != 2 {
		t.Errorf("served %d, %d at the same time; want 2, one at a time", m.served.Load(), m.top.Load())
	}
}

// An activator that stops hands on what it holds, and lets finish what it has at its pods: the next owner waits for that.
func TestPodsChangeHandsWhenAnActivatorStops(t *testing.T) {
	inside, next := make(chan string, 10), make(chan struct{})
	other, owner, _ := handsOn(t, newTestFunction("hello", limited(1)), newPod(t, func(w http.ResponseWriter, r *http.Request) {
		inside <- r.URL.Path
		<-next
		echo(w, r)
	}))
	url := owner.gateURL(owner.function())
	var clients sync.WaitGroup
	ask := func(path string) {
		clients.Go(func() {
			if got := get(t, url+path); got.status != http.StatusOK {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	ask("/under-way")
	<-inside
	ask("/held")
	eventually(t, "it waits", func() bool { return owner.waits() == 1 })
	both := []*replica{other, owner}
	owner.sees(both, both[:1])
	eventually(t, "it waits at the other one", func() bool { return owner.waits() == 0 && other.waits() == 1 })
	if got := len(other.function().pods.Load().share.owned); got != 0 {
		t.Errorf("the other one owns %d pods before it knows", got)
	}
	other.sees(both, both[:1])
	eventually(t, "it knows of the one that is under way", func() bool {
		pods := other.function().pods.Load().share.unsettled()
		return len(pods) == 1 && pods[0].claim.Load().elsewhere.Load() == 1
	})
	next <- struct{}{}
	if got := <-inside; got != "/held" {
		t.Errorf("got %s, want /held", got)
	}
	next <- struct{}{}
	clients.Wait()
}

// Upgraded connections and those of TCP have a place for as long as they are open.
func TestConnectionsHaveAPlace(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*v1alpha1.Function)
		hello  string
		pod    func(t *testing.T) string
	}{
		{"TCP", overTCP, "", func(t *testing.T) string { t.Helper(); return newTCPPod(t, greet) }},
		{
			"upgrade", func(*v1alpha1.Function) {}, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
			func(t *testing.T) string {
				t.Helper()
				return newPod(t, func(w http.ResponseWriter, _ *http.Request) {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
					greet(conn.(*net.TCPConn))
				})
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from, to, gate := handsOn(t, newTestFunction("hello", limited(1), tt.change), tt.pod(t))
			open := func() net.Conn {
				c := dialTCP(t, gate)
				fmt.Fprint(c, tt.hello)
				return c
			}
			first, second := open(), net.Conn(nil)
			if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			second = open()
			eventually(t, "the second waits", func() bool { return to.waits() == 1 })
			_ = first.Close()
			if _, err := bufio.NewReader(second).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			_ = second.Close()
			wantInFlight(t, from.function(), 0)
			eventually(t, "its place is free", func() bool { return to.function().pods.Load().ready[0].inFlight.Load() == 0 })
		})
	}
}

// Two activators as Run makes them share the one pod of a function that takes one request at a time.
func TestActivatorsShareALimit(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	m := newMeteredPod(t)
	port := freePort(t)
	a.set(newTestFunction("hello", gatePort(port), limited(1)))
	a.set(newSlice("hello", 0, m.address, true))
	var all []*running
	var urls []string
	for i := range 2 {
		name, ip := fmt.Sprintf("activator-%d", i), fmt.Sprintf("127.9.0.%d", i+1)
		r := start(t, a, func(o *Options) { o.PodName, o.GateAddr, o.AdminAddr = name, ip, ip+":0" })
		eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
		slice := newSlice(v1alpha1.ActivatorService, i, strings.TrimPrefix(r.admin, "http://"), true)
		slice.Namespace = v1alpha1.SystemNamespace
		slice.Ports[0].Name = new(v1alpha1.ActivatorMetricsPort)
		slice.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: slice.Namespace, Name: name}
		a.set(slice)
		all, urls = append(all, r), append(urls, fmt.Sprintf("http://%s:%d", ip, port))
	}
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			if got := get(t, urls[i%2]+"?d=5ms"); got.status != http.StatusOK {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	clients.Wait()
	if got := m.top.Load(); got != 1 || m.served.Load() != 20 {
		t.Errorf("the pod had %d requests at the same time, %d in all; want 1, 20", got, m.served.Load())
	}
	both := get(t, all[0].admin+"/metrics").body + get(t, all[1].admin+"/metrics").body
	if n := strings.Count(both, "sluice_handed_on_requests_total 0\n"); n > 1 {
		t.Error("nothing was handed on")
	}
	for _, r := range all {
		r.stop()
		r.wait(t)
	}
}

// A Host that looks like what activators call each other is a Host.
func TestHostOfARequestThatIsHandedOn(t *testing.T) {
	hosts := make(chan string, 1)
	_, _, gate := handsOn(t, newTestFunction("hello", limited(1)), newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
	}))
	for _, host := range []string{"hello.example.com", "hello.peer:8080", "hello.peer", "[::1]:80"} {
		for _, body := range []string{"", "words"} {
			req := newRequest(t, http.MethodPost, "http://"+gate, strings.NewReader(body))
			req.Host = host
			if got := do(t, req); got.status != http.StatusOK {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			if got := <-hosts; got != host {
				t.Errorf("the pod was asked for %q, want %q", got, host)
			}
		}
	}
}

// What is refused while an activator ends was never taken: a request can still go elsewhere.
func TestNothingIsTakenThatIsNotServed(t *testing.T) {
	from, to, _ := handsOn(t, newTestFunction("hello", limited(1)), newPod(t, echo))
	if err := to.handOns.server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := to.handOns.Accept(); err == nil || to.handOns.accepting.Load() {
		t.Errorf("after the end it accepts: %v", err)
	}
	to.handOns.accepting.Store(true) // as it was a moment ago
	conn, err := from.proxy.dial(t.Context(), "tcp", peerAddress(to.admin))
	if err == nil {
		_ = conn.Close()
		t.Fatal("the connection was taken")
	}
	if !isDialError(err) {
		t.Errorf("got %v, want an error of a dial", err)
	}
}
