package activator

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

func TestScaleClient(t *testing.T) {
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":"the server's words","code":%d}`
	tests := []struct {
		name   string
		code   int
		body   string
		woken  bool
		errHas string
	}{
		{"woken", 200, `{"kind":"Scale","apiVersion":"autoscaling/v1","spec":{"replicas":3}}`, true, ""},
		{"not at zero", 422, fmt.Sprintf(status, "Invalid", 422), false, ""},
		{"refused", 403, fmt.Sprintf(status, "Forbidden", 403), false, "the server's words"},
		{"no workload", 404, fmt.Sprintf(status, "NotFound", 404), false, "patch scale of deployment default/hello"},
		{"server error", 500, "oops", false, "patch scale of deployment default/hello"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				body, _ := io.ReadAll(r.Body)
				const want = `[{"op":"test","path":"/spec","value":{}},{"op":"add","path":"/spec/replicas","value":3}]`
				if r.Method != http.MethodPatch || r.URL.Path != "/apis/apps/v1/namespaces/default/deployments/hello/scale" ||
					r.Header.Get("Content-Type") != "application/json-patch+json" || string(body) != want {
					t.Errorf("got %s %s %s %s, want the one-write JSON patch of the scale", r.Method, r.URL.Path, r.Header.Get("Content-Type"), body)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.code)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			c, err := newScaleClient(&rest.Config{Host: srv.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			woken, err := c.Wake(t.Context(), types.NamespacedName{Namespace: "default", Name: "hello"}, 3)
			if woken != tt.woken || (err != nil) != (tt.errHas != "") || err != nil && !strings.Contains(err.Error(), tt.errHas) {
				t.Errorf("got %t, %v, want %t and an error with %q", woken, err, tt.woken, tt.errHas)
			}
			if calls != 1 {
				t.Errorf("calls: got %d, want 1", calls)
			}
		})
	}
}

func TestScaleClientEndsWithItsContext(t *testing.T) {
	block := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer srv.Close()
	defer close(block)
	c, err := newScaleClient(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Wake(ctx, types.NamespacedName{Namespace: "default", Name: "hello"}, 1); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("got %v, want an error that says there was no answer in time", err)
	}
}
