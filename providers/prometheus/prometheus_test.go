package prometheus

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/sluice-dev/sluice/providers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vault is a Kubernetes API that has Secrets.
type vault struct {
	mu      sync.Mutex // protects following
	secrets map[types.NamespacedName]map[string]string
}

func (v *vault) Secrets(namespace string) corev1client.SecretInterface {
	return &safe{vault: v, namespace: namespace}
}

func (v *vault) put(namespace, name string, data map[string]string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.secrets == nil {
		v.secrets = map[types.NamespacedName]map[string]string{}
	}
	v.secrets[types.NamespacedName{Namespace: namespace, Name: name}] = data
}

type safe struct {
	corev1client.SecretInterface
	vault     *vault
	namespace string
}

func (s *safe) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	s.vault.mu.Lock()
	defer s.vault.mu.Unlock()
	data, ok := s.vault.secrets[types.NamespacedName{Namespace: s.namespace, Name: name}]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	secret := &corev1.Secret{Data: map[string][]byte{}}
	for k, val := range data {
		secret.Data[k] = []byte(val)
	}
	return secret, nil
}

// newSource makes a Source that may ask loopback, where the servers of tests are.
func newSource(t *testing.T, v *vault) *Source {
	t.Helper()
	s, err := New(Options{
		Secrets: providers.NewSecrets(providers.SecretsOptions{Client: v, TTL: 50 * time.Millisecond}),
		Allow:   []string{"127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// says answers as Prometheus does.
func says(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

const seven = `{"status":"success","data":{"resultType":"scalar","result":[1700000000.5,"7"]}}`

func query(server string) providers.Target {
	return providers.Target{
		Kind: providers.Query, Function: types.NamespacedName{Namespace: "shop", Name: "cart"},
		Ask: providers.Ask{Metric: "depth", Server: server, Expr: `sum(depth{app="cart"})`},
	}
}

func withAuth(t providers.Target, secret string) providers.Target {
	t.Ask.AuthSecret = secret
	return t
}

func measure(t *testing.T, s *Source, target providers.Target) (float64, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	m, err := s.Measure(ctx, target)
	if err != nil {
		if m != nil {
			t.Error("a measurement and an error")
		}
		return 0, err
	}
	if len(m.Functions) > 0 || m.Unchanged {
		t.Errorf("the answer of a query speaks of functions: %v", m)
	}
	return m.Value, nil
}

func TestWhatIsAsked(t *testing.T) {
	var got *http.Request
	var form url.Values
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		got, form = r, r.Form
		says(w, http.StatusOK, seven)
	})
	v := &vault{}
	v.put("shop", "auth", map[string]string{"username": "u", "password": "p\n"})
	v.put("other", "auth", map[string]string{"token": "of-another-namespace"})
	value, err := measure(t, newSource(t, v), withAuth(query(srv.URL+"/tenant//a/"), "auth"))
	if err != nil || value != 7 {
		t.Fatalf("got %g, %v, want 7", value, err)
	}
	if got.Method != http.MethodPost || got.URL.Path != "/tenant/a/api/v1/query" {
		t.Errorf("asked by %s %s", got.Method, got.URL)
	}
	want := url.Values{"query": {`sum(depth{app="cart"})`}, "timeout": {"7s"}} // no time: the server's own clock counts
	if diff := cmp.Diff(want, form); diff != "" {
		t.Errorf("form: -want +got\n%s", diff)
	}
	if user, password, _ := got.BasicAuth(); user != "u" || password != "p" {
		t.Errorf("credentials %q, %q", user, password)
	}
	if agent := got.Header.Get("User-Agent"); agent != "sluice-adapter" {
		t.Errorf("user agent %q", agent)
	}
	if accept := got.Header.Get("Accept-Encoding"); accept != "" {
		t.Errorf("asked for the encoding %q", accept)
	}
}

// askBy asks a server that answers by handle and has no network, which no synctest bubble can wait for. The answer has to be
// there within left.
func askBy(t *testing.T, left time.Duration, handle http.HandlerFunc) (float64, error) {
	t.Helper()
	transport := &http.Transport{}
	transport.RegisterProtocol("http", served{handle})
	ctx, cancel := context.WithTimeout(t.Context(), left)
	defer cancel()
	c := &client{creds: &credentials{}, transport: transport}
	return c.ask(ctx, providers.Server{Scheme: "http", Host: "prometheus", Port: "9090"}, query("").Ask, time.Now())
}

// served is a server without a network.
type served struct{ http.Handler }

func (s served) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// A Prometheus server takes "7s" and "500ms" and neither "7.5s" nor "1µs".
func TestTimeoutIsInWholeUnits(t *testing.T) {
	for left, want := range map[time.Duration]string{
		7900 * time.Millisecond: "7s", 800*time.Millisecond + 999*time.Microsecond: "800ms", 90*time.Second + time.Millisecond: "1m30s",
	} {
		synctest.Test(t, func(t *testing.T) {
			got := ""
			_, err := askBy(t, left, func(w http.ResponseWriter, r *http.Request) {
				got = r.PostFormValue("timeout")
				says(w, http.StatusOK, seven)
			})
			if err != nil || got != want {
				t.Errorf("%s left: timeout=%q, %v, want %s", left, got, err, want)
			}
		})
	}
}

// An error says for how long an answer was waited for.
func TestHowLongNobodyAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := askBy(t, 320*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "no complete answer after 300ms" {
			t.Errorf("got %v, want the deadline", err)
		}
	})
}

func TestServersThatDoNotAnswer(t *testing.T) {
	tests := []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"hangs", func(_ http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm() // the server notices that the client goes away once it has read the body
			<-r.Context().Done()
		}},
		{"hangs after the header", func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			says(w, http.StatusOK, `{"status":`)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
		{"trickles", func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			says(w, http.StatusOK, `{"status":"`)
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, tt.handle)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := newSource(t, &vault{}).Measure(ctx, query(srv.URL))
			if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "no complete answer after ") {
				t.Errorf("got %v, want the deadline", err)
			}
			if took := time.Since(began); took > 30*time.Second { // without one it would have no end
				t.Errorf("it took %s, with a deadline of 300ms", took)
			}
		})
	}
}

