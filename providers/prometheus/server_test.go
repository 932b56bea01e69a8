package prometheus

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/providers"
)

func TestServersAreReadInOneForm(t *testing.T) {
	tests := []struct{ raw, want, wantErr string }{
		{raw: "http://prometheus:9090", want: "http://prometheus:9090"},
		{raw: "http://prometheus:9090/", want: "http://prometheus:9090"},
		{raw: "HTTPS://Prom.Example.:443/Tenant//a/", want: "https://prom.example/Tenant/a"},
		{raw: "http://prom.example:080", want: "http://prom.example"},
		{raw: "http://prom.example:443", want: "http://prom.example:443"},
		{raw: "http://[0:0:0:0:0:0:0:1]:9090", want: "http://[::1]:9090"},
		{raw: "http://[::ffff:10.0.0.1]/x", want: "http://10.0.0.1/x"},
		{raw: "prometheus:9090", wantErr: `server "prometheus:9090": it does not begin with http:// or https://`},
		{raw: "", wantErr: `server "": it does not begin with http:// or https://`},
		{raw: "file:///etc/passwd", wantErr: `server "file:///etc/passwd": it does not begin with http:// or https://`},
		{raw: "http://user:password@prometheus", wantErr: `server "...@prometheus": a user in it is not taken; put credentials into the Secret of authRef`},
		{raw: "http://prometheus?x=y", wantErr: `server "http://prometheus?x=y": it is to be a base URL, without ? and #`},
		{raw: "http://prometheus?", wantErr: `server "http://prometheus?": it is to be a base URL, without ? and #`},
		{raw: "http://prometheus#x", wantErr: `server "http://prometheus#x": it is to be a base URL, without ? and #`},
		{raw: "http:prometheus", wantErr: `server "http:prometheus": it is to be a base URL, without ? and #`},
		{raw: "http://", wantErr: `server "http://": it has no host`},
		{raw: "http://.:9090", wantErr: `server "http://.:9090": it has no host`},
		{raw: "http://a..", wantErr: `server "http://a..": it has no host`},
		{raw: "http://a:0", wantErr: `server "http://a:0": its port is not between 1 and 65535`},
		{raw: "http://a:65536", wantErr: `server "http://a:65536": its port is not between 1 and 65535`},
		{raw: "http://ｐrom.example", wantErr: `server "http://ｐrom.example": its host has characters that no host name has; write international names in their xn-- form`},
		{raw: "http://[fe80::1%25eth0]", wantErr: `server "http://[fe80::1%25eth0]": its host has characters that no host name has; write international names in their xn-- form`},
		{raw: "http://a/b/../c", wantErr: `server "http://a/b/../c": its path is to be plain, without ".", ".." and escapes`},
		{raw: "http://a/./c", wantErr: `server "http://a/./c": its path is to be plain, without ".", ".." and escapes`},
		{raw: "http://a/%2e%2e/c", wantErr: `server "http://a/%2e%2e/c": its path is to be plain, without ".", ".." and escapes`},
		{raw: "http://a/b%2fc", wantErr: `server "http://a/b%2fc": its path is to be plain, without ".", ".." and escapes`},
		{raw: `http://a/b\..\c`, wantErr: `server "http://a/b\\..\\c": its path is to be plain, without ".", ".." and escapes`},
		{raw: "http://a/b c", wantErr: `server "http://a/b c": its path is to be plain, without ".", ".." and escapes`},
		{raw: "http://a\nb", wantErr: `server "http://a\nb": it is not a URL`},
	}
	for _, tt := range tests {
		t.Run(tt.raw, func(t *testing.T) {
			got, err := parseServer(tt.raw)
			switch {
			case tt.wantErr != "" && (err == nil || err.Error() != tt.wantErr):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			case tt.wantErr == "" && (err != nil || got.String() != tt.want):
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestAllowList(t *testing.T) {
	tests := []struct {
		name  string
		allow []string
		yes   []string
		no    []string
	}{
		{
			"empty allows all", nil,
			[]string{"http://anything", "https://any.thing:1/at/all"},
			nil,
		},
		{
			"a host",
			[]string{"prometheus.monitoring.svc"},
			[]string{
				"http://prometheus.monitoring.svc", "https://PROMETHEUS.monitoring.svc.:9090/x",
			},
			[]string{
				"http://prometheus.monitoring.svc.evil.example", "http://x.prometheus.monitoring.svc", "http://prometheus.monitoring",
				"http://evil.example/prometheus.monitoring.svc",
			},
		},
		{
			"a host with a port",
			[]string{"Prometheus.:9090", "[::1]:9090"},
			[]string{"http://prometheus:9090", "https://prometheus:09090/x", "http://[0::1]:9090"},
			[]string{"http://prometheus", "http://prometheus:909", "http://[::1]", "http://[::2]:9090"},
		},
		{
			"a URL",
			[]string{"https://prom.example/tenant/a/"},
			[]string{"https://prom.example/tenant/a", "https://prom.example:443/tenant//a/", "https://prom.example/tenant/a/b"},
			[]string{
				"http://prom.example/tenant/a", "https://prom.example:9090/tenant/a", "https://prom.example/tenant/ab",
				"https://prom.example/tenant", "https://prom.example", "https://prom.example/Tenant/a",
			},
		},
		{
			"several",
			[]string{"a", "http://b"},
			[]string{"http://a", "https://a", "http://b:80/x"},
			[]string{"https://b", "http://c", "http://b:8080"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := parseAllow(tt.allow)
			if err != nil {
				t.Fatal(err)
			}
			for want, servers := range map[bool][]string{true: tt.yes, false: tt.no} {
				for _, raw := range servers {
					s, err := parseServer(raw)
					if err != nil {
						t.Fatal(err)
					}
					if list.allows(s) != want {
						t.Errorf("%s: allowed is %t, want %t", raw, !want, want)
					}
				}
			}
		})
	}
}

func TestAllowListIsValidated(t *testing.T) {
	for entry, want := range map[string]string{
		"":                  "it has no host",
		"*.example":         "there are no wildcards",
		"https://*/":        "there are no wildcards",
		"a/b":               "a path needs a scheme before it",
		"ftp://a":           "it does not begin with http:// or https://",
		"u:p@a":             "a user in it is not taken",
		"https://a/../b":    "its path is to be plain",
		"https://a?b":       "it is to be a base URL",
		"a:port":            "it is not a URL",
		" a":                "it is not a URL",
		"10.0.0.0/8":        "a path needs a scheme before it",
		"prometheus.svc:99": "",
	} {
		_, err := New(Options{Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}}), Allow: []string{"fine", entry}})
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", entry, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), strconv.Quote(withoutUser(entry))+": ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want %s", entry, err, want)
		}
	}
}

func TestServerThatIsNotAllowedIsNotAsked(t *testing.T) {
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	s, err := New(Options{
		Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}}), Allow: []string{srv.URL + "/tenant"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = measure(t, s, query(srv.URL+"/other"))
	want := "server " + srv.URL + "/other is not in the operator's allow-list (--prometheus-allow)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestAddressesOfTheMachineItself(t *testing.T) {
	for address, want := range map[string]bool{
		"10.0.0.7:9090": true, "192.0.2.1:80": true, "[fd00::1]:80": true, "[2001:db8::1]:80": true,
		"127.0.0.1:9090": false, "127.8.8.8:1": false, "[::1]:80": false, "0.0.0.0:80": false, "[::]:80": false,
		"169.254.169.254:80": false, "169.254.0.1:80": false, "[fe80::1%eth0]:80": false, "[::ffff:169.254.169.254]:80": false,
		"[fd00:ec2::254]:80": false, "100.100.100.200:80": false, "168.63.129.16:80": false, "224.0.0.1:80": false, "nonsense": false,
	} {
		if err := checkAddress("tcp", address, nil); (err == nil) != want {
			t.Errorf("%s: %v, want it to be allowed: %t", address, err, want)
		}
	}
	// It is what a name resolves to that counts.
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	s, err := New(Options{Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = measure(t, s, query(strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)))
	if err == nil || !strings.Contains(err.Error(), "which is asked only if the operator's allow-list (--prometheus-allow) has the server") {
		t.Errorf("got %v from localhost", err)
	}
}
