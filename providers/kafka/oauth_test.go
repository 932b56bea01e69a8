package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const token = "header.payload-0_1~2+3/4.signature=="

// bearer parses a Secret for OAUTHBEARER with the endpoint, and more. Allow are the hosts in the operator's list.
func bearer(t *testing.T, endpoint string, more map[string]string, allow ...string) *oauth {
	t.Helper()
	data := map[string]string{"sasl": "oauthbearer", "username": "id", "password": canary, "oauthTokenEndpointUri": endpoint}
	maps.Copy(data, more)
	s, err := parseCredentials(bytesOf(data), allowing(t, allow...))
	if err != nil {
		t.Fatal(err)
	}
	return s.sasl.(*oauth)
}

func endpoint(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func grants(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":300}`, text)
}

// The client's first message is that of RFC 7628, with a token that was asked for as RFC 6749 says.
func TestToken(t *testing.T) {
	tests := []struct {
		name   string
		more   map[string]string
		params bool // the endpoint takes the client's secret in the form only
		scope  string
		want   string
	}{
		{name: "no more", want: "n,,\x01auth=Bearer " + token + "\x01\x01"},
		{name: "in the form", params: true, want: "n,,\x01auth=Bearer " + token + "\x01\x01"},
		{name: "scopes as KEDA has them", more: map[string]string{"scopes": "kafka, openid\n"}, scope: "kafka openid", want: "n,,\x01auth=Bearer " + token + "\x01\x01"},
		{
			name: "extensions", more: map[string]string{"oauthExtensions": "logicalCluster=lkc-1, identityPoolId=pool=1,\n"},
			want: "n,,\x01auth=Bearer " + token + "\x01logicalCluster=lkc-1\x01identityPoolId=pool=1\x01\x01",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
				id, secret, _ := r.BasicAuth()
				if tt.params {
					id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
				}
				if id != "id" || secret != canary {
					http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
					return
				}
				got := []string{r.Method, r.URL.String(), r.PostFormValue("grant_type"), r.PostFormValue("scope")}
				if diff := cmp.Diff([]string{"POST", "/token?tenant=1", "client_credentials", tt.scope}, got); diff != "" {
					t.Errorf("asked, -want +got\n%s", diff)
				}
				grants(w, token)
			})
			session, say, err := bearer(t, srv.URL+"/token?tenant=1", tt.more, "127.0.0.1").Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(say)); diff != "" {
				t.Errorf("said, -want +got\n%s", diff)
			}
			if done, _, err := session.Next(t.Context(), nil); !done || err != nil {
				t.Errorf("accepted: %t, %v", done, err)
			}
		})
	}
}

// What an endpoint answers besides tokens, or in their place, does not get into an error.
func TestTokenRefused(t *testing.T) {
	elsewhere := endpoint(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	says := func(status int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Location", elsewhere.URL+"/"+canary)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	const notToken = "its answer is not a token in JSON"
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"another secret", says(401, "application/json", `{"error":"invalid_client","error_description":"`+canary+`"}`), "it answers with status 401 Unauthorized (invalid_client); check the keys username and password, which are the client's id and secret"},
		{"another scope", says(400, "application/json", `{"error":"invalid_scope"}`), "it answers with status 400 Bad Request (invalid_scope); check the key scopes"},
		{"a code of its own", says(400, "application/json", `{"error":"`+canary+`"}`), "it answers with status 400 Bad Request"},
		{"a page", says(403, "text/html", canary), "it answers with status 403 Forbidden"},
		{"a form", says(403, "text/plain", "error="+canary), "it answers with status 403 Forbidden"},
		{"a refusal that is none", says(200, "application/json", `{"error":"invalid_client","access_token":"`+canary+`"}`), "it answers with status 200 OK (invalid_client); check the keys username and password, which are the client's id and secret"},
		{"broken", says(500, "application/json", canary), "it answers with status 500 Internal Server Error"},
		{"no status that there is", says(599, "application/json", canary), "it answers with status 599"},
		{"a redirect", says(302, "text/html", canary), "it answers with status 302 Found; redirects are not followed, so that the key must be the URL that it leads to"},
		{"a redirect with the form", says(307, "text/html", canary), "it answers with status 307 Temporary Redirect; redirects are not followed, so that the key must be the URL that it leads to"},
		{"no token", says(200, "application/json", `{"x":"`+canary+`"}`), notToken},
		{"no JSON", says(200, "text/html", canary), notToken},
		{"a number that is none", says(200, "application/json", `{"access_token":"t","expires_in":"`+canary+`"}`), notToken},
		{"a token that would go on", says(200, "application/json", `{"access_token":"`+canary+`\u0001auth=Bearer x"}`), "what it gives holds characters that no bearer token has"},
		{"a flood", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for range 2048 {
				_, _ = io.WriteString(w, strings.Repeat(" ", 1024))
			}
		}, notToken},
		{"a flood before the answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Flood", strings.Repeat("x", 1<<20))
		}, "it does not answer as a server of http does"},
		{"no HTTP", func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-"+canary+"\r\n")
			_ = c.Close()
		}, "it does not answer as a server of http does"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := endpoint(t, tt.answer)
			host := srv.Listener.Addr().String()
			_, say, err := bearer(t, srv.URL+"/"+canary+"?secret="+canary, nil, "127.0.0.1").Start(t.Context())
			want := "token of " + host + " (key oauthTokenEndpointUri): " + tt.want
			if err == nil || err.Error() != want || say != nil {
				t.Errorf("got  %v, said %q\nwant %s", err, say, want)
			}
		})
	}
}

