package activator

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// What a Function has answered in its stead, while its pod is full: here, and where the request was handed on to.
func TestAnswersInsteadWhilePodsAreFull(t *testing.T) {
	for _, handed := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			change func(*v1alpha1.Function)
			path   string
			status int
			reason string
			want   map[outcome]uint64 // beside the one that is inside
		}{
			{
				"the placeholder is for a function that wakes", placeholder(v1alpha1.Placeholder{Body: "soon"}), "/",
				http.StatusGatewayTimeout, "HoldTimeout",
				map[outcome]uint64{outcomeHoldTimeout: 1},
			},
			{
				"a static path does not wait", static(v1alpha1.StaticAnswer{Path: "/healthz", Body: "ok"}), "/healthz",
				http.StatusOK, "Static", nil,
			},
			{
				"the fallback has what found no place", fallsBackTo("sorry", ""), "/",
				http.StatusServiceUnavailable, "HoldTimeout",
				map[outcome]uint64{outcomeFallback: 1},
			},
		} {
			t.Run(fmt.Sprint(tt.name, ", handed on ", handed), func(t *testing.T) {
				inside, next := make(chan struct{}, 1), make(chan struct{})
				obj := newTestFunction("hello", limited(1), timeout(300*time.Millisecond), tt.change)
				from, to, gate := handsOn(t, obj, newPod(t, func(w http.ResponseWriter, r *http.Request) {
					inside <- struct{}{}
					<-next
					echo(w, r)
				}))
				url := "http://" + gate
				if !handed {
					from = to
					url = to.gateURL(to.function())
				}
				for _, r := range []*replica{from, to} {
					r.pods("sorry", newPod(t, sorry))
				}
				var clients sync.WaitGroup
				clients.Go(func() { get(t, url) })
				<-inside
				got := get(t, url+tt.path)
				if got.status != tt.status || got.header.Get(headerReason) != tt.reason {
					t.Errorf("got %d %v %s, want %d %s", got.status, got.header, got.body, tt.status, tt.reason)
				}
				close(next)
				clients.Wait()
				want := map[outcome]uint64{outcomeOK: 1}
				maps.Copy(want, tt.want)
				wantFinished(t, from.function(), want)
				if handed {
					wantFinished(t, to.function(), nil)
				}
			})
		}
	}
}

// The parts of a trace hang together across activators.
func TestTraceOfARequestThatIsHandedOn(t *testing.T) {
	parents := make(chan string, 1)
	from, to, gate := handsOn(t, newTestFunction("hello", limited(1)), newPod(t, func(_ http.ResponseWriter, r *http.Request) {
		parents <- r.Header.Get("Traceparent")
	}))
	rc := newReceiver(t)
	ended := []func() int{}
	for _, r := range []*replica{from, to} {
		done := rc.trace(r.plane, 1)
		ended = append(ended, func() int { return len(done()) })
	}
	get(t, "http://"+gate)
	eventually(t, "all is over", func() bool { return from.proxy.active.Load()+to.proxy.active.Load() == 0 })
	for _, end := range ended {
		end()
	}
	var got []string
	for _, s := range tellSpans(t, rc.spans) {
		got = append(got, s.Parent+" > "+s.Name)
	}
	want := []string{" > GET default/hello", "GET default/hello > forward", "forward > GET default/hello", "GET default/hello > forward"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("got %q, want %q", got, want)
	}
	id := rc.spans[0].GetTraceId()
	if parent := <-parents; !strings.Contains(parent, fmt.Sprintf("%x", id)) {
		t.Errorf("the pod was told the parent %q, want one of trace %x", parent, id)
	}
}
