package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The request comes back as it came, by TLS too, with the certificate that the function was given.
func TestEcho(t *testing.T) {
	other := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate, and a client that trusts it
	defer other.Close()
	leaf := other.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{Name: "p1", Drain: 10 * time.Second}
	secured := opts
	secured.TLS = dir
	for _, base := range []string{"http://" + runningWith(t, opts), "https://" + runningWith(t, secured)} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/echo?x=%zz", struct{ io.Reader }{strings.NewReader("body")})
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "hello.example.com"
		req.Header = http.Header{"X-Two": {"a", "b"}, "Accept-Encoding": {"x"}, "User-Agent": {"test"}}
		req.Trailer = http.Header{"X-In": {"in"}}
		res, err := other.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var got told
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		want := told{"p1", "POST", "hello.example.com", "/echo?x=%zz", req.Header, "body", http.Header{"X-In": {"in"}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", base, diff)
		}
		_, _ = io.Copy(io.Discard, res.Body) // trailers come after it
		if diff := cmp.Diff(http.Header{"X-Body-Bytes": {"4"}, "X-Unannounced": {"too"}}, res.Trailer); diff != "" {
			t.Errorf("%s: trailers (-want +got):\n%s", base, diff)
		}
	}
}
