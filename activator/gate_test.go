package activator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// gated is a plane whose gates are open on real ports.
type gated struct {
	*plane
	gates *gates
}

func newGated(t *testing.T) *gated {
	t.Helper()
	p := newPlane(t, nil)
	g := &gated{plane: p, gates: newGates(logr.Discard(), p.proxy.metrics, "127.0.0.1", p.proxy)}
	g.gates.linger = 20 * time.Millisecond
	p.table.assign = g.gates.assign
	ctx, stop := context.WithCancel(context.Background())
	serveCtx, cutOff := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.gates.run(ctx, serveCtx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
		cutOff()
		g.gates.close()
	})
	return g
}

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) int32 {
	t.Helper()
	for range 1000 {
		port := lowestPort + nextPort.Add(1)%(highestPort-lowestPort)
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// The ports of gates are of a range from which the kernel takes none by itself, for a listener or a client of whoever. Each
// is given once, and the copies of these tests that run side by side begin at different places.
const lowestPort, highestPort = 10000, 32000

var nextPort atomic.Int32

func init() { nextPort.Store(int32(os.Getpid() * 1009 % (highestPort - lowestPort))) }

func portURL(port int32) string { return "http://127.0.0.1:" + strconv.Itoa(int(port)) }

// owner probes the gate on port; "" when nobody answers.
func owner(port int32) string {
	req, err := http.NewRequest(http.MethodOptions, portURL(port), nil)
	if err != nil {
		return err.Error()
	}
	req.URL.Opaque = "*"
	req.Header.Set(headerProbe, "1")
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	return res.Header.Get(headerGate)
}

func wantOwner(t *testing.T, port int32, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("port %d belongs to %q", port, want), func() bool { return owner(port) == want })
}

func TestGatePortsFollowFunctions(t *testing.T) {
	g := newGated(t)
	one, two := freePort(t), freePort(t)
	g.table.setFunction(newTestFunction("a", gatePort(one)))
	wantOwner(t, one, "default/a")
	g.table.setFunction(newTestFunction("a", gatePort(two)))
	wantOwner(t, two, "default/a")
	wantOwner(t, one, "")
	// An older Function takes the port; the younger one has it back when that is gone.
	g.table.setFunction(newTestFunction("older", gatePort(two), created(1)))
	wantOwner(t, two, "default/older")
	g.table.removeFunction(newTestFunction("older").Key())
	wantOwner(t, two, "default/a")
	g.table.setFunction(newTestFunction("a", func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil }, gatePort(two)))
	wantOwner(t, two, "")
}

func TestAKeptConnectionDoesNotReachTheNextOwner(t *testing.T) {
	g := newGated(t)
	port := freePort(t)
	for _, name := range []string{"a", "older"} {
		g.pods(name, newPod(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	}
	g.table.setFunction(newTestFunction("a", gatePort(port)))
	wantOwner(t, port, "default/a")
	tr := &http.Transport{} // keeps its connection
	defer tr.CloseIdleConnections()
	ask := func() string {
		res, err := tr.RoundTrip(newRequest(t, http.MethodGet, portURL(port), nil))
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		buf := make([]byte, 16)
		n, _ := res.Body.Read(buf)
		return string(buf[:n])
	}
	if got := ask(); got != "a" {
		t.Fatalf("got %q, want a", got)
	}
	g.table.setFunction(newTestFunction("older", gatePort(port), created(1)))
	wantOwner(t, port, "default/older")
	eventually(t, "the kept connection is not used for the old owner", func() bool { return ask() == "older" })
}

func TestRequestsInFlightOutliveTheirPort(t *testing.T) {
	g := newGated(t)
	entered, finish := make(chan struct{}), make(chan struct{})
	g.pods("a", newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-finish
		fmt.Fprint(w, "done")
	}))
	port := freePort(t)
	g.table.setFunction(newTestFunction("a", gatePort(port)))
	wantOwner(t, port, "default/a")
	got := make(chan answer, 1)
	go func() { got <- get(t, portURL(port)) }()
	<-entered
	g.table.removeFunction(newTestFunction("a").Key())
	wantOwner(t, port, "")
	close(finish)
	if a := <-got; a.status != http.StatusOK || a.body != "done" {
		t.Errorf("got %d %q, want 200 done", a.status, a.body)
	}
}

func TestAPortThatIsTakenIsTriedAgain(t *testing.T) {
	g := newGated(t)
	port := freePort(t) // and none of the kernel's, which has it for others while nobody listens
	ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	g.table.setFunction(newTestFunction("a", gatePort(port)))
	eventually(t, "the failure is counted", func() bool { return strings.Contains(exposition(t, g.plane), "sluice_gate_ports_failed 1") })
	_ = ln.Close()
	start := time.Now()
	wantOwner(t, port, "default/a")
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("tried again after %s, want about a second", d)
	}
	eventually(t, "nothing failed any more", func() bool { return strings.Contains(exposition(t, g.plane), "sluice_gate_ports_failed 0") })
}

// TestChangesLoseNoConnection: while new connections come without a pause, a port changes what it serves, whom it belongs to,
// and is left; each of them is answered, by a pod of whoever has, or had, the port.
func TestChangesLoseNoConnection(t *testing.T) {
	g := newGated(t)
	g.gates.linger = time.Minute
	port := freePort(t)
	for _, name := range []string{"a", "older"} {
		g.pods(name, newPod(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	}
	a := func(change ...func(*v1alpha1.Function)) *v1alpha1.Function {
		return newTestFunction("a", append(change, gatePort(port))...)
	}
	none := func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil }
	g.table.setFunction(a())
	wantOwner(t, port, "default/a")

	stop := make(chan struct{})
	var load sync.WaitGroup
	var answered atomic.Int64
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got := get(t, portURL(port))
				if got.status != http.StatusOK || (got.body != "a" && got.body != "older") {
					t.Errorf("got %d %q", got.status, got.body)
					return
				}
				answered.Add(1)
			}
		})
	}
	more := func() {
		t.Helper()
		goal := answered.Load() + 20
		eventually(t, "more answers", func() bool { return answered.Load() > goal || t.Failed() })
	}
	for range 5 {
		for _, change := range []func(){
			func() { g.table.setFunction(a(overTCP)) },
			func() { g.table.setFunction(a()) },
			func() { g.table.setFunction(newTestFunction("older", gatePort(port), created(1))) },
			func() { g.table.removeFunction(newTestFunction("older").Key()) },
			func() { g.table.setFunction(a(none)) },
			func() { g.table.setFunction(a()) },
			func() { g.table.removeFunction(a().Key()) },
			func() { g.table.setFunction(a()) },
		} {
			change()
			more()
		}
	}
	close(stop)
	load.Wait()
}

// TestAKeptConnectionIsAskedToLeave: a client that keeps its connection is told to make another one once the port is left,
// and no request of it is lost meanwhile.
func TestAKeptConnectionIsAskedToLeave(t *testing.T) {
	g := newGated(t)
	g.gates.linger = time.Minute
	port := freePort(t)
	g.pods("a", newPod(t, func(http.ResponseWriter, *http.Request) {}))
	g.table.setFunction(newTestFunction("a", gatePort(port)))
	wantOwner(t, port, "default/a")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	ask := func() bool {
		res, err := tr.RoundTrip(newRequest(t, http.MethodGet, portURL(port), nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.Close
	}
	if ask() {
		t.Error("asked to close a connection of a port that stays")
	}
	g.table.removeFunction(newTestFunction("a").Key())
	eventually(t, "the client is asked to close its connection", ask)
}
