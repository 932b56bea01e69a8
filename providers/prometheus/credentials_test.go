package prometheus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/providers"
)

// canary is a secret that no error may show.
const canary = "c4n4ry-s3cr3t"

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t), cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	a.pem = a.sign(t, a.cert, a.key)
	return a
}

// leaf returns a certificate for a server or a client on loopback, and its key, in PEM.
func (a *authority) leaf(t *testing.T, name string) (cert, key string) {
	t.Helper()
	made := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	cert = a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, made)
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (a *authority) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// serveTLS serves with a certificate of a. With wantClient it takes clients only that have one too.
func (a *authority) serveTLS(t *testing.T, wantClient bool, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	cert, key := a.leaf(t, "server")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if wantClient {
		srv.TLS.ClientAuth, srv.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		srv.TLS.ClientCAs.AppendCertsFromPEM([]byte(a.pem))
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func TestCredentials(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.leaf(t, "client")
	otherCert, _ := a.leaf(t, "another")
	const none = "it has none of the keys username and password; or bearerToken (or token); ca.crt (or ca); tls.crt and tls.key (or cert and key)"
	tests := []struct {
		name    string
		data    map[string]string
		want    string // the header
		wantErr string
	}{
		{name: "basic", data: map[string]string{"username": "u", "password": "p:ä"}, want: "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p:ä"))},
		{name: "basic, from files", data: map[string]string{"username": "u\n", "password": "p\r\n"}, want: "Basic dTpw"},
		{name: "basic, no password needed", data: map[string]string{"username": "u", "password": ""}, want: "Basic dTo="},
		{name: "bearer", data: map[string]string{"bearerToken": "abc"}, want: "Bearer abc"},
		{name: "token, from a file", data: map[string]string{"token": " abc\n", "namespace": "x"}, want: "Bearer abc"},
		{name: "ca alone", data: map[string]string{"ca.crt": a.pem}},
		{name: "tls", data: map[string]string{"ca.crt": a.pem, "tls.crt": cert, "tls.key": key}},
		{name: "tls, other names", data: map[string]string{"ca": a.pem, "cert": cert, "key": key, "token": "abc"}, want: "Bearer abc"},

		{name: "no keys", data: map[string]string{}, wantErr: none},
		{name: "unknown keys", data: map[string]string{"user": canary, "pass": canary}, wantErr: none},
		{name: "no password", data: map[string]string{"username": canary}, wantErr: "it has username and no password; add the key password"},
		{name: "no username", data: map[string]string{"password": canary}, wantErr: "it has password and no username; add the key username"},
		{name: "empty username", data: map[string]string{"username": "", "password": canary}, wantErr: "key username is empty"},
		{name: "colon", data: map[string]string{"username": canary + ":", "password": canary}, wantErr: "key username holds a colon, which basic authentication cannot transport"},
		{name: "empty token", data: map[string]string{"token": " \n"}, wantErr: "key token is empty"},
		{name: "token of two lines", data: map[string]string{"bearerToken": canary + "\r\nX: y"}, wantErr: "key bearerToken holds characters that no bearer token has"},
		{name: "basic and bearer", data: map[string]string{"username": canary, "password": canary, "token": canary}, wantErr: "it has token and username, which contradict each other; remove one"},
		{name: "bearer and a password", data: map[string]string{"password": canary, "bearerToken": canary}, wantErr: "it has bearerToken and password, which contradict each other; remove one"},
		{name: "two tokens", data: map[string]string{"token": canary, "bearerToken": canary}, wantErr: "it has bearerToken and token, which mean the same; remove one"},
		{name: "no PEM", data: map[string]string{"ca": canary}, wantErr: "key ca holds no certificate in PEM"},
		{name: "no key", data: map[string]string{"tls.crt": cert}, wantErr: "it has tls.crt and no tls.key; add its key"},
		{name: "no certificate", data: map[string]string{"key": key}, wantErr: "it has key and no tls.crt; add the certificate"},
		{name: "another's key", data: map[string]string{"tls.crt": otherCert, "tls.key": key}, wantErr: "keys tls.crt and tls.key do not make a certificate with its own key, both in PEM"},
		{name: "exchanged", data: map[string]string{"tls.crt": key, "tls.key": cert}, wantErr: "keys tls.crt and tls.key do not make a certificate with its own key, both in PEM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := map[string][]byte{}
			for k, v := range tt.data {
				data[k] = []byte(v)
			}
			got, err := parseCredentials(data)
			switch {
			case tt.wantErr != "":
				if err == nil || err.Error() != tt.wantErr {
					t.Errorf("got  %v\nwant %s", err, tt.wantErr)
				}
			case err != nil:
				t.Error(err)
			case got.authorization != tt.want:
				t.Errorf("got header %q, want %q", got.authorization, tt.want)
			}
		})
	}
	if c, err := parseCredentials(nil); err != nil || c.authorization != "" || c.tls != nil {
		t.Errorf("no Secret: %+v, %v", c, err)
	}
}

func TestTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	cert, key := a.leaf(t, "client")
	strangerCert, strangerKey := stranger.leaf(t, "client")
	answer := func(w http.ResponseWriter, _ *http.Request) { says(w, http.StatusOK, seven) }
	open, closed := a.serveTLS(t, false, answer), a.serveTLS(t, true, answer)
	plain := serve(t, answer)
	v := &vault{}
	v.put("shop", "ca", map[string]string{"ca.crt": a.pem})
	v.put("shop", "client", map[string]string{"ca.crt": a.pem, "tls.crt": cert, "tls.key": key})
	v.put("shop", "stranger", map[string]string{"ca.crt": a.pem, "tls.crt": strangerCert, "tls.key": strangerKey})
	v.put("shop", "wrong-ca", map[string]string{"ca.crt": stranger.pem})
	tests := []struct {
		name, server, secret, wantErr string
	}{
		{"its authority is known", open.URL, "ca", ""},
		{"its authority is unknown", open.URL, "", "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		{"another authority", open.URL, "wrong-ca", "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		{"a client certificate", closed.URL, "client", ""},
		{"no client certificate", closed.URL, "ca", "remote error: tls: certificate required"},
		{"a stranger's certificate", closed.URL, "stranger", "remote error: tls: unknown certificate authority"},
		{"http to an https server", "http://" + open.Listener.Addr().String(), "", "status 400"},
		{"https to an http server", "https://" + plain.Listener.Addr().String(), "", "server gave HTTP response to HTTPS client"},
		{"TLS keys for an http server", plain.URL, "ca", "authRef: secret shop/ca has keys for TLS only, which say nothing to a server over http; set server to an https URL"},
		{"no such Secret", open.URL, "gone", "authRef: secret shop/gone does not exist"},
	}
	s := newSource(t, v)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			value, err := measure(t, s, withAuth(query(tt.server), tt.secret))
			switch {
			case tt.wantErr == "" && (err != nil || value != 7):
				t.Errorf("got %g, %v, want 7", value, err)
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			}
		})
	}
}

// A rotated Secret is used at the next query after it was read again: new credentials, and a new certificate on a new
// connection.
func TestRotation(t *testing.T) {
	a := newAuthority(t)
	var seen atomic.Value
	srv := a.serveTLS(t, true, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.Header.Get("Authorization"))
		says(w, http.StatusOK, seven)
	})
	v := &vault{}
	s := newSource(t, v)
	for _, name := range []string{"first", "second"} {
		cert, key := a.leaf(t, name)
		v.put("shop", "auth", map[string]string{"ca.crt": a.pem, "tls.crt": cert, "tls.key": key, "token": name})
		want := name + " Bearer " + name
		for deadline := time.Now().Add(5 * time.Second); ; {
			if value, err := measure(t, s, withAuth(query(srv.URL), "auth")); err != nil || value != 7 {
				t.Fatalf("%g, %v", value, err)
			}
			if seen.Load() == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the server sees %q, want %q", seen.Load(), want)
			}
		}
	}
}

// Functions whose Secrets have equal content share connections, in whatever namespace they are; others do not.
func TestEqualCredentialsShareConnections(t *testing.T) {
	var connections atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { says(w, http.StatusOK, seven) }))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	v := &vault{}
	s := newSource(t, v)
	ask := func(namespace, token string) {
		t.Helper()
		v.put(namespace, "auth", map[string]string{"token": token})
		target := withAuth(query(srv.URL), "auth")
		target.Function.Namespace = namespace
		if _, err := measure(t, s, target); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		ask(fmt.Sprint("a", i), "shared")
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for equal credentials one after the other, want 1", n)
	}
	ask("b", "of-its-own")
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections for two sets of credentials, want 2", n)
	}
}

func TestClientsAreBoundedAndForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clients
		get := func(i int) *client {
			t.Helper()
			secret := providers.Secret{Data: map[string][]byte{"token": []byte("x")}, Version: providers.SecretVersion{byte(i), byte(i >> 8)}}
			got, err := c.get(secret)
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Millisecond)
			return got
		}
		firstOne := get(1)
		for i := range maxClients {
			get(2 + i)
		}
		if len(c.byKey) != maxClients {
			t.Errorf("%d clients, want %d", len(c.byKey), maxClients)
		}
		if last := get(maxClients + 1); last != get(maxClients+1) || get(1) == firstOne {
			t.Error("the oldest was kept instead of the newest")
		}
		<-time.After(keepClient)
		get(1)
		if len(c.byKey) != 1 {
			t.Errorf("%d clients after %s, want 1", len(c.byKey), keepClient)
		}
		c.close()
	})
}

