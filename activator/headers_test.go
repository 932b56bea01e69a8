package activator

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Whatever way a request takes through the gate, and whatever its pod speaks, its headers are those that the client sent,
// but for the hops: X-Forwarded-For grows by who connected to the gate, and nothing that a proxy in front has said is
// replaced.
func TestTheRequestPassesAsItCame(t *testing.T) {
	var got *http.Request
	pod := func(_ http.ResponseWriter, r *http.Request) { got = r }
	ways := []struct {
		name, method, body string
		address            string
		change             []func(*v1alpha1.Function)
	}{
		{"no body", http.MethodGet, "", newPod(t, pod), nil},
		{"a body", http.MethodPost, "body", newPod(t, pod), nil},
		{"HTTP/2", http.MethodPut, "body", newPodOf(t, http.HandlerFunc(pod), onlyH2C), []func(*v1alpha1.Function){appProtocol("kubernetes.io/h2c")}},
	}
	events := http.Header{
		"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "Tracestate": {"a=1", "b=2"}, "Baggage": {"k=v"},
		"Event-Id": {"1"}, "Event-Type": {"t"}, "Event-Time": {"2026-01-01T00:00:00Z"}, "Event-Namespace": {"n"},
		"Ce-Id": {"1"}, "Ce-Specversion": {"1.0"}, "Ce-Type": {"t"}, "Ce-Source": {"/a b"},
	}
	tests := []struct {
		name string
		set  http.Header
		want http.Header
	}{
		{"first proxy", nil, http.Header{
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"hello.example.com"}, "X-Forwarded-Proto": {"http"},
		}},
		{"behind an ingress, or a client that says so", http.Header{
			"X-Forwarded-For": {"203.0.113.7"}, "X-Forwarded-Host": {"public.example.com"}, "X-Forwarded-Proto": {"https"},
			"Forwarded": {"for=203.0.113.7"},
		}, http.Header{
			"X-Forwarded-For": {"203.0.113.7, 127.0.0.1"}, "X-Forwarded-Host": {"public.example.com"}, "X-Forwarded-Proto": {"https"},
			"Forwarded": {"for=203.0.113.7"},
		}},
		{"behind several", http.Header{"X-Forwarded-For": {"203.0.113.7, 10.0.0.1", "10.0.0.2"}}, http.Header{
			"X-Forwarded-For":  {"203.0.113.7, 10.0.0.1, 10.0.0.2, 127.0.0.1"},
			"X-Forwarded-Host": {"hello.example.com"}, "X-Forwarded-Proto": {"http"},
		}},
	}
	for _, way := range ways {
		_, _, url := warmAs(t, way.change, way.address)
		for _, tt := range tests {
			t.Run(way.name+", "+tt.name, func(t *testing.T) {
				req := newRequest(t, way.method, url+"/a%2Fb//c?x=1;y=2&z=%zz", strings.NewReader(way.body))
				req.Host = "hello.example.com"
				maps.Copy(req.Header, events)
				maps.Copy(req.Header, tt.set)
				req.Header.Set("User-Agent", "")
				do(t, req)
				if got.Host != "hello.example.com" || got.RequestURI != "/a%2Fb//c?x=1;y=2&z=%zz" {
					t.Errorf("got %s %s, want them as they were sent", got.Host, got.RequestURI)
				}
				want := http.Header{"Sluice-Via": {"default/hello"}}
				if way.body != "" {
					want.Set("Content-Length", fmt.Sprint(len(way.body)))
				}
				maps.Copy(want, events)
				maps.Copy(want, tt.want)
				if diff := cmp.Diff(want, got.Header); diff != "" {
					t.Errorf("headers (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestTheAnswerPassesAsItCame(t *testing.T) {
	_, _, url := warm(t, newPod(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", "9")
		w.WriteHeader(http.StatusTeapot)
		if r.Method != http.MethodHead {
			_, _ = w.Write([]byte("<html>no\n"))
		}
	}))
	for method, body := range map[string]string{http.MethodGet: "<html>no\n", http.MethodHead: ""} {
		req := newRequest(t, method, url, nil)
		req.Header.Set("Accept-Encoding", "gzip")
		got := do(t, req)
		got.header.Del("Date")
		want := answer{http.StatusTeapot, http.Header{"Content-Encoding": {"gzip"}, "Content-Length": {"9"}}, body}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", method, diff)
		}
	}
}
