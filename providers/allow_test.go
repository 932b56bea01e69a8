package providers

import (
	"strconv"
	"strings"
	"testing"
)

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
			list, err := ParseAllowList("--allow", tt.allow)
			if err != nil {
				t.Fatal(err)
			}
			for want, servers := range map[bool][]string{true: tt.yes, false: tt.no} {
				for _, raw := range servers {
					s, err := ParseServer(raw)
					if err != nil {
						t.Fatal(err)
					}
					if (list.Check(s) == nil) != want {
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
		_, err := ParseAllowList("--allow", []string{"fine", entry})
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", entry, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), strconv.Quote(withoutUser(entry))+": ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want %s", entry, err, want)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	const own = " is an address of the adapter's own machine or of its cloud's metadata"
	tests := []struct{ address, wantErr string }{
		{"10.0.0.7:443", ""},
		{"192.0.2.1:80", ""},
		{"[fd00::1]:80", ""},
		{"[2001:db8::1]:443", ""},
		{"127.0.0.1:443", "127.0.0.1" + own},
		{"127.8.8.8:1", "127.8.8.8" + own},
		{"[::1]:80", "::1" + own},
		{"[::ffff:127.0.0.1]:443", "127.0.0.1" + own},
		{"0.0.0.0:80", "0.0.0.0" + own},
		{"[::]:80", "::" + own},
		{"169.254.0.1:80", "169.254.0.1" + own},
		{"169.254.169.254:80", "169.254.169.254" + own},
		{"[::ffff:169.254.169.254]:80", "169.254.169.254" + own},
		{"[fe80::1%eth0]:80", "fe80::1" + own},
		{"[fd00:ec2::254]:80", "fd00:ec2::254" + own},
		{"100.100.100.200:80", "100.100.100.200" + own},
		{"168.63.129.16:80", "168.63.129.16" + own},
		{"224.0.0.1:80", "224.0.0.1" + own},
		{"nonsense", "dial nonsense: not an ip:port"},
		{":80", "dial :80: no IP"},
	}
	list, err := ParseAllowList("--allow", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		got := ""
		if err := CheckAddress(tt.address); err != nil {
			got = err.Error()
		}
		if got != tt.wantErr {
			t.Errorf("%s\ngot  %s\nwant %s", tt.address, got, tt.wantErr)
		}
		err := list.CheckAddress("tcp", tt.address, nil)
		if want := tt.wantErr + ", which is asked only if the operator's allow-list (--allow) has the server"; (err == nil) != (tt.wantErr == "") ||
			err != nil && err.Error() != want {
			t.Errorf("%s, by the list\ngot  %v\nwant %s", tt.address, err, want)
		}
	}
}
