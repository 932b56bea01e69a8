package activator

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// fallsBackTo names a fallback, as the spec and the scaler do.
func fallsBackTo(service, appProtocol string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Activation.Fallback = &v1alpha1.Fallback{Name: service}
		gateOf(fn).Fallback = &v1alpha1.FallbackStatus{Service: service, AppProtocol: appProtocol}
	}
}

func placeholder(page v1alpha1.Placeholder) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Placeholder = &page }
}

func static(all ...v1alpha1.StaticAnswer) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Static = all }
}

// sorry is a fallback that tells what it was asked.
func sorry(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprint(w, "sorry: ", r.Method, " ", r.Host, r.RequestURI, " ", r.Header.Get(headerReason), " ", r.Header.Get(headerVia), " ", len(body), " ", err)
}

func TestFallbackAnswersWhatWouldBeRefused(t *testing.T) {
	body := strings.Repeat("0123456789", 100000)
	for _, tt := range []struct {
		reason string
		change func(*v1alpha1.Function)
		pods   []string
	}{
		{"HoldTimeout", timeout(200 * time.Millisecond), nil},
		{"DialFailed", timeout(200 * time.Millisecond), []string{refusing(t), refusing(t)}},
		{"QueueFull", maxHeld(1), nil},
	} {
		for _, via := range []struct {
			method, sent, app string
			of                func(*http.Protocols)
		}{
			{http.MethodGet, "", "", onlyHTTP1},
			{http.MethodGet, "", "kubernetes.io/h2c", onlyH2C},
			{http.MethodPost, body, "", onlyHTTP1},
			{http.MethodPost, body, "kubernetes.io/h2c", onlyH2C},
		} {
			t.Run(tt.reason+via.method+via.app, func(t *testing.T) {
				p := newPlane(t, nil)
				fn := p.add(newTestFunction("hello", direct, tt.change, fallsBackTo("sorry", via.app)))
				p.pods("hello", tt.pods...)
				p.pods("sorry", refusing(t), newPodOf(t, http.HandlerFunc(sorry), via.of))
				if tt.reason == "QueueFull" {
					place, err := fn.queue.join(1, &waiter{released: make(chan struct{})})
					if err != nil {
						t.Fatal(err)
					}
					defer fn.queue.leave(place)
				}
				req := newRequest(t, via.method, p.gateURL(fn)+"/a%2Fb?x=1", strings.NewReader(via.sent))
				req.Host = "hello.example.com"
				req.Header.Set(headerReason, "a claim of the client's")
				got := do(t, req)
				want := fmt.Sprintf("sorry: %s hello.example.com/a%%2Fb?x=1 %s default/hello %d <nil>", via.method, tt.reason, len(via.sent))
				if got.status != http.StatusServiceUnavailable || got.body != want {
					t.Errorf("got %d %.300q, want the fallback's %q", got.status, got.body, want)
				}
				if got.header.Get(headerFallback) != "sorry" || got.header.Get(headerReason) != tt.reason {
					t.Errorf("headers %v do not tell that and why it was the fallback", got.header)
				}
				if got.header.Get("Connection") != "" {
					t.Error("the client is sent away, though the function's Service leads to no pod yet")
				}
				if cold := got.header.Get(headerColdStart) != ""; cold != (tt.reason != "QueueFull") {
					t.Errorf("%s: %q", headerColdStart, got.header.Get(headerColdStart))
				}
				wantFinished(t, fn, map[outcome]uint64{outcomeFallback: 1})
				for _, pod := range fn.fallback.Load().ready {
					if n := pod.inFlight.Load(); n != 0 {
						t.Errorf("pod %s: %d in flight, want 0", pod.address, n)
					}
				}
			})
		}
	}
}

