package activator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// api is as much of the Kubernetes API as an activator uses: list and watch of two kinds, and the patch of a scale.
type api struct {
	*httptest.Server
	onPatch func()

	mu      sync.Mutex // protects following
	version int
	objects map[string]map[string]any // by resource and name
	watches map[string][]chan watchEvent
	patches int

	secrets map[string]*corev1.Secret // by name; not written to
}

type watchEvent struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{
		onPatch: func() {},
		objects: map[string]map[string]any{"functions": {}, "endpointslices": {}}, watches: map[string][]chan watchEvent{},
	}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close) // after what start has started has ended
	return a
}

func (a *api) set(obj metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	obj.SetResourceVersion(fmt.Sprint(a.version))
	resource := "endpointslices"
	switch o := obj.(type) {
	case *v1alpha1.Function:
		resource = "functions"
		o.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Function"}
	case *discoveryv1.EndpointSlice:
		o.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	}
	kind := "ADDED"
	if _, ok := a.objects[resource][obj.GetName()]; ok {
		kind = "MODIFIED"
	}
	a.objects[resource][obj.GetName()] = obj
	for _, w := range a.watches[resource] {
		w <- watchEvent{kind, obj}
	}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if strings.Contains(r.URL.Path, "/secrets/") {
		a.secret(w, resource)
		return
	}
	switch {
	case r.Method == http.MethodPatch:
		a.mu.Lock()
		a.patches++
		a.mu.Unlock()
		_, _ = io.WriteString(w, `{"kind":"Scale","apiVersion":"autoscaling/v1"}`)
		a.onPatch()
	case r.URL.Query().Get("sendInitialEvents") != "":
		// The reflector falls back to list and watch.
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
	case r.URL.Query().Get("watch") != "":
		a.watch(w, r, resource)
	default:
		a.list(w, resource)
	}
}

func (a *api) secret(w http.ResponseWriter, name string) {
	if s := a.secrets[name]; s != nil {
		_ = json.NewEncoder(w).Encode(s)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
}

func (a *api) list(w io.Writer, resource string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []any{}
	for _, obj := range a.objects[resource] {
		items = append(items, obj)
	}
	kind, version := "FunctionList", v1alpha1.GroupVersion.String()
	if resource == "endpointslices" {
		kind, version = "EndpointSliceList", "discovery.k8s.io/v1"
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kind, "apiVersion": version, "metadata": map[string]any{"resourceVersion": fmt.Sprint(a.version)}, "items": items,
	})
}

// watch sends everything that is there and what changes; a client that knows an object already takes it for an update.
func (a *api) watch(w http.ResponseWriter, r *http.Request, resource string) {
	events := make(chan watchEvent, 100)
	a.mu.Lock()
	for _, obj := range a.objects[resource] {
		events <- watchEvent{"ADDED", obj}
	}
	a.watches[resource] = append(a.watches[resource], events)
	a.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	for {
		w.(http.Flusher).Flush()
		select {
		case e := <-events:
			_ = json.NewEncoder(w).Encode(e)
		case <-r.Context().Done():
			return
		}
	}
}

// running is an activator that Run runs.
type running struct {
	door, admin string
	doorTLS     string // host:port
	stop        context.CancelFunc
	ended       chan error
}

func start(t *testing.T, a *api, change func(*Options)) *running {
	t.Helper()
	return startLogging(t, a, logr.Discard(), change)
}

func startLogging(t *testing.T, a *api, log logr.Logger, change func(*Options)) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(logr.NewContext(context.Background(), log))
	r := &running{stop: cancel, ended: make(chan error, 1)}
	listening := make(chan struct{})
	o := Options{
		RestConfig: &rest.Config{Host: a.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}},
		DoorAddr:   "127.0.0.1:0", DoorTLSAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", GateAddr: "127.0.0.1",
		DrainDelay: 50 * time.Millisecond, DrainTimeout: 10 * time.Second,
		Listening: func(door, doorTLS, admin net.Addr) {
			r.door, r.doorTLS, r.admin = "http://"+door.String(), doorTLS.String(), "http://"+admin.String()
			close(listening)
		},
	}
	change(&o)
	over := make(chan struct{})
	go func() {
		defer close(over)
		r.ended <- Run(ctx, o)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	select {
	case <-listening:
	case err := <-r.ended:
		t.Fatalf("Run: %v", err)
	}
	return r
}

