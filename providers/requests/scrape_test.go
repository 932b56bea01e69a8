package requests

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

// versions serves the exposition of an activator whose entity tag is that of its body.
type versions struct {
	body     atomic.Pointer[string]
	untagged atomic.Bool
	asked    chan string // the If-None-Match of each request
}

func (v *versions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.asked <- r.Header.Get("If-None-Match")
	body := *v.body.Load()
	tag := `W/"` + strings.ReplaceAll(strings.ReplaceAll(body, "\n", "."), `"`, "'") + `"`
	if !v.untagged.Load() {
		w.Header().Set("ETag", tag)
	}
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = io.WriteString(w, body)
}

// TestUnchanged measures an activator that answers 304 where it is asked with the tag of its last answer.
func TestUnchanged(t *testing.T) {
	v := &versions{asked: make(chan string, 1)}
	server := httptest.NewServer(v)
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	target := providers.Target{Kind: providers.Activator, Address: strings.TrimPrefix(server.URL, "http://"), Scrape: providers.Scrape{Path: "/metrics"}}
	count := func(n string) string {
		return start + `sluice_requests_started_total{namespace="default",function="hello"} ` + n + "\n"
	}
	steps := []struct {
		name, body         string
		untagged           bool
		asked, unchanged   bool // with a tag; and that the Measurement says so
		started            float64
		invalid, cancelled bool
	}{
		{name: "the first answer", body: count("1"), started: 1},
		{name: "the same again", body: count("1"), asked: true, unchanged: true, started: 1},
		{name: "and again", body: count("1"), asked: true, unchanged: true, started: 1},
		{name: "a request more", body: count("2"), asked: true, started: 2},
		{name: "an answer that cannot be used", body: count("NaN"), asked: true, invalid: true},
		{name: "the one before it", body: count("2"), asked: true, unchanged: true, started: 2},
		{name: "one without a tag", body: count("3"), untagged: true, asked: true, started: 3},
		{name: "so that it cannot be asked for", body: count("3"), started: 3},
	}
	for _, step := range steps {
		v.body.Store(&step.body)
		v.untagged.Store(step.untagged)
		m, err := scraper.Measure(t.Context(), target)
		if asked := <-v.asked != ""; asked != step.asked {
			t.Errorf("%s: asked with a tag: %v, want %v", step.name, asked, step.asked)
		}
		if step.invalid {
			if !errors.Is(err, providers.ErrInvalid) {
				t.Errorf("%s: error %v", step.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := m.Functions[hello].Started; got != step.started || m.Unchanged != step.unchanged {
			t.Errorf("%s: got %v started, unchanged %v, want %v, %v", step.name, got, m.Unchanged, step.started, step.unchanged)
		}
	}
	restarted := target
	restarted.UID = "another"
	if m, err := scraper.Measure(t.Context(), restarted); err != nil || m.Unchanged || <-v.asked != "" {
		t.Errorf("another pod at the address: got %+v, error %v, want all of it", m, err)
	}
	target.Kind, target.Function, target.Scrape.Requests = providers.Pod, hello, "sluice_requests_started_total"
	for range 2 {
		if m, err := scraper.Measure(t.Context(), target); err != nil || m.Unchanged || <-v.asked != "" {
			t.Errorf("a pod: got %+v, error %v, want it to be asked for all of it each time", m, err)
		}
	}
}

// TestNotModifiedUnasked refuses a 304 to a request that had no condition.
func TestNotModifiedUnasked(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }))
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	for _, kind := range []providers.Kind{providers.Activator, providers.Pod} {
		target := podTarget(server)
		target.Kind = kind
		if m, err := scraper.Measure(t.Context(), target); !errors.Is(err, providers.ErrInvalid) || !strings.Contains(err.Error(), "304") {
			t.Errorf("%s: got %+v, error %v, want an invalid answer", kind, m, err)
		}
	}
}

// TestAnswersAreForgotten keeps the answers of targets that are measured, and no others.
func TestAnswersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &NewScraper().answers
		kept, gone := providers.Target{Address: "kept"}, providers.Target{Address: "gone"}
		a.keep(kept, "1", nil)
		a.keep(gone, "1", nil)
		for range 90 {
			time.Sleep(time.Second) //nolint:forbidigo // in synctest
			if a.of(kept) == nil {
				t.Fatal("an answer that is in use is forgotten")
			}
			a.keep(providers.Target{Address: "new"}, "1", nil)
		}
		if _, ok := a.byTarget[gone]; ok {
			t.Error("an answer that nobody asked for is kept")
		}
		a.keep(kept, strings.Repeat("x", maxETag+1), nil)
		if a.of(kept) != nil {
			t.Error("a tag of any length is kept")
		}
	})
}

// fixedSecrets holds Secrets; what is not there is an error.
type fixedSecrets map[types.NamespacedName]providers.Secret

func (f fixedSecrets) Get(_ context.Context, name types.NamespacedName) (providers.Secret, error) {
	if s, ok := f[name]; ok {
		return s, nil
	}
	return providers.Secret{}, errors.New("secret " + name.String() + " does not exist")
}

func TestMeasureTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "calls_total 5\n")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that the client breaks off
	server.StartTLS()
	defer server.Close()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	secret := func(version byte, key string, value []byte) providers.Secret {
		return providers.Secret{Data: map[string][]byte{key: value}, Version: providers.SecretVersion{version}}
	}
	in := func(name string) types.NamespacedName {
		return types.NamespacedName{Namespace: hello.Namespace, Name: name}
	}
	scraper := NewScraper()
	defer scraper.Close()
	scraper.Secrets = fixedSecrets{
		in("right"): secret(1, "ca.crt", authority), in("short"): secret(2, "ca", authority),
		in("empty"): secret(3, "tls.crt", authority), in("garbage"): secret(4, "ca.crt", []byte("x")),
		{Namespace: "other", Name: "foreign"}: secret(1, "ca.crt", authority),
	}
	tests := []struct {
		name string
		with func(*providers.Scrape)
		says string // part of the error
	}{
		{name: "by the system's authorities", with: func(*providers.Scrape) {}, says: "certificate signed by unknown authority"},
		{name: "by those of a Secret", with: func(s *providers.Scrape) { s.CASecret = "right" }},
		{name: "by those of a Secret, short key", with: func(s *providers.Scrape) { s.CASecret = "short" }},
		{name: "by another name", with: func(s *providers.Scrape) { s.CASecret, s.ServerName = "right", "example.com" }},
		{name: "by a wrong name", with: func(s *providers.Scrape) { s.CASecret, s.ServerName = "right", "sluice.dev" }, says: "not sluice.dev"},
		{name: "by any", with: func(s *providers.Scrape) { s.InsecureSkipVerify = true }},
		{name: "no such Secret", with: func(s *providers.Scrape) { s.CASecret = "none" }, says: "caRef: secret default/none does not exist"},
		{name: "a Secret of another namespace", with: func(s *providers.Scrape) { s.CASecret = "foreign" }, says: "secret default/foreign"},
		{name: "a Secret without authorities", with: func(s *providers.Scrape) { s.CASecret = "empty" }, says: "secret default/empty has no ca.crt"},
		{name: "a Secret with garbage", with: func(s *providers.Scrape) { s.CASecret = "garbage" }, says: "no certificate in PEM"},
		{name: "plain text to a port of TLS", with: func(s *providers.Scrape) { s.TLS = false }, says: "status 400"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target := podTarget(server)
			target.Address = strings.TrimPrefix(server.URL, "https://")
			target.Scrape.TLS = true
			tt.with(&target.Scrape)
			for range 2 {
				m, err := scraper.Measure(t.Context(), target)
				if tt.says != "" {
					if err == nil || !strings.Contains(err.Error(), tt.says) {
						t.Fatalf("error = %v, want one that says %q", err, tt.says)
					}
				} else if err != nil || m.Functions[hello].Started != 5 {
					t.Fatalf("got %+v, error %v", m, err)
				}
			}
		})
	}
	if n := len(scraper.transports.byIdentity); n != 6 {
		t.Errorf("%d transports, want one for each way to verify", n)
	}
	scraper.Secrets = nil
	target := podTarget(server)
	target.Scrape.TLS, target.Scrape.CASecret = true, "right"
	if _, err := scraper.Measure(t.Context(), target); err == nil || !strings.Contains(err.Error(), "reads no Secrets") {
		t.Errorf("without Secrets: error = %v", err)
	}
}

// TestTransports keeps the transports in use and as many as may be.
func TestTransports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := &NewScraper().transports
		get := func(name string) *http.Transport {
			t.Helper()
			transport, err := ts.get(identity{serverName: name}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return transport
		}
		used, unused := get("used"), get("unused")
		for range 60 {
			time.Sleep(5 * time.Second) //nolint:forbidigo // in synctest
			if get("used") != used {
				t.Fatal("a transport in use was dropped")
			}
		}
		if len(ts.byIdentity) != 1 || get("unused") == unused {
			t.Errorf("%d transports: one that was not used is kept", len(ts.byIdentity))
		}
		for i := range maxIdentities - 2 {
			get("x" + strings.Repeat("y", i%100) + string(rune('a'+i/100)))
		}
		if _, err := ts.get(identity{serverName: "one more"}, nil); err == nil || len(ts.byIdentity) > maxIdentities {
			t.Errorf("%d transports, error %v, want no more than %d", len(ts.byIdentity), err, maxIdentities)
		}
	})
}

// TestDialsEnd: net/http goes on dialling after a measurement's deadline, so that a dial needs an end of its own. Else
// each pod of a dead node has another dial every interval, for the two minutes that the kernel tries.
func TestDialsEnd(t *testing.T) {
	if timeout := newDialer().Timeout; timeout <= 0 || timeout > 10*time.Second {
		t.Errorf("a dial may take %s", timeout)
	}
}

// TestHeaders checks what is asked for.
func TestHeaders(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.Header().Set("Content-Type", "text/plain")
	}))
	defer server.Close()
	scraper := NewScraper()
	defer scraper.Close()
	if _, err := scraper.Measure(t.Context(), podTarget(server)); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Accept": {accept}, "Accept-Encoding": {"identity"}, "User-Agent": {"sluice-adapter"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}
