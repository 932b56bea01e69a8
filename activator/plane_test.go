package activator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := findLeaks(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

// plane is everything between a door and the pods, without an API server.
type plane struct {
	t     *testing.T
	table *table
	proxy *proxy
	wakes atomic.Int64 // patches that were sent
}

// wakerFunc is a waker.
type wakerFunc func(workload types.NamespacedName, replicas int32) (bool, error)

func (f wakerFunc) Wake(_ context.Context, w workload, n int32) (bool, error) {
	return f(w.name, n)
}

// newPlane makes a plane. wake may be nil: then patches succeed and no pod appears.
func newPlane(t *testing.T, wake wakerFunc, change ...func(*Options)) *plane {
	t.Helper()
	o := DefaultOptions()
	for _, c := range change {
		c(&o)
	}
	p := &plane{t: t}
	p.proxy = newProxy(logr.Discard(), newMetrics(), wakerFunc(func(d types.NamespacedName, n int32) (bool, error) {
		p.wakes.Add(1)
		if wake == nil {
			return true, nil
		}
		return wake(d, n)
	}), o)
	p.table = newTable(func(int32, *function) {}, p.proxy.peers)
	t.Cleanup(func() {
		p.proxy.wakers.Wait()
		p.proxy.close()
	})
	return p
}

// add puts a function with its own name as Service name and returns the gate's view of it.
func (p *plane) add(obj *v1alpha1.Function) *function {
	p.table.setFunction(obj)
	return p.table.functions[obj.Key()]
}

// gateURL opens a gate for fn.
func (p *plane) gateURL(fn *function) string { return p.serve(gateHandler(&gate{fn: fn}, p.proxy)) }

// doorURL opens the shared door.
func (p *plane) doorURL() string { return p.serve(newDoor(p.table, p.proxy)) }

func (p *plane) serve(h http.Handler) string {
	srv := httptest.NewUnstartedServer(nil)
	ctx, cancel := context.WithCancel(context.Background())
	srv.Config = newServer(ctx, logr.Discard(), h)
	srv.Start()
	p.t.Cleanup(func() {
		cancel()
		srv.Close()
	})
	return srv.URL
}

// pods gives the Service of that name these pods, each ready, in one slice per pod.
func (p *plane) pods(service string, addresses ...string) {
	for i, a := range addresses {
		p.table.setSlice(newSlice(service, i, a, true))
	}
}

func newTestFunction(name string, change ...func(*v1alpha1.Function)) *v1alpha1.Function {
	fn := &v1alpha1.Function{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: metav1.Unix(1000, 0)},
		Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{Mode: v1alpha1.Proxied},
			Scale:   v1alpha1.Scale{MaxReplicas: 10},
		},
	}
	for _, c := range change {
		c(fn)
	}
	return fn
}

func direct(fn *v1alpha1.Function) { fn.Spec.Traffic.Mode = v1alpha1.Direct }

func timeout(d time.Duration) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Timeout = &metav1.Duration{Duration: d} }
}

func maxHeld(n int32) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.MaxHeld = n }
}

// hosts wants and has hosts, as the scaler grants them.
func hosts(h ...string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		wants(h...)(fn)
		has(h...)(fn)
	}
}

// gateOf is what the scaler says of fn's gate, to be changed.
func gateOf(fn *v1alpha1.Function) *v1alpha1.GateStatus {
	if fn.Status.Gate == nil {
		fn.Status.Gate = &v1alpha1.GateStatus{}
	}
	return fn.Status.Gate
}

func wants(h ...string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Traffic.Hosts = h }
}

func has(h ...string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		gateOf(fn).Hosts = h
	}
}

func newSlice(service string, i int, address string, ready bool) *discoveryv1.EndpointSlice {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: service + "-" + strconv.Itoa(i),
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(string), Port: new(int32(n))}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{host}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
	}
}

// listen opens a port on a loopback address of its own, because a pod is known by its IP address.
func listen(t *testing.T) net.Listener {
	t.Helper()
	n := lastIP.Add(1)
	ln, err := net.Listen("tcp", fmt.Sprintf("127.1.%d.%d:0", n/250, n%250+1))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

var lastIP atomic.Int32

// newPod is a pod's server; its address.
func newPod(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	_ = srv.Listener.Close()
	srv.Listener = listen(t)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// refusing is an address where nothing listens.
func refusing(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	defer ln.Close()
	return ln.Addr().String()
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(2 * time.Millisecond) //nolint:forbidigo // a poll with a deadline
	}
}

// answer is what a test looks at in a response.
type answer struct {
	status int
	header http.Header
	body   string
}

func do(t *testing.T, req *http.Request) answer {
	t.Helper()
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Errorf("%s %s: %v", req.Method, req.URL, err)
		return answer{}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("%s %s: read answer: %v", req.Method, req.URL, err)
	}
	if res.Close {
		res.Header.Set("Connection", "close") // net/http takes it out
	}
	return answer{res.StatusCode, res.Header, string(body)}
}

func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func get(t *testing.T, url string) answer {
	t.Helper()
	return do(t, newRequest(t, http.MethodGet, url, nil))
}

// refusalBody is the JSON of the gate's own answers.
type refusalBody struct{ Error, Reason, Function string }

func (a answer) refusal(t *testing.T) refusalBody {
	t.Helper()
	var b refusalBody
	if err := json.Unmarshal([]byte(a.body), &b); err != nil {
		t.Fatalf("body %q is no JSON: %v", a.body, err)
	}
	return b
}

// wantFinished checks the outcomes counted for fn.
func wantFinished(t *testing.T, fn *function, want map[outcome]uint64) {
	t.Helper()
	eventually(t, "all requests finished", func() bool { return fn.stats.snapshot().inFlight == 0 })
	got := fn.stats.snapshot().finished
	for o := range outcomes {
		if got[o] != want[o] {
			t.Errorf("finished with outcome %s: got %d, want %d", outcomeNames[o], got[o], want[o])
		}
	}
}

// pass lets d go by on the clock of a synctest bubble.
func pass(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // not the machine's clock
