package activator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
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
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return int32(ln.Addr().(*net.TCPAddr).Port)
}

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
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(ln.Addr().(*net.TCPAddr).Port)
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