// Where the fallback cannot answer, the answer is the gate's own, and names the fallback.
func TestFallbackThatDoesNotAnswer(t *testing.T) {
	var served atomic.Int64
	abort := newPod(t, func(http.ResponseWriter, *http.Request) {
		served.Add(1)
		panic(http.ErrAbortHandler)
	})
	for _, tt := range []struct {
		name   string
		pods   []string
		app    string
		status int
		reason string
		words  string
		want   outcome
	}{
		{"no pod", nil, "", 504, "HoldTimeout", "no pod of its fallback, Service sorry, takes it", outcomeHoldTimeout},
		{"pods that refuse", []string{refusing(t), refusing(t)}, "", 504, "HoldTimeout", "Service sorry", outcomeHoldTimeout},
		{"a pod that breaks off", []string{abort}, "", 502, "UpstreamError", "Service sorry, the fallback of the Function default/hello", outcomeUpstreamError},
		{"not HTTP/2", []string{newPod(t, sorry)}, "h2c", 502, "PodNotHTTP2", "appProtocol", outcomeProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", timeout(100*time.Millisecond), fallsBackTo("sorry", tt.app)))
			p.pods("sorry", tt.pods...)
			got := do(t, newRequest(t, http.MethodPost, p.gateURL(fn), strings.NewReader("once")))
			if got.status != tt.status || got.header.Get(headerReason) != tt.reason || got.header.Get(headerFallback) != "" {
				t.Errorf("got %d %v, want %d %s", got.status, got.header, tt.status, tt.reason)
			}
			if b := got.refusal(t); !strings.Contains(b.Error, tt.words) {
				t.Errorf("sentence %q does not say %q", b.Error, tt.words)
			}
			wantFinished(t, fn, map[outcome]uint64{tt.want: 1})
		})
	}
	if got := served.Load(); got != 1 {
		t.Errorf("the fallback saw the request %d times, want once", got)
	}
}

// What a pod may have acted on is not for the fallback.
func TestFallbackIsNotForWhatWasSent(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", fallsBackTo("sorry", "")))
	p.pods("hello", newPod(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	p.pods("sorry", newPod(t, sorry))
	url := p.gateURL(fn)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if got := do(t, newRequest(t, method, url, strings.NewReader("once"))); got.status != http.StatusBadGateway {
			t.Errorf("%s: got %d %q, want 502", method, got.status, got.body)
		}
	}
	wantFinished(t, fn, map[outcome]uint64{outcomeUpstreamError: 2})
}

func TestFallbackFollowsTheFunction(t *testing.T) {
	p := newPlane(t, nil)
	short := timeout(50 * time.Millisecond)
	fn := p.add(newTestFunction("hello", short))
	url := p.gateURL(fn)
	elsewhere := newSlice("sorry", 0, newPod(t, sorry), true)
	elsewhere.Namespace = "other"
	p.table.setSlice(elsewhere)
	// Endpoints that the scaler made lead to a gate, and a sleeping function is not woken to be a fallback.
	gate := newSlice("sorry", 1, newPod(t, sorry), true)
	gate.Labels["endpointslice.kubernetes.io/managed-by"] = v1alpha1.GateManager
	p.table.setSlice(gate)
	resolvedFor := func(spec, status string) func(*v1alpha1.Function) {
		return func(fn *v1alpha1.Function) {
			fallsBackTo(status, "")(fn)
			fn.Spec.Activation.Fallback.Name = spec
		}
	}
	here, there := newPod(t, sorry), newPod(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "another") })
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"none", func() {}, 504},
		{"one without a pod in the function's namespace", func() { p.add(newTestFunction("hello", short, fallsBackTo("sorry", ""))) }, 504},
		{"it gets a pod", func() { p.pods("sorry", here) }, 503},
		{"another", func() {
			p.pods("another", there)
			p.add(newTestFunction("hello", short, fallsBackTo("another", "")))
		}, 200},
		{"renamed, and not resolved yet", func() { p.add(newTestFunction("hello", short, resolvedFor("sorry", "another"))) }, 504},
		{"back", func() { p.add(newTestFunction("hello", short, fallsBackTo("sorry", ""))) }, 503},
		{"it loses its pod", func() { p.table.removeSlice(newSlice("sorry", 0, here, true)) }, 504},
		{"removed", func() {
			p.pods("sorry", here)
			p.add(newTestFunction("hello", short))
		}, 504},
	} {
		step.do()
		if got := get(t, url); got.status != step.want {
			t.Errorf("%s: got %d %q, want %d", step.name, got.status, got.body, step.want)
		}
	}
	p.table.removeFunction(fn.key)
	if svc := p.table.services[types.NamespacedName{Namespace: "default", Name: "sorry"}]; len(svc.functions) != 0 {
		t.Errorf("the fallback still leads to the Function that was deleted: %v", svc.functions)
	}
}