// Whatever goes wrong, and however much a server repeats of what it was sent, no error shows a credential.
func TestNoErrorShowsACredential(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.leaf(t, "client")
	echo := func(status int, contentType, format string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			user, password, _ := r.BasicAuth()
			said := strings.Join([]string{r.Header.Get("Authorization"), user, password}, " ")
			w.Header().Set("Location", "http://"+canary+"@elsewhere/"+canary+"?q="+said)
			w.WriteHeader(status)
			fmt.Fprintf(w, format, said, said)
		}
	}
	handlers := map[string]http.HandlerFunc{
		"unauthorized": echo(401, "text/plain", "no: %s %s"),
		"bad data":     echo(400, "application/json", `{"status":"error","errorType":"%s","error":"%s"}`),
		"execution":    echo(422, "application/json", `{"status":"error","errorType":"%s","error":"%s"}`),
		"unavailable":  echo(503, "application/json", `{"status":"error","errorType":"%s","error":"%s"}`),
		"long":         echo(500, "text/plain", strings.Repeat("x", textLimit-60)+"%s%s"),
		"redirect":     echo(302, "text/plain", "%s%s"),
		"warning":      echo(200, "application/json", `{"status":"success","warnings":["%s","%s"],"data":{"resultType":"vector","result":[]}}`),
		"garbage":      echo(200, "application/json", `%s %s`),
		"a bad value":  echo(200, "application/json", `{"status":"success","data":{"resultType":"scalar","result":[1,"%s %s"]}}`),
		"a bad type":   echo(200, "application/json", `{"status":"success","data":{"resultType":"%s","result":["%s"]}}`),
		"a content type": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", r.Header.Get("Authorization"))
		},
		"an encoding": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", r.Header.Get("Authorization"))
		},
		"breaks off": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, canary)
		},
		"no HTTP": func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				fmt.Fprintf(conn, "%s\r\n\r\n", r.Header.Get("Authorization"))
				_ = conn.Close()
			}
		},
		"hangs": func(_ http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			<-r.Context().Done()
		},
	}
	secrets := map[string]map[string]string{
		"basic":   {"username": "user-" + canary, "password": canary},
		"bearer":  {"bearerToken": canary},
		"tls":     {"ca.crt": a.pem, "tls.crt": cert, "tls.key": key, "token": canary},
		"broken":  {"tls.crt": canary, "tls.key": canary},
		"unknown": {"other": canary},
	}
	forbidden := []string{canary, base64.StdEncoding.EncodeToString([]byte("user-" + canary + ":" + canary)), strings.Split(key, "\n")[1]}
	v := &vault{}
	for name, data := range secrets {
		v.put("shop", name, data)
	}
	s := newSource(t, v)
	var all sync.WaitGroup
	check := func(what string, target providers.Target) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := s.Measure(ctx, target)
			if err == nil {
				t.Errorf("%s: no error", what)
			}
			for ; err != nil; err = errors.Unwrap(err) {
				text := fmt.Sprintf("%v %+v %#v", err, err, err)
				for _, secret := range forbidden {
					if strings.Contains(text, secret) {
						t.Errorf("%s: %s", what, text)
					}
				}
			}
		})
	}
	for name, h := range handlers {
		plain, encrypted := serve(t, h), a.serveTLS(t, true, h)
		for secret := range secrets {
			check(name+" "+secret, withAuth(query(plain.URL), secret))
			check(name+" "+secret+" https", withAuth(query(encrypted.URL), secret))
		}
	}
	check("userinfo", query("http://u:"+canary+"@127.0.0.1:1"))
	check("userinfo and no URL", query("http://u:"+canary+"@%zz"))
	check("userinfo and another scheme", query("ftp://"+canary+"@127.0.0.1"))
	all.Wait()
}

// A parser quotes a few bytes around what it does not understand, and quotes them escaped: no piece of a credential is
// shown so either.
func TestNoErrorShowsPartOfACredential(t *testing.T) {
	const token, password = "abcdefghijklmnopqrstuvwxyz-0123456789", `pass"word\of"alice`
	pieces := func(s string) (all []string) {
		for i := range len(s) - 7 {
			all = append(all, s[i:i+7])
		}
		return all
	}
	forbidden := slices.Concat(pieces(token), []string{`pass"word`, `pass\"word`, `pass\\\"word`})
	for _, result := range []string{`"scalar","result":[1,%q]`, `"vector","result":%q`, `"vector","result":[{"value":%q}]`, `%q,"result":[]`} {
		srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
			said := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if _, p, ok := r.BasicAuth(); ok {
				said = p
			}
			says(w, http.StatusOK, fmt.Sprintf(`{"status":"success","data":{"resultType":`+result+`}}`, said))
		})
		v := &vault{}
		v.put("shop", "bearer", map[string]string{"token": token})
		v.put("shop", "basic", map[string]string{"username": "alice", "password": password})
		s := newSource(t, v)
		for _, secret := range []string{"bearer", "basic"} {
			_, err := measure(t, s, withAuth(query(srv.URL), secret))
			if err == nil {
				t.Errorf("%s: no error", result)
				continue
			}
			for _, piece := range forbidden {
				if strings.Contains(err.Error(), piece) {
					t.Errorf("%s: %s shows %q", result, err, piece)
					break
				}
			}
		}
	}
}
