package activator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func withTLS(secret string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Traffic.TLS = &v1alpha1.TrafficTLS{SecretRef: v1alpha1.SecretRef{Name: secret}}
	}
}

// newCertificate is a certificate for hosts, by which it is known who shows it, and its Secret.
func newCertificate(t *testing.T, name string, from time.Time, hosts ...string) (*x509.Certificate, *corev1.Secret) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: hosts, NotBefore: from, NotAfter: from.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		},
	}
}

// secretsFunc is a secretReader.
type secretsFunc func(types.NamespacedName) (*corev1.Secret, error)

func (f secretsFunc) Secret(_ context.Context, name types.NamespacedName) (*corev1.Secret, error) {
	return f(name)
}

// A client finds its function by the server name alone, is shown that function's certificate and no other's, and speaks
// whatever it likes within.
func TestTheDoorOverTLS(t *testing.T) {
	noLeaks(t)
	a := newAPI(t)
	certA, secretA := newCertificate(t, "a-tls", time.Now().Add(-time.Hour), "a.example.com", "a2.example.com")
	certB, secretB := newCertificate(t, "b-tls", time.Now().Add(-time.Hour), "b.example.com")
	a.secrets = map[string]*corev1.Secret{"a-tls": secretA, "b-tls": secretB}
	a.set(newTestFunction("a", hosts("a.example.com", "a2.example.com"), withTLS("a-tls")))
	a.set(newTestFunction("b", hosts("b.example.com"), withTLS("b-tls")))
	a.set(newTestFunction("closed", hosts("closed.example.com"), withTLS("closed-tls")))
	a.set(newTestFunction("clear", hosts("clear.example.com")))
	echoProto := func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.Host + " " + r.Header.Get("X-Forwarded-Proto")))
	}
	socket := websocket.Server{Handler: func(ws *websocket.Conn) {
		var word string
		_ = websocket.Message.Receive(ws, &word)
		_ = websocket.Message.Send(ws, word)
	}}
	for _, name := range []string{"a", "closed", "clear"} {
		a.set(newSlice(name, 0, newPod(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				socket.ServeHTTP(w, r)
				return
			}
			echoProto(w, r)
		}), true))
	}
	a.set(newSlice("b", 0, newGRPCPod(t), true))
	r := start(t, a, func(*Options) {})
	eventually(t, "it is ready", func() bool { return r.status(t, "/readyz") == http.StatusOK })

	roots := x509.NewCertPool()
	roots.AddCert(certA)
	roots.AddCert(certB)
	ask := func(name, host string, protocols func(*http.Protocols), change ...func(*tls.Config)) (answer, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, Protocols: &http.Protocols{}}
		protocols(tr.Protocols)
		for _, c := range change {
			c(tr.TLSClientConfig)
		}
		defer tr.CloseIdleConnections()
		req := newRequest(t, http.MethodGet, "https://"+r.doorTLS, nil)
		req.Host = host
		res, err := tr.RoundTrip(req)
		if err != nil {
			return answer{}, err
		}
		defer res.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(res.Body)
		return answer{res.StatusCode, res.Header, res.Proto + " " + body.String()}, err
	}
	onlyH2 := func(p *http.Protocols) { p.SetHTTP2(true) }
	for _, tt := range []struct {
		name      string
		sni, host string
		protocols func(*http.Protocols)
		want      string
		status    int
	}{
		{"HTTP/1.1", "a.example.com", "a.example.com", onlyHTTP1, "HTTP/1.1 a.example.com https", 200},
		{"h2 by ALPN", "a.example.com", "a.example.com:443", onlyH2, "HTTP/2.0 a.example.com:443 https", 200},
		{"another host of the function", "a.example.com", "a2.example.com", onlyH2, "HTTP/2.0 a2.example.com https", 200},
		{"the host of another function", "a.example.com", "b.example.com", onlyH2, "", 421},
		{"a host without a certificate", "a.example.com", "clear.example.com", onlyHTTP1, "", 421},
		{"a host of nobody", "a.example.com", "nobody.example.com", onlyHTTP1, "", 421},
	} {
		got, err := ask(tt.sni, tt.host, tt.protocols)
		if err != nil || got.status != tt.status || (tt.want != "" && got.body != tt.want) {
			t.Errorf("%s: got %d %q, %v, want %d %q", tt.name, got.status, got.body, err, tt.status, tt.want)
		}
	}
	for name, change := range map[string]func(*tls.Config){
		"unknown server name":        func(c *tls.Config) { c.ServerName = "nobody.example.com" },
		"a function without TLS":     func(c *tls.Config) { c.ServerName = "clear.example.com" },
		"a Secret that is not there": func(c *tls.Config) { c.ServerName = "closed.example.com" },
		"no server name":             func(c *tls.Config) { c.ServerName = ""; c.InsecureSkipVerify = true },
	} {
		if _, err := ask("", "a.example.com", onlyHTTP1, change); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s: got %v, want the alert unrecognized_name", name, err)
		}
	}
	if _, err := ask("a.example.com", "a.example.com", onlyHTTP1, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }); err == nil {
		t.Error("TLS 1.1 was taken")
	}

	conn, err := grpc.NewClient("passthrough:///"+r.doorTLS,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "b.example.com"})), grpc.WithAuthority("b.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	if got := chat(t.Context(), conn, "2 word"); got.Code != codes.OK || len(got.Messages) != 2 {
		t.Errorf("gRPC: got %+v", got)
	}
	_ = conn.Close()

	cfg, err := websocket.NewConfig("wss://a.example.com/", "https://a.example.com")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := tls.Dial("tcp", r.doorTLS, &tls.Config{RootCAs: roots, ServerName: "a.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(cfg, raw)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if err := errors.Join(websocket.Message.Send(ws, "word"), websocket.Message.Receive(ws, &back)); err != nil || back != "word" {
		t.Errorf("WebSocket: got %q, %v", back, err)
	}
	_ = ws.Close()
	for _, line := range []string{
		"sluice_misdirected_requests_total 3",
		`sluice_tls_handshakes_refused_total{reason="unknown_host"} 3`,
		`sluice_tls_handshakes_refused_total{reason="no_certificate"} 1`,
		"sluice_tls_certificates_bad 1",
	} {
		eventually(t, "/metrics has the line "+line, func() bool {
			return strings.Contains(get(t, r.admin+"/metrics").body, line+"\n")
		})
	}
	r.stop()
	r.wait(t)
}