// The endpoint's certificate may be of the Secret's authority.
func TestTokenTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { grants(w, token) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
	srv.StartTLS()
	t.Cleanup(srv.Close)
	other, _ := certificate(t)
	own := block("CERTIFICATE", srv.Certificate().Raw)
	plain := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { grants(w, token) })
	tests := []struct{ name, url, ca, want string }{
		{"its own", srv.URL, own, ""},
		{"its own among others", srv.URL, other + own, ""},
		{"another", srv.URL, other, "x509: certificate signed by unknown authority; the Secret's ca.crt is trusted besides the system's authorities"},
		{"http to https", strings.Replace(srv.URL, "https", "http", 1), own, "it answers with status 400 Bad Request"},
		{"https to http", strings.Replace(plain.URL, "http", "https", 1), own, "it does not answer as a server of https does"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := bearer(t, tt.url, map[string]string{"ca.crt": tt.ca}, "127.0.0.1").Start(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.want)) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestTokenOfOneThatHangs(t *testing.T) {
	stop := make(chan struct{})
	srv := endpoint(t, func(http.ResponseWriter, *http.Request) { <-stop })
	defer close(stop)
	o := bearer(t, srv.URL, nil, "127.0.0.1")
	var all sync.WaitGroup
	for range 3 { // one asks, the others wait for it
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, _, err := o.Start(ctx)
			want := "token of " + srv.Listener.Addr().String() + " (key oauthTokenEndpointUri): no answer in time: context deadline exceeded"
			if !errors.Is(err, context.DeadlineExceeded) || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
	all.Wait()
}

// Whoever may write a Secret may not read with it what only the adapter's machine can.
func TestTokenOfTheMachineItself(t *testing.T) {
	srv := endpoint(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "[fd00:ec2::254]"} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, _, err := bearer(t, "http://"+host+":"+port, nil).Start(ctx)
		cancel()
		const want = "is an address of the adapter's own machine or of its cloud's metadata, " +
			"which is asked only if the operator's allow-list (--kafka-allow) has the server"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want: ... %s", host, err, want)
		}
	}
}

// transport is an endpoint without a network.
type transport func() (*http.Response, error)

func (f transport) RoundTrip(*http.Request) (*http.Response, error) { return f() }

func answer(status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
	}
}

// A token serves the connections of the next seconds, and so does a refusal; an endpoint that cannot be reached is asked
// again.
func TestTokenIsShared(t *testing.T) {
	tests := []struct {
		name   string
		answer transport
		want   time.Duration // how long no other is asked for
	}{
		{"a token", func() (*http.Response, error) { return answer(200, `{"access_token":"t","expires_in":3600}`), nil }, 10 * time.Second},
		{"one without an end", func() (*http.Response, error) { return answer(200, `{"access_token":"t"}`), nil }, 10 * time.Second},
		{"one that ends soon", func() (*http.Response, error) { return answer(200, `{"access_token":"t","expires_in":6}`), nil }, 3 * time.Second},
		{"a refusal", func() (*http.Response, error) { return answer(401, `{}`), nil }, 10 * time.Second},
		{"nobody there", func() (*http.Response, error) { return nil, &net.OpError{Op: "dial", Err: errors.New("refused")} }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int32
				o := bearer(t, "https://idp.example", nil)
				o.config.AuthStyle = 2 // in the header; the first refusal would be followed by another try
				o.client = &http.Client{Transport: transport(func() (*http.Response, error) {
					asked.Add(1)
					time.Sleep(100 * time.Millisecond) //nolint:forbidigo // in synctest
					return tt.answer()
				})}
				want := int32(1)
				if tt.want == 0 {
					want = 5
				}
				var all sync.WaitGroup
				for range 5 {
					all.Go(func() { _, _, _ = o.Start(t.Context()) })
				}
				all.Wait()
				if got := asked.Load(); got != want {
					t.Errorf("five at once: asked %d times, want %d", got, want)
				}
				asked.Store(0)
				time.Sleep(tt.want - time.Millisecond) //nolint:forbidigo // in synctest
				_, _, _ = o.Start(t.Context())
				if got, want := asked.Load(), want/5; got != want {
					t.Errorf("before: asked %d times, want %d", got, want)
				}
				asked.Store(0)
				time.Sleep(time.Millisecond) //nolint:forbidigo // in synctest
				_, _, _ = o.Start(t.Context())
				if got := asked.Load(); got != 1 {
					t.Errorf("after: asked %d times, want 1", got)
				}
			})
		})
	}
}

// A broker that refuses says why in JSON, and may repeat the token.
func TestTokenRefusedByTheBroker(t *testing.T) {
	long := strings.Repeat("x", 1000)
	tests := []struct{ name, said, want string }{
		{"Kafka's", `{"status":"invalid_token"}`, `the broker refuses the token: "{\"status\":\"invalid_token\"}"`},
		{"with the token", `{"status":"` + token + `"}`, `the broker refuses the token: "{\"status\":\"[hidden]\"}"`},
		{"long", long, `the broker refuses the token: "` + long[:200] + `"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { grants(w, token) })
			session, _, err := bearer(t, srv.URL, nil, "127.0.0.1").Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done, _, err := session.Next(t.Context(), []byte(tt.said))
			if done || err == nil || err.Error() != tt.want {
				t.Errorf("got  %t, %v\nwant %s", done, err, tt.want)
			}
		})
	}
}