// nobody is an address at which nobody listens, and which nobody else gets: a client's.
func nobody(t *testing.T) string {
	t.Helper()
	srv := serve(t, http.NotFound)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.LocalAddr().String()
}

func TestServersThatAreNotThere(t *testing.T) {
	s := newSource(t, &vault{})
	_, err := measure(t, s, query("http://"+nobody(t)))
	if !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, providers.ErrInvalid) ||
		!strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want a refused connection", err)
	}
	if strings.Contains(err.Error(), "sum(") {
		t.Errorf("%v repeats the query", err)
	}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // a server that breaks off
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	if _, err := measure(t, s, query("http://"+ln.Addr().String())); err == nil || errors.Is(err, providers.ErrInvalid) {
		t.Errorf("got %v from a server that breaks off", err)
	}
}

func TestFloodsAndBombsEndSoon(t *testing.T) {
	var sent atomic.Int64
	flood := func(w io.Writer) {
		chunk := []byte(strings.Repeat(" ", 64<<10))
		for range 16 << 10 { // 1 GiB
			n, err := w.Write(chunk)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	tests := []struct {
		name, want string
		handle     http.HandlerFunc
	}{
		{
			"a body without end", "invalid answer: the answer has more than 256 KiB, and one number is wanted: aggregate it, as by sum(...)",
			func(w http.ResponseWriter, _ *http.Request) {
				says(w, http.StatusOK, `{"status":"success"`)
				flood(w)
			},
		},
		{
			"an error without end", "invalid answer: the answer has more than 256 KiB, and one number is wanted: aggregate it, as by sum(...)",
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusInternalServerError)
				flood(w)
			},
		},
		{
			"a gzip bomb", "invalid answer: the answer is compressed, which was not asked for: gzip",
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				w.Header().Set("Content-Type", "application/json")
				z := gzip.NewWriter(w)
				flood(z)
				_ = z.Close()
			},
		},
		{
			"a header without end", "server response headers exceeded 65536 bytes; aborted",
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X", strings.Repeat("x", 1<<20))
				says(w, http.StatusOK, seven)
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sent.Store(0)
			srv := serve(t, tt.handle)
			_, err := measure(t, newSource(t, &vault{}), query(srv.URL))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if n := sent.Load(); n > 64<<20 && tt.name != "a gzip bomb" {
				t.Errorf("%d bytes were taken from the server", n)
			}
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	other := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"/login?token=abc", status)
		})
		v := &vault{}
		v.put("shop", "auth", map[string]string{"token": "x-secret"})
		_, err := measure(t, newSource(t, v), withAuth(query(srv.URL), "auth"))
		want := fmt.Sprintf("invalid answer: status %d, a redirect, which is not followed since credentials would go there too; "+
			"set server to where it leads: %s/login", status, other.URL)
		if err == nil || err.Error() != want || !errors.Is(err, providers.ErrInvalid) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// A dead server takes perServer connections at a time and no more; those that cannot start say so; and no other server
// is kept waiting.
func TestADeadServerIsBounded(t *testing.T) {
	var inFlight, most atomic.Int64
	dead := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		now := inFlight.Add(1)
		defer inFlight.Add(-1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		<-r.Context().Done()
	})
	alive := serve(t, func(w http.ResponseWriter, _ *http.Request) { says(w, http.StatusOK, seven) })
	s := newSource(t, &vault{})
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	var hanging sync.WaitGroup
	for range perServer {
		hanging.Go(func() {
			if _, err := s.Measure(ctx, query(dead.URL)); !errors.Is(err, context.Canceled) || err.Error() != "the query was given up" {
				t.Errorf("one that hangs: got %v, want that it was given up", err)
			}
		})
	}
	for deadline := time.Now().Add(30 * time.Second); inFlight.Load() < perServer; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d queries are under way, want %d", inFlight.Load(), perServer)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var waiting sync.WaitGroup
	for range 9 * perServer { // while all that hang do
		waiting.Go(func() {
			_, err := s.Measure(short, query(dead.URL))
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "under way all the time") {
				t.Errorf("one that cannot start: got %v, want the deadline, and why", err)
			}
		})
	}
	for range 5 {
		if value, err := measure(t, s, query(alive.URL)); err != nil || value != 7 {
			t.Errorf("another server: %g, %v", value, err)
		}
	}
	waiting.Wait()
	giveUp()
	hanging.Wait()
	if most.Load() != perServer {
		t.Errorf("%d at a time, want %d", most.Load(), perServer)
	}
	if n := s.slots.Keys(); n != 0 {
		t.Errorf("%d servers are remembered when no query is under way", n)
	}
}

func TestOnlyQueriesAreMeasured(t *testing.T) {
	_, err := measure(t, newSource(t, &vault{}), providers.Target{Kind: providers.Pod, Address: "127.0.0.1:1"})
	if err == nil {
		t.Error("a pod was measured")
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a Source without Secrets was made")
	}
}