// What is read, when, and what becomes of it.
func TestCertificatesFollowTheirSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var secret *corev1.Secret
		var fails error
		reads := 0
		says := func(s *corev1.Secret, err error) {
			mu.Lock()
			defer mu.Unlock()
			secret, fails = s, err
		}
		reader := secretsFunc(func(types.NamespacedName) (*corev1.Secret, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return secret, fails
		})
		var logged []string
		log := funcr.New(func(_, args string) {
			mu.Lock()
			defer mu.Unlock()
			logged = append(logged, args)
		}, funcr.Options{})
		wantLogged := func(words ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			all := strings.Join(logged, "\n")
			for _, w := range words {
				if !strings.Contains(all, w) {
					t.Errorf("the log does not say %q:\n%s", w, all)
				}
			}
			if len(logged) != 1 && len(words) > 0 {
				t.Errorf("logged %d times, want once:\n%s", len(logged), all)
			}
			logged = nil
		}
		m := newMetrics()
		table := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
		c := newCerts(log, m, reader, table, "sluice-system")
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.run(ctx)
		name := types.NamespacedName{Namespace: "default", Name: "hello-tls"}
		shows := func() *x509.Certificate {
			cert := c.get(t.Context(), name)
			if cert == nil {
				return nil
			}
			return cert.Leaf
		}
		forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "hello-tls", errors.New("no rule"))

		says(nil, forbidden)
		table.setFunction(newTestFunction("hello", hosts("hello.example.com"), withTLS("hello-tls")))
		pass(2 * time.Second)
		if shows() != nil {
			t.Error("a certificate without a Secret")
		}
		wantLogged("kubectl -n default create rolebinding sluice-activator-secrets", "sluice-system:sluice-activator")

		first, s := newCertificate(t, "hello-tls", time.Now(), "hello.example.com")
		says(s, nil)
		pass(10 * time.Second)
		if got := shows(); !got.Equal(first) {
			t.Error("opened 10s ago, and not shown")
		}
		wantLogged("nothing is wrong any more")

		second, s := newCertificate(t, "hello-tls", time.Now(), "hello.example.com")
		says(s, nil)
		pass(10 * time.Second)
		if got := shows(); !got.Equal(second) {
			t.Error("rotated 10s ago, and the old one is shown")
		}

		says(nil, errors.New("connection refused"))
		pass(time.Hour)
		if got := shows(); !got.Equal(second) {
			t.Error("the API server is away, and the last certificate is not shown")
		}
		wantLogged()

		// Nobody asked for an hour but just now: it is looked at seldom, and at once when somebody asks.
		pass(20 * time.Minute)
		mu.Lock()
		before := reads
		mu.Unlock()
		third, s := newCertificate(t, "hello-tls", time.Now(), "hello.example.com")
		says(s, nil)
		pass(4 * time.Minute)
		mu.Lock()
		seldom := reads - before
		mu.Unlock()
		if seldom > 1 {
			t.Errorf("%d reads in 4 minutes without a handshake, want one at most", seldom)
		}
		pass(2 * time.Minute)
		if got := shows(); !got.Equal(third) {
			t.Error("not asked for in a long time, and an old one is shown")
		}

		_, s = newCertificate(t, "hello-tls", time.Now(), "other.example.com")
		says(s, nil)
		pass(10 * time.Second)
		wantLogged("the certificate is not for hello.example.com of spec.traffic.hosts")
		_, s = newCertificate(t, "hello-tls", time.Now().Add(-48*time.Hour), "hello.example.com")
		says(s, nil)
		pass(10 * time.Second)
		wantLogged("the certificate is valid from")
		s = s.DeepCopy()
		s.Type = corev1.SecretTypeOpaque
		says(s, nil)
		pass(10 * time.Second)
		wantLogged("must be of type kubernetes.io/tls")
		if shows() != nil {
			t.Error("shown from a Secret of another type")
		}
		s = s.DeepCopy()
		s.Type, s.Data["tls.key"] = corev1.SecretTypeTLS, []byte("hunter2")
		says(s, nil)
		pass(10 * time.Second)
		wantLogged("are no certificate in PEM and its key")

		table.removeFunction(types.NamespacedName{Namespace: "default", Name: "hello"})
		pass(2 * time.Second)
		c.mu.Lock()
		n := len(c.entries)
		c.mu.Unlock()
		if n != 0 {
			t.Errorf("%d Secrets are kept that no function names", n)
		}
		stop()
	})
}

// A Function may lose its traffic while its Secret is read.
func TestAFunctionLosesItsTrafficWhileItsSecretIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, secret := newCertificate(t, "hello-tls", time.Now(), "hello.example.com")
		table := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
		reader := secretsFunc(func(types.NamespacedName) (*corev1.Secret, error) {
			table.setFunction(newTestFunction("hello", func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil }))
			return secret, nil
		})
		table.setFunction(newTestFunction("hello", hosts("hello.example.com"), withTLS("hello-tls")))
		newCerts(logr.Discard(), newMetrics(), reader, table, "sluice-system").look(t.Context())
	})
}
