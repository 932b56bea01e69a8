package activator

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// asked is a transport that answers at once, and remembers when it was asked.
type asked struct {
	mu sync.Mutex // protects following
	at []time.Time
}

func (a *asked) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.at = append(a.at, time.Now())
	a.mu.Unlock()
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(`{"kind":"Status","apiVersion":"v1","status":"Success"}`)),
	}, nil
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at)
}

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

func wakeHello(ctx context.Context, c *scaleClient) error {
	_, err := c.Wake(ctx, workload{kind: "Deployment", resource: "deployments", name: hello}, 1)
	return err
}

// The first wake in a long time finds its connection open: servers close those that are idle for 90 s, and none ever is.
func TestWakesFindTheirConnectionOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 90 * time.Second
		server := &asked{}
		c, err := newScaleClient(&rest.Config{Host: "http://api", Transport: server})
		if err != nil {
			t.Fatal(err)
		}
		last := time.Now()
		ctx, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		c.keepOpen(ctx, keepOpenInterval)
		for _, at := range append(server.at, time.Now()) {
			if at.Sub(last) > idle*3/4 {
				t.Errorf("nothing was sent for %s", at.Sub(last))
			}
			last = at
		}
		if n := server.count(); n > 120 {
			t.Errorf("%d requests in an hour", n)
		}
	})
}

// A burst of wakes passes, and what is beyond it is paced and not lost.
func TestWakesBeyondTheBurstArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const beyond = 150
		server := &asked{}
		c, err := newScaleClient(&rest.Config{Host: "http://api", Transport: server})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var waking sync.WaitGroup
		for range clientBurst + beyond {
			waking.Go(func() {
				if err := wakeHello(t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		waking.Wait()
		if len(server.at) != clientBurst+beyond {
			t.Fatalf("%d patches, want %d", len(server.at), clientBurst+beyond)
		}
		for i, at := range server.at {
			want := time.Duration(max(0, i+1-clientBurst)) * time.Second / clientQPS
			if got := at.Sub(began); (got - want).Abs() > time.Millisecond {
				t.Fatalf("patch %d was sent after %s, want %s", i+1, got, want)
			}
		}
	})
}

// What one client has spent, or waits for, is its own: no wake waits behind the reads of pods, of Secrets, or behind what the
// configuration was used for before; and the other way round.
func TestBudgetsAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &asked{}
		used := flowcontrol.NewTokenBucketRateLimiter(0.001, 1)
		used.Accept()
		cfg := &rest.Config{Host: "http://api", Transport: server, QPS: 0.001, Burst: 1, RateLimiter: used}
		var waking *scaleClient
		var pods *podClient
		var secrets *secretClient
		calls := map[string]func(context.Context) error{
			"wake":        func(ctx context.Context) error { return wakeHello(ctx, waking) },
			"read pod":    func(ctx context.Context) error { _, err := pods.Pod(ctx, hello); return err },
			"read Secret": func(ctx context.Context) error { _, err := secrets.Secret(ctx, hello); return err },
		}
		for spender, spend := range calls {
			var errs [3]error
			waking, errs[0] = newScaleClient(cfg)
			pods, errs[1] = newPodClient(cfg)
			secrets, errs[2] = newSecretClient(cfg)
			for _, err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
			before := server.count()
			ctx, stop := context.WithCancel(t.Context())
			var spending sync.WaitGroup
			for range 2 * clientBurst {
				spending.Go(func() { _ = spend(ctx) })
			}
			synctest.Wait()
			if got := server.count() - before; got != clientBurst {
				t.Fatalf("%s: %d calls at once, want %d", spender, got, clientBurst)
			}
			for name, call := range calls {
				if name == spender {
					continue
				}
				began := time.Now()
				_ = call(ctx) // what it says to the answer does not matter
				if took := time.Since(began); took != 0 {
					t.Errorf("%s waits %s behind %s", name, took, spender)
				}
			}
			stop()
			spending.Wait()
		}
	})
}

// Wakes have connections of their own, beside those of watches and reads, which an API server in TLS has all in one otherwise.
func TestClientsHaveConnectionsOfTheirOwn(t *testing.T) {
	noLeaks(t)
	var mu sync.Mutex
	conns := map[string][]string{} // the client's addresses, by what is asked for
	seen := func(what string) []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(conns[what])
	}
	hang := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("%s %s by %s", r.Method, r.URL.Path, r.Proto)
		}
		what := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		for _, resource := range []string{"pods", "secrets"} {
			if strings.Contains(r.URL.Path, "/"+resource+"/") {
				what = resource
			}
		}
		mu.Lock()
		conns[what] = append(conns[what], r.RemoteAddr)
		mu.Unlock()
		if what != "scale" {
			select { // as a busy server
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"Scale","apiVersion":"autoscaling/v1"}`)
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that turn out not to be needed
	srv.StartTLS()
	defer srv.Close()
	cfg := &rest.Config{Host: srv.URL, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}),
	}}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer close(hang)
	defer stop()
	w, err := newWatcher(ctx, cfg, newPlane(t, nil).table)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	waking, err := newScaleClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer waking.close()
	pods, err := newPodClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pods.close()
	secrets, err := newSecretClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.close()
	running.Go(func() { _ = w.run(ctx) })
	const each = 10
	for range each {
		running.Go(func() { _, _ = pods.Pod(ctx, hello) })
		running.Go(func() { _, _ = secrets.Secret(ctx, hello) })
	}
	eventually(t, "all hang", func() bool {
		return len(seen("pods")) == each && len(seen("secrets")) == each && len(seen("functions")) > 0 && len(seen("endpointslices")) > 0
	})
	if err := wakeHello(t.Context(), waking); err != nil {
		t.Errorf("a wake while all else hangs: %v", err)
	}
	mine := seen("scale")
	for _, what := range []string{"pods", "secrets", "functions", "endpointslices"} {
		for _, conn := range seen(what) {
			if slices.Contains(mine, conn) {
				t.Fatalf("wakes share a connection with %s", what)
			}
		}
	}
}
