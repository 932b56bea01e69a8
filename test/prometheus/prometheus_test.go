//go:build integration

package prometheus

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/prometheus"
	"github.com/sluice-dev/sluice/test/port"
)

var state = flag.String("state", "", "state directory, below which the program is kept")

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

func binary(t *testing.T) string {
	t.Helper()
	if *state == "" {
		t.Fatal("run these with `make integration`: the flag -state is missing")
	}
	path, err := Find(t.Context(), filepath.Join(*state, "prometheus"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Binary = binary(t)
	s, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// function runs the sample function, and calls it rate times per second, until the test ends.
func function(t *testing.T, rate int) (address string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "function")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../function").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	free, err := port.Free(t.Context(), "127.0.0.1", 1)
	if err != nil {
		t.Fatal(err)
	}
	address = free[0]
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--listen", address, "--name", "hello")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		calls.Wait()
		_ = cmd.Wait()
	})
	calls.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := http.DefaultClient.Do(req); err == nil { // it may still be starting
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
	})
	return address
}

// source makes a Source as the adapter does, with a Kubernetes API that has secrets.
func source(t *testing.T, secrets map[string]map[string]string) *prometheus.Source {
	t.Helper()
	client := fake.NewClientset()
	for name, data := range secrets {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: hello.Namespace, Name: name}, Data: map[string][]byte{}}
		for k, v := range data {
			secret.Data[k] = []byte(v)
		}
		if _, err := client.CoreV1().Secrets(hello.Namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := prometheus.New(prometheus.Options{
		Secrets: providers.NewSecrets(providers.SecretsOptions{Client: client.CoreV1()}),
		Allow:   []string{"127.0.0.1"}, // which is refused unless it is named
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func measure(t *testing.T, s *prometheus.Source, ask providers.Ask) (float64, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	m := v1alpha1.PrometheusMetric{Query: ask.Expr}
	ask.Expr = m.Expand(hello)
	got, err := s.Measure(ctx, providers.Target{Kind: providers.Query, Function: hello, Ask: ask})
	if err != nil {
		return 0, err
	}
	return got.Value, nil
}

// eventually asks until check is content, for what has to be scraped first.
func eventually(t *testing.T, s *prometheus.Source, ask providers.Ask, check func(float64, error) bool) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(45 * time.Second); ; <-tick.C {
		v, err := measure(t, s, ask)
		if check(v, err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %g, %v", ask.Expr, v, err)
		}
	}
}

// A real server scrapes a real function, and what it answers is the function's rate; or it is said why there is none.
func TestQueries(t *testing.T) {
	const rate = 20
	server := start(t, Options{Targets: []Target{{
		Address: function(t, rate), Labels: map[string]string{"namespace": hello.Namespace, "function": hello.Name},
	}}})
	s := source(t, nil)
	const calls = `function_calls_total{namespace="{{.Namespace}}",function="{{.Function}}"}`
	ask := providers.Ask{Metric: "calls", Server: server.URL, Expr: "sum(rate(" + calls + "[10s]))"}
	eventually(t, s, ask, func(v float64, err error) bool { return err == nil && v > rate*0.7 && v < rate*1.1 })

	for _, tt := range []struct {
		name, expr string
		emptyZero  bool
		want       float64
		wantErr    string
	}{
		{name: "scalar", expr: "scalar(sum(up)) + 2", want: 3},
		{name: "templated", expr: `count(up{function="{{.Function}}"})`, want: 1},
		{name: "empty", expr: `sum(up{function="other"})`, wantErr: "the query's answer is empty"},
		{name: "empty is zero", expr: `sum(up{function="other"})`, emptyZero: true, want: 0},
		{name: "several", expr: calls, emptyZero: true, wantErr: "elements and one is wanted: aggregate them, as by sum(...)"},
		{name: "NaN", expr: "0/0", wantErr: "the query's answer is NaN"},
		{name: "infinite", expr: "sum(up)/0", wantErr: "the query's answer is infinite"},
		{name: "negative", expr: "-3", wantErr: "the query's answer is negative, -3"},
		{name: "string", expr: `"x"`, wantErr: `unexpected value type "string"`},
		{name: "range vector", expr: "up[10s]", wantErr: "the query's answer is a range vector"},
		{name: "not PromQL", expr: "sum(", wantErr: "status 400, the server does not understand the query: bad_data: invalid parameter \"query\""},
		{name: "cannot be evaluated", expr: `label_replace(up, "a", "b", "c", "(")`, wantErr: "status 422, the server cannot evaluate the query: execution: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ask := ask
			ask.Expr, ask.EmptyIsZero = tt.expr, tt.emptyZero
			got, err := measure(t, s, ask)
			switch {
			case tt.wantErr == "" && (err != nil || got != tt.want):
				t.Errorf("got %g, %v, want %g", got, err, tt.want)
			case tt.wantErr != "" && (!errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			}
		})
	}

	ask.Server += "/nowhere"
	if _, err := measure(t, s, ask); err == nil || !strings.Contains(err.Error(), "status 404, there is no Prometheus API below this address") {
		t.Errorf("at a wrong path: %v", err)
	}
}

// password is the one whose bcrypt hash the server has.
const password, passwordHash = "open sesame", "$2a$04$6Mw1Vy7Kz/F4B4xQWEG8E./ZmoUWZGkg9EjdCOhMjByJgKEm2PCTC"

// A real server wants what Secrets hold: a user with a password, and a client certificate.
func TestCredentials(t *testing.T) {
	serverCert, serverKey := selfSigned(t)
	clientCert, clientKey := selfSigned(t)
	strangerCert, strangerKey := selfSigned(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := func(user, password, ca, cert, key string) map[string]string {
		data := map[string]string{}
		for k, v := range map[string]string{"username": user, "password": password, "ca.crt": ca, "tls.crt": cert, "tls.key": key} {
			if v != "" {
				data[k] = v
			}
		}
		return data
	}
	s := source(t, map[string]map[string]string{
		"right":          secret("alice", password, serverCert, clientCert, clientKey),
		"wrong-password": secret("alice", "close sesame", serverCert, clientCert, clientKey),
		"no-user":        secret("", "", serverCert, clientCert, clientKey),
		"no-certificate": secret("alice", password, serverCert, "", ""),
		"stranger":       secret("alice", password, serverCert, strangerCert, strangerKey),
		"wrong-ca":       secret("alice", password, strangerCert, clientCert, clientKey),
		"user-alone":     secret("alice", password, "", "", ""),
	})
	users := map[string]string{"alice": passwordHash}
	tls := &TLS{Cert: file("server.crt", serverCert), Key: file("server.key", serverKey), ClientCA: file("ca.crt", clientCert)}
	encrypted, plain := start(t, Options{Users: users, TLS: tls}), start(t, Options{Users: users})
	for _, tt := range []struct{ server, secret, wantErr string }{
		{encrypted.URL, "right", ""},
		{encrypted.URL, "wrong-password", "status 401, the server wants credentials, or others than those of authRef: Unauthorized"},
		{encrypted.URL, "no-user", "status 401, the server wants credentials, or others than those of authRef: Unauthorized"},
		{encrypted.URL, "no-certificate", "remote error: tls: "},
		{encrypted.URL, "stranger", "remote error: tls: "},
		{encrypted.URL, "wrong-ca", "x509: certificate signed by unknown authority"},
		{encrypted.URL, "", "x509: certificate signed by unknown authority"},
		{plain.URL, "user-alone", ""},
		{plain.URL, "", "status 401, the server wants credentials, or others than those of authRef: Unauthorized"},
	} {
		t.Run(fmt.Sprintf("%.5s with %s", tt.server, tt.secret), func(t *testing.T) {
			got, err := measure(t, s, providers.Ask{Server: tt.server, Expr: "vector(7)", AuthSecret: tt.secret})
			switch {
			case tt.wantErr == "" && (err != nil || got != 7):
				t.Errorf("got %g, %v, want 7", got, err)
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			}
			if err != nil && strings.Contains(err.Error(), "sesame") {
				t.Errorf("%v shows the password", err)
			}
		})
	}
}

// A server that is restarted is unknown while it is away, and answers again afterwards.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	server := start(t, Options{Dir: dir})
	s := source(t, nil)
	ask := providers.Ask{Server: server.URL, Expr: "vector(7)"}
	if v, err := measure(t, s, ask); err != nil || v != 7 {
		t.Fatalf("got %g, %v, want 7", v, err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if v, err := measure(t, s, ask); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %g, %v from a server that is away", v, err)
	}
	start(t, Options{Dir: dir, Address: server.Address})
	if v, err := measure(t, s, ask); err != nil || v != 7 {
		t.Errorf("got %g, %v after the restart, want 7", v, err)
	}
}
