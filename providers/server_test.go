package providers

import (
	"net/http"
	"strings"
	"testing"
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
		{raw: "http://" + strings.Repeat("a", 254), wantErr: `server "http://` + strings.Repeat("a", 254) + `": its host is longer than a host name may be`},
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
			got, err := ParseServer(tt.raw)
			switch {
			case tt.wantErr != "" && (err == nil || err.Error() != tt.wantErr):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			case tt.wantErr == "" && (err != nil || got.String() != tt.want):
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

// What a URL is read as reads as itself, and an allow-list of one server lets through that server alone.
func FuzzServer(f *testing.F) {
	for _, raw := range []string{
		"http://prometheus:9090", "https://prom.example/tenant/", "HTTP://A.:080//b", "http://[::ffff:127.0.0.1]/x", "http://a@b", "http://a/%2e%2e/b",
		"http://a/../b", "http://a:0", "http://a?b", "http://[fe80::1%25eth0]:1", "http://ａ", "http://a/;b", "http://a//..//b", "http://a\\@b",
	} {
		f.Add(raw)
	}
	other := Server{Scheme: "https", Host: "other.example", Port: "443"}
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := ParseServer(raw)
		if err != nil {
			return
		}
		again, err := ParseServer(s.String())
		if err != nil || again != s {
			t.Errorf("%q reads as %q, and that as %+v, %v", raw, s, again, err)
		}
		list, err := ParseAllowList("--allow", []string{s.String()})
		if err != nil || list.Check(s) != nil || (s != other && list.Check(other) == nil) {
			t.Errorf("%q as an entry of the allow-list: %+v, %v", s, list, err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.String()+"/api/v1/query", nil)
		if err != nil || !strings.EqualFold(strings.Trim(req.URL.Hostname(), "[]"), s.Host) || strings.Contains(req.URL.Path, "..") {
			t.Errorf("%q would ask %v, %v", raw, req, err)
		}
	})
}