// A client of gRPC is never given an answer that is none of gRPC.
func TestFallbackOfGRPC(t *testing.T) {
	for _, tt := range []struct {
		name, app string
		pod       string
		want      codes.Code
	}{
		{"HTTP/1.1", "", newPod(t, sorry), codes.Unavailable},
		{"gRPC", "grpc", newGRPCPod(t), codes.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello", timeout(100*time.Millisecond), fallsBackTo("sorry", tt.app)))
			p.pods("sorry", tt.pod)
			got := unary(t.Context(), grpcDial(t, strings.TrimPrefix(p.gateURL(fn), "http://"), ""), "word")
			if got.Code != tt.want {
				t.Errorf("got %+v, want %s", got, tt.want)
			}
			if tt.want == codes.OK && got.Header.Get(headerFallback) == nil {
				t.Errorf("header %v does not tell that it was the fallback", got.Header)
			}
		})
	}
}

var page = v1alpha1.Placeholder{Status: 202, Body: "<p>waking", ContentType: "text/html"}

func TestPlaceholderIsGivenWhileTheFunctionWakes(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", placeholder(page)))
	url := p.gateURL(fn)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		got := do(t, newRequest(t, method, url, nil))
		want := map[string]string{
			"Content-Type": "text/html", "Content-Length": "9", "Retry-After": "2", "Cache-Control": "no-store", headerReason: "Placeholder",
			headerColdStart: "",
		}
		for k, v := range want {
			if got.header.Get(k) != v {
				t.Errorf("%s: header %s is %q, want %q", method, k, got.header.Get(k), v)
			}
		}
		if got.status != 202 || (got.body != "<p>waking") != (method == http.MethodHead) {
			t.Errorf("%s: got %d %q", method, got.status, got.body)
		}
	}
	eventually(t, "it is woken though nobody waits", func() bool { return p.wakes.Load() > 0 })

	// What does something, or switches protocols, is held.
	held1 := make(chan answer, 2)
	go func() { held1 <- do(t, newRequest(t, http.MethodPost, url, strings.NewReader("body"))) }()
	go func() {
		req := newRequest(t, http.MethodGet, url, nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		held1 <- do(t, req)
	}()
	eventually(t, "they are held", func() bool { return held(fn) == 2 })
	p.pods("hello", newPod(t, echo))
	for range 2 {
		if got := <-held1; got.status != http.StatusOK {
			t.Errorf("held: got %d %q, want 200", got.status, got.body)
		}
	}
	if got := get(t, url); got.status != http.StatusOK || got.header.Get("Retry-After") != "" {
		t.Errorf("with a pod: got %d %v, want the pod's answer", got.status, got.header)
	}
	wantFinished(t, fn, map[outcome]uint64{outcomePlaceholder: 2, outcomeOK: 3})
	p.proxy.wakers.Wait() // nothing is wanted any more
}

// A client of gRPC has no use for a page.
func TestPlaceholderIsNotForGRPC(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", placeholder(page)))
	conn := grpcDial(t, strings.TrimPrefix(p.gateURL(fn), "http://"), "")
	got := make(chan said, 1)
	go func() { got <- unary(t.Context(), conn, "word") }()
	eventually(t, "it is held", func() bool { return held(fn) == 1 })
	p.pods("hello", newGRPCPod(t))
	if s := <-got; s.Code != codes.OK {
		t.Errorf("got %+v, want OK", s)
	}
}