func (r *running) status(t *testing.T, path string) int {
	t.Helper()
	return get(t, r.admin+path).status
}

func (r *running) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("Run: %v, want nil", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not end")
	}
}

// noLeaks checks that nothing the test started is left when it ends.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := findLeaks(before); err != nil {
			t.Error(err)
		}
	})
}

// findLeaks is about the goroutines that run still. It gives them as long to end as eventually gives anything: goleak's own
// patience, of less than half a second, is too short for a busy machine.
func findLeaks(o ...goleak.Option) (err error) {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if err = goleak.Find(o...); err == nil {
			return nil
		}
	}
	return err
}

// A function sleeps; a request comes to its gate; one write wakes it; its pod answers; the activator is stopped while
// another request runs.
func TestFromAsleepToDrained(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	entered, finish := make(chan struct{}), make(chan struct{})
	pod := newPod(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-finish
		}
		fmt.Fprint(w, "hello from ", r.URL.Path)
	})
	port := freePort(t)
	a.set(newTestFunction("hello", gatePort(port), hosts("hello.example.com")))
	a.set(newSlice("hello", 0, pod, false))
	a.onPatch = func() { a.set(newSlice("hello", 0, pod, true)) }

	r := start(t, a, func(*Options) {})
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
	got := get(t, portURL(port)+"/cold")
	if got.status != http.StatusOK || got.body != "hello from /cold" || got.header.Get(headerColdStart) == "" {
		t.Fatalf("cold: got %d %q %v, want the pod's answer with the time held", got.status, got.body, got.header)
	}
	req := newRequest(t, http.MethodGet, r.door+"/warm", nil)
	req.Host = "hello.example.com"
	if got := do(t, req); got.body != "hello from /warm" {
		t.Errorf("warm by the door: got %d %q", got.status, got.body)
	}
	for _, line := range []string{
		`sluice_requests_started_total{function="hello",namespace="default"} 2`,
		`sluice_requests_finished_total{function="hello",namespace="default",outcome="ok"} 2`,
		`sluice_wake_patches_total{outcome="woken"} 1`,
		`sluice_cold_start_seconds_count{phase="hold"} 1`,
	} {
		// The pod may be ready, and have answered, before the patch's own answer has come.
		eventually(t, "/metrics has the line "+line, func() bool {
			return strings.Contains(get(t, r.admin+"/metrics").body, line+"\n")
		})
	}

	slow := make(chan answer, 1)
	go func() { slow <- get(t, portURL(port)+"/slow") }()
	<-entered
	r.stop()
	eventually(t, "readiness fails", func() bool { return r.status(t, "/readyz") == http.StatusServiceUnavailable })
	eventually(t, "the port is closed", func() bool { return owner(port) == "" })
	select {
	case err := <-r.ended:
		t.Fatalf("Run ended (%v) with a request in flight", err)
	default:
	}
	close(finish)
	if got := <-slow; got.status != http.StatusOK || got.body != "hello from /slow" || got.header.Get("Connection") != "close" {
		t.Errorf("in flight: got %d %q, Connection %q, want it finished and closed", got.status, got.body, got.header.Get("Connection"))
	}
	r.wait(t)
}

func TestDrainGoesOnAcceptingAndWakesWhatIsHeld(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	pod := newPod(t, echo)
	port := freePort(t)
	a.set(newTestFunction("hello", gatePort(port)))
	// The delay begins when the log has taken that it does: so there is time enough for what comes before its end.
	draining, goOn := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(goOn) })
	defer begin()
	log := funcr.New(func(_, line string) {
		if strings.Contains(line, `"msg"="draining"`) {
			close(draining)
			<-goOn
		}
	}, funcr.Options{})
	const delay = 200 * time.Millisecond
	r := startLogging(t, a, log, func(o *Options) { o.DrainDelay = delay })
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
	r.stop()
	<-draining
	if got := r.status(t, "/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz in the drain: got %d, want 503", got)
	}
	answers := make(chan answer, 1)
	go func() { answers <- get(t, portURL(port)) }() // comes after the stop, and finds no pod
	eventually(t, "it woke the function", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.patches > 0
	})
	began := time.Now()
	begin()
	eventually(t, "the port is closed", func() bool { return owner(port) == "" })
	if took := time.Since(began); took < delay {
		t.Errorf("the port was closed after %s, want it open for %s", took, delay)
	}
	a.set(newSlice("hello", 0, pod, true)) // the watch must still run
	if got := <-answers; got.status != http.StatusOK {
		t.Errorf("held during the drain: got %d, want 200", got.status)
	}
	r.wait(t)
}

