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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func TestScaleClient(t *testing.T) {
	const status = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":"the server's words","code":%d}`
	const scale = `{"kind":"Scale","apiVersion":"autoscaling/v1","spec":{"replicas":3}}`
	set := &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}
	tests := []struct {
		name   string
		ref    *v1alpha1.WorkloadRef
		path   string
		code   int
		body   string
		woken  bool
		errHas string
	}{
		{"woken", nil, "deployments/hello", 200, scale, true, ""},
		{"not at zero", nil, "deployments/hello", 422, fmt.Sprintf(status, "Invalid", 422), false, ""},
		{"refused", nil, "deployments/hello", 403, fmt.Sprintf(status, "Forbidden", 403), false, "the server's words"},
		{"no workload", nil, "deployments/hello", 404, fmt.Sprintf(status, "NotFound", 404), false, "patch scale of Deployment default/hello"},
		{"server error", nil, "deployments/hello", 500, "oops", false, "patch scale of Deployment default/hello"},
		{"a StatefulSet", set, "statefulsets/db", 200, scale, true, ""},
		{"no StatefulSet", set, "statefulsets/db", 404, fmt.Sprintf(status, "NotFound", 404), false, "patch scale of StatefulSet default/db"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				body, _ := io.ReadAll(r.Body)
				const want = `[{"op":"test","path":"/spec","value":{}},{"op":"add","path":"/spec/replicas","value":3}]`
				if r.Method != http.MethodPatch || r.URL.Path != "/apis/apps/v1/namespaces/default/"+tt.path+"/scale" ||
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
			fn := &v1alpha1.Function{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}}
			fn.Spec.WorkloadRef = tt.ref
			woken, err := c.Wake(t.Context(), workloadOf(fn), 3)
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
	if _, err := c.Wake(ctx, workloadOf(&v1alpha1.Function{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}}), 1); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("got %v, want an error that says there was no answer in time", err)
	}
}