func TestPlaceholderAfterAWhile(t *testing.T) {
	after := func(d time.Duration) v1alpha1.Placeholder {
		return v1alpha1.Placeholder{After: &metav1.Duration{Duration: d}, Body: "later"}
	}
	for _, tt := range []struct {
		name    string
		change  []func(*v1alpha1.Function)
		full    bool
		held    time.Duration
		patches int64 // at least
	}{
		{"held first", []func(*v1alpha1.Function){placeholder(after(2 * time.Second))}, false, 2 * time.Second, 1},
		{"not longer than anything is held", []func(*v1alpha1.Function){placeholder(after(time.Minute)), timeout(3 * time.Second)}, false, 3 * time.Second, 1},
		{"too many are held", []func(*v1alpha1.Function){placeholder(after(time.Minute)), maxHeld(1)}, true, 0, 1},
		{"at once", []func(*v1alpha1.Function){placeholder(after(0))}, false, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, nil)
				fn := p.add(newTestFunction("hello", tt.change...))
				if tt.full {
					place, err := fn.queue.join(1, &waiter{released: make(chan struct{})})
					if err != nil {
						t.Fatal(err)
					}
					defer fn.queue.leave(place)
				}
				w, start := httptest.NewRecorder(), time.Now()
				p.proxy.serve(w, httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
				if got := time.Since(start); got != tt.held {
					t.Errorf("held for %s, want %s", got, tt.held)
				}
				if w.Code != http.StatusServiceUnavailable || w.Body.String() != "later" || w.Header().Get("Retry-After") == "" ||
					w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
					t.Errorf("got %d %v %q, want the placeholder", w.Code, w.Header(), w.Body)
				}
				wantFinished(t, fn, map[outcome]uint64{outcomePlaceholder: 1})
				pass(time.Second)
				if got := p.wakes.Load(); got < tt.patches {
					t.Errorf("patches: got %d, want %d at least", got, tt.patches)
				}
			})
		})
	}
}

// Nobody waits, and yet the wake is seen to its end: patches are repeated, as for a request that is held, for as long as one
// would be.
func TestPlaceholderWakesForAsLongAsARequestIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, func(types.NamespacedName, int32) (bool, error) { return false, nil })
		fn := p.add(newTestFunction("hello", placeholder(page), timeout(10*time.Second)))
		for range 3 {
			p.proxy.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
			synctest.Wait()
		}
		p.proxy.wakers.Wait()
		if got := p.wakes.Load(); got < 5 || got > 7 {
			t.Errorf("patches in 10s: got %d, want 5 to 7", got)
		}
		pass(time.Hour)
		if got := p.wakes.Load(); got > 7 {
			t.Errorf("patches go on: %d", got)
		}
		p.table.removeFunction(fn.key)
		w := httptest.NewRecorder()
		p.proxy.serve(w, httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
		if w.Code != http.StatusNotFound {
			t.Errorf("after deletion: got %d, want 404", w.Code)
		}
	})
}

// What was promised to clients who are gone does not keep an activator from ending.
func TestDrainDoesNotWaitForPlaceholders(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	port := freePort(t)
	a.set(newTestFunction("hello", gatePort(port), placeholder(page), timeout(10*time.Minute)))
	r := start(t, a, func(o *Options) { o.DrainDelay, o.DrainTimeout = time.Millisecond, time.Second })
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })
	if got := get(t, portURL(port)); got.status != 202 {
		t.Errorf("got %d, want the placeholder", got.status)
	}
	r.stop()
	r.wait(t)
}

func TestStaticAnswersNeitherWakeNorCount(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", static(
		v1alpha1.StaticAnswer{Path: "/robots.txt", Body: "User-agent: *\nDisallow:\n", Hosts: []string{"a.example"}},
		v1alpha1.StaticAnswer{Path: "/robots.txt", Body: "no\n", ContentType: "text/x-no"},
		v1alpha1.StaticAnswer{Path: "/healthz", Status: 204},
	), timeout(100*time.Millisecond)))
	url := p.gateURL(fn)
	ask := func(method, host, path string) answer {
		req := newRequest(t, method, url+path, nil)
		if host != "" {
			req.Host = host
		}
		return do(t, req)
	}
	for _, tt := range []struct {
		method, host, path string
		status             int
		kind, body, length string
	}{
		{"GET", "A.example.:80", "/robots.txt", 200, "text/plain; charset=utf-8", "User-agent: *\nDisallow:\n", "24"},
		{"HEAD", "a.example", "/robots.txt", 200, "text/plain; charset=utf-8", "", "24"},
		{"GET", "b.example", "/robots.txt?x=1", 200, "text/x-no", "no\n", "3"},
		{"GET", "", "/healthz", 204, "", "", ""},
		{"GET", "", "/health%7A", 204, "", "", ""},
	} {
		got := ask(tt.method, tt.host, tt.path)
		if got.status != tt.status || got.body != tt.body || got.header.Get("Content-Type") != tt.kind ||
			got.header.Get("Content-Length") != tt.length || got.header.Get(headerReason) != "Static" {
			t.Errorf("%s %s%s: got %d %v %q", tt.method, tt.host, tt.path, got.status, got.header, got.body)
		}
	}
	if n := fn.stats.snapshot(); n.started != 0 || n.busy.seconds() != 0 || p.wakes.Load() != 0 {
		t.Errorf("counted %d times, woke %d times", n.started, p.wakes.Load())
	}
	if body := exposition(t, p); !strings.Contains(body, "sluice_static_answers_total 5") {
		t.Error("the activator does not count them")
	}
	// The drain has everybody make a new connection.
	p.proxy.draining.Store(true)
	if got := ask("GET", "", "/healthz"); got.header.Get("Connection") != "close" {
		t.Errorf("draining: %v", got.header)
	}
	p.proxy.draining.Store(false)

	// All else is a request like any.
	for _, tt := range [][2]string{{"POST", "/healthz"}, {"GET", "/healthz/"}, {"GET", "/"}} {
		if got := ask(tt[0], "", tt[1]); got.status != http.StatusGatewayTimeout {
			t.Errorf("%s %s: got %d, want it held", tt[0], tt[1], got.status)
		}
	}
	if n := fn.stats.snapshot().started; n != 3 || p.wakes.Load() == 0 {
		t.Errorf("counted %d times, want 3; woke %d times", n, p.wakes.Load())
	}

	// The spec changes, and with it the answer.
	p.add(newTestFunction("hello", static(v1alpha1.StaticAnswer{Path: "/healthz", Body: "ok"})))
	if got := ask("GET", "", "/healthz"); got.status != 200 || got.body != "ok" {
		t.Errorf("after a change: got %d %q, want 200 ok", got.status, got.body)
	}
}