// HTTP/2 in the drain: idle connections go, and streams end when they end.
func TestDrainWaitsForStreams(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	port := freePort(t)
	a.set(newTestFunction("hello", gatePort(port)))
	a.set(newSlice("hello", 0, newGRPCPod(t), true))
	r := start(t, a, func(*Options) {})
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
	address := fmt.Sprint("127.0.0.1:", port)
	idle := grpcDial(t, address, "")
	if got := unary(t.Context(), idle, "x"); got.Code != codes.OK {
		t.Fatalf("got %+v", got)
	}
	stream, err := grpcDial(t, address, "").NewStream(t.Context(), &grpcService.Streams[0], "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	say := func() {
		t.Helper()
		if err := errors.Join(stream.SendMsg(&text{Value: "1 word"}), stream.RecvMsg(&text{})); err != nil {
			t.Error(err)
		}
	}
	say()
	r.stop()
	eventually(t, "the port is closed", func() bool { return owner(port) == "" })
	eventually(t, "the idle client is told", func() bool { return idle.GetState() != connectivity.Ready })
	say()
	select {
	case err := <-r.ended:
		t.Fatalf("Run ended (%v) with a stream open", err)
	default:
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&text{}); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
	r.wait(t)
}

func TestDrainCutsOffWhatOutlastsIt(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	pod := newPod(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: forever\r\n\r\n")
		_, _ = rw.ReadByte()
	})
	asleep, forever := freePort(t), freePort(t)
	a.set(newTestFunction("asleep", gatePort(asleep)))
	a.set(newTestFunction("forever", gatePort(forever)))
	a.set(newSlice("forever", 0, pod, true))
	r := start(t, a, func(o *Options) { o.DrainDelay, o.DrainTimeout = time.Millisecond, 200*time.Millisecond })
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })

	conn, err := net.Dial("tcp", strings.TrimPrefix(portURL(forever), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: forever\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	answers := make(chan answer, 1)
	go func() { answers <- get(t, portURL(asleep)) }()
	eventually(t, "one is held", func() bool {
		return strings.Contains(get(t, r.admin+"/metrics").body, `sluice_requests_held{function="asleep",namespace="default"} 1`)
	})
	r.stop()
	if got := <-answers; got.status != http.StatusServiceUnavailable || got.header.Get(headerReason) != "Stopping" {
		t.Errorf("held when the drain ended: got %d %q, want 503 Stopping", got.status, got.header.Get(headerReason))
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("upgraded connection: %v, want it closed", err)
	}
	r.wait(t)
}

func TestStopBeforeTheWatchesHaveSynced(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	a.Close() // nobody answers
	r := start(t, a, func(o *Options) { o.DrainDelay = time.Hour })
	if got := r.status(t, "/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz without an API server: got %d, want 503", got)
	}
	r.stop()
	r.wait(t)
}

func TestOptions(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := &rest.Config{Host: "http://127.0.0.1:1"}
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"no cluster", Options{}, "RestConfig is required"},
		{"negative duration", Options{RestConfig: cfg, DrainDelay: -1}, "DrainDelay"},
		{"negative bound", Options{RestConfig: cfg, MaxHeld: -1}, "MaxHeld"},
		{"door taken", Options{RestConfig: cfg, DoorAddr: taken.Addr().String()}, "open the shared door"},
		{"admin taken", Options{RestConfig: cfg, DoorAddr: "127.0.0.1:0", DoorTLSAddr: "127.0.0.1:0", AdminAddr: taken.Addr().String()}, "open the admin address"},
		{"TLS door taken", Options{RestConfig: cfg, DoorAddr: "127.0.0.1:0", DoorTLSAddr: taken.Addr().String()}, "open the shared door for TLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noLeaks(t)
			if err := Run(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error that names %q", err, tt.want)
			}
		})
	}
}
