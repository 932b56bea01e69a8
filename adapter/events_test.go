package adapter

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/providers"
)

var shop = types.NamespacedName{Namespace: "default", Name: "shop"}

// shopOnly is a Reader that knows one function, with its UID.
type shopOnly struct{ fakeReader }

func (shopOnly) Info(name types.NamespacedName) (providers.Info, error) {
	if name != shop {
		return providers.Info{}, providers.ErrNoFunction
	}
	return providers.Info{Name: name, UID: "7f1c"}, nil
}

// writer writes to the API server at host.
func writer(t *testing.T, host, instance string) *Events {
	t.Helper()
	e, err := NewEvents(&rest.Config{Host: host}, shopOnly{}, instance, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// counted are the outcomes.
func (e *Events) counted() map[string]float64 {
	all := map[string]float64{}
	for _, o := range []string{"written", "known", "dropped", "error"} {
		if n := testutil.ToFloat64(e.outcomes.WithLabelValues(o)); n > 0 {
			all[o] = n
		}
	}
	return all
}

// runs lets the writer write until the test ends.
func (e *Events) runs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
}

// eventuallyCounted waits until so much was.
func (e *Events) eventuallyCounted(t *testing.T, want map[string]float64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !maps.Equal(e.counted(), want); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("outcomes %v, want %v", e.counted(), want)
		}
	}
}

// What two replicas notice is one Event, and another occurrence is another one.
func TestEvents(t *testing.T) {
	api := newAPIServer(t)
	at := time.Unix(1000, 0)
	notice := providers.Notice{At: at, Reason: "TopicRecreated", Key: "orders\nA", Text: "topic \"orders\"\nwas deleted"}
	first, second := writer(t, api.URL, "one"), writer(t, api.URL, "two")
	first.runs(t)
	second.runs(t)
	first.Notify(shop, notice)
	first.eventuallyCounted(t, map[string]float64{"written": 1})
	later := notice
	later.At = at.Add(time.Second)
	second.Notify(shop, later)
	second.eventuallyCounted(t, map[string]float64{"known": 1})
	later.Key, later.Text = "orders\nB", strings.Repeat("é", 1000)
	second.Notify(shop, later)
	second.Notify(types.NamespacedName{Namespace: "default", Name: "deleted"}, later)
	second.eventuallyCounted(t, map[string]float64{"known": 1, "written": 1})

	var got []eventsv1.Event
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(api.objects)) {
		if strings.HasPrefix(path, "/apis/events.k8s.io/v1/namespaces/default/events/shop.") {
			var e eventsv1.Event
			if err := json.Unmarshal(api.objects[path], &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
	}
	slices.SortFunc(got, func(a, b eventsv1.Event) int { return a.EventTime.Compare(b.EventTime.Time) })
	regarding := corev1.ObjectReference{APIVersion: "sluice.dev/v1alpha1", Kind: "Function", Namespace: "default", Name: "shop", UID: "7f1c"}
	want := []eventsv1.Event{
		{
			EventTime: metav1.NewMicroTime(at), Regarding: regarding, Type: "Warning", Reason: "TopicRecreated", Action: "Measure",
			Note: `topic "orders" was deleted`, ReportingController: "sluice-adapter", ReportingInstance: "one",
		},
		{
			EventTime: metav1.NewMicroTime(later.At), Regarding: regarding, Type: "Warning", Reason: "TopicRecreated", Action: "Measure",
			Note: strings.Repeat("é", 500) + "...", ReportingController: "sluice-adapter", ReportingInstance: "two",
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreTypes(metav1.TypeMeta{}, metav1.ObjectMeta{}), cmp.Comparer(func(a, b metav1.MicroTime) bool { return a.Equal(&b) })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// A topic that is made anew all the time does not flood, and takes nothing from other functions.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := writer(t, "http://127.0.0.1:1", "one") // where nobody is asked: it does not run
		flap := func(n int) {
			for i := range n {
				e.Notify(shop, providers.Notice{Reason: "TopicRecreated", Key: fmt.Sprint(i)})
			}
		}
		flap(50)
		if n := len(e.waiting); n != mostOfAFunction {
			t.Errorf("%d wait, want %d", n, mostOfAFunction)
		}
		for i := range 2 * mostWaiting {
			e.Notify(types.NamespacedName{Namespace: "default", Name: fmt.Sprint(i)}, providers.Notice{})
		}
		if want := float64(50 + 2*mostWaiting - mostWaiting); e.counted()["dropped"] != want {
			t.Errorf("%v dropped, want %v", e.counted(), want)
		}
		<-time.After(perFunction)
		for range mostWaiting {
			<-e.waiting
		}
		flap(50)
		if n := len(e.waiting); n != mostOfAFunction || len(e.recent) != 1 {
			t.Errorf("%d wait and %d functions are remembered, want %d and 1", n, len(e.recent), mostOfAFunction)
		}
	})
}

// What the API server does not take now is tried again, and what it never takes is not.
func TestEventsThatFail(t *testing.T) {
	for _, tt := range []struct {
		name    string
		code    int
		reason  metav1.StatusReason
		fails   int
		asked   int
		outcome string
	}{
		{"away for a moment", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, 1, 2, "written"},
		{"away", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, 100, attempts, "error"},
		{"forbidden", http.StatusForbidden, metav1.StatusReasonForbidden, 100, 1, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if asked++; asked <= tt.fails {
					w.WriteHeader(tt.code)
					_ = json.NewEncoder(w).Encode(metav1.Status{
						TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: tt.reason, Code: int32(tt.code),
					})
					return
				}
				w.WriteHeader(http.StatusCreated)
				_ = json.NewEncoder(w).Encode(eventsv1.Event{TypeMeta: metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"}})
			}))
			defer api.Close()
			e := writer(t, api.URL, "one")
			e.runs(t)
			e.Notify(shop, providers.Notice{Reason: "TopicRecreated"})
			e.eventuallyCounted(t, map[string]float64{tt.outcome: 1})
			if api.Close(); asked != tt.asked {
				t.Errorf("asked %d times, want %d", asked, tt.asked)
			}
		})
	}
}