// While there is a pod its own answer is the truth. That the path is no traffic stays so: a health check must not keep
// the function awake.
func TestStaticPathsAreThePodsWhileThereIsOne(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello", static(v1alpha1.StaticAnswer{Path: "/healthz", Body: "asleep"})))
	url := p.gateURL(fn)
	p.pods("hello", newPod(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "awake") }))
	if got := get(t, url+"/healthz"); got.body != "awake" {
		t.Errorf("got %q, want the pod's answer", got.body)
	}
	if n := fn.stats.snapshot(); n.started != 0 || n.inFlight != 0 || n.finished[outcomeOK] != 0 {
		t.Errorf("counts: %+v, want none", n)
	}
	for _, pod := range fn.pods.Load().ready {
		if n := pod.inFlight.Load(); n != 0 {
			t.Errorf("%d in flight at the pod, want 0", n)
		}
	}
	p.table.removeSlice(newSlice("hello", 0, "127.0.0.1:1", true))
	if got := get(t, url+"/healthz"); got.body != "asleep" {
		t.Errorf("got %q, want the static answer again", got.body)
	}
	p.pods("hello", refusing(t))
	if got := get(t, url+"/healthz"); got.body != "asleep" || p.wakes.Load() != 0 {
		t.Errorf("a pod that refuses: got %q, woke %d times", got.body, p.wakes.Load())
	}
}

// Whatever is asked to come back later is told when.
func TestEveryRefusalThatPassesSaysWhenToComeBack(t *testing.T) {
	p := newPlane(t, nil)
	fn := p.add(newTestFunction("hello"))
	ex := &exchange{fn: fn}
	obj := fn.object.Load()
	for _, ref := range []*refusal{
		refuseHost("h"), refuseLoop(fn), refuseDeleted(fn), refuseQueueFull(fn, "x"), refuseTimeout(ex), refuseDial(ex), refuseUpstream(ex),
		refuseStopping(fn), refuseClient(fn), refuseUpgrade(fn, "x"), refuseNotHTTP2(fn), refuseTLS(fn), refuseMisdirected("h", "n"),
		p.proxy.answerPlaceholder(fn, obj, &v1alpha1.Placeholder{Status: 503}),
	} {
		for _, grpc := range []bool{false, true} {
			if ref.canned != nil && grpc {
				continue
			}
			w := httptest.NewRecorder()
			ref.write(w, 0, grpc)
			says := w.Header().Get("Retry-After") != "" || w.Header().Get("Grpc-Retry-Pushback-Ms") != ""
			if passes := ref.status == 503 || ref.status == 504; says != passes {
				t.Errorf("%d %s (gRPC: %t): says when to come back: %t", ref.status, ref.reason, grpc, says)
			}
		}
	}
	fn.queue.want(time.Time{})
}
