package scaler

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// fakeAPI answers as the custom metrics API does.
type fakeAPI struct {
	mu sync.Mutex // protects following
	// values by "namespace/name/metric"; one that is absent is unknown.
	values map[string]string
	at     time.Time
	// down fails everything.
	down bool
	// asked are the paths, without their common beginning.
	asked []string
}

const apiPrefix = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/"

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	path, ok := strings.CutPrefix(r.URL.Path, apiPrefix)
	f.asked = append(f.asked, path)
	parts := strings.Split(path, "/") // namespace, resource, name, metric
	if !ok || len(parts) != 4 || parts[1] != "functions.sluice.dev" || r.Method != http.MethodGet {
		f.fail(w, http.StatusNotFound, "no such path "+r.URL.Path)
		return
	}
	if f.down {
		f.fail(w, http.StatusServiceUnavailable, "no adapter is ready")
		return
	}
	list := v1beta2.MetricValueList{TypeMeta: metav1.TypeMeta{APIVersion: "custom.metrics.k8s.io/v1beta2", Kind: "MetricValueList"}}
	for key, value := range f.values {
		k := strings.Split(key, "/")
		if k[0] != parts[0] || k[2] != parts[3] || (parts[2] != "*" && parts[2] != k[1]) {
			continue
		}
		list.Items = append(list.Items, v1beta2.MetricValue{
			DescribedObject: corev1.ObjectReference{Kind: "Function", APIVersion: "sluice.dev/v1alpha1", Namespace: k[0], Name: k[1]},
			Metric:          v1beta2.MetricIdentifier{Name: k[2]},
			Timestamp:       metav1.NewTime(f.at),
			Value:           resource.MustParse(value),
		})
	}
	if len(list.Items) == 0 && parts[2] != "*" {
		f.fail(w, http.StatusNotFound, parts[3]+" is unknown: pod hello-1 answered 500")
		return
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (f *fakeAPI) fail(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Message: message,
	})
}

func (f *fakeAPI) set(change func(*fakeAPI)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeAPI) takeAsked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

func newTestPoller(t *testing.T, api http.Handler) (p *poller, rung func() []string) {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client, err := newMetricsAPI(&rest.Config{Host: server.URL}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.client.(*rest.RESTClient).Client.CloseIdleConnections)
	var names []string
	p = newPoller(client, time.Second, func(fn types.NamespacedName) { names = append(names, fn.Name) }, newTelemetry())
	return p, func() []string {
		all := names
		names = nil
		return all
	}
}

func proxiedInterest() interest {
	return interest{
		Metrics:  requestMetrics,
		Required: []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds},
		Idle:     true, IdleAfter: time.Minute, Reconciled: time.Now(),
	}
}

// One list call per namespace and metric, for namespaces with a function that is awake, and none at all without.
func TestPollReadsOnlyWhatIsAwake(t *testing.T) {
	api := &fakeAPI{at: time.Now(), values: map[string]string{
		"default/hello/requests_per_second": "1500m", "default/hello/idle_seconds": "0",
		"default/asleep/idle_seconds": "9000",
	}}
	p, _ := newTestPoller(t, api)
	p.poll(t.Context())
	if asked := api.takeAsked(); asked != nil {
		t.Errorf("with nothing tracked the API was asked for %v", asked)
	}
	p.track(hello, proxiedInterest())
	p.track(types.NamespacedName{Namespace: "default", Name: "hello2"}, interest{Reconciled: time.Now()})
	p.poll(t.Context())
	want := []string{
		"default/functions.sluice.dev/*/idle_seconds", "default/functions.sluice.dev/*/requests_in_flight",
		"default/functions.sluice.dev/*/requests_per_second",
	}
	if diff := cmp.Diff(want, api.takeAsked(), cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	got := p.samples(hello)
	if s := got[v1alpha1.RequestsPerSecond]; s.Value != 1.5 || s.Unknown != "" || s.Polled.IsZero() || s.Time.Unix() != api.at.Unix() {
		t.Errorf("requests_per_second: got %+v, want 1.5 with its time", s)
	}
	if s := got[v1alpha1.RequestsInFlight]; s.Unknown == "" {
		t.Errorf("requests_in_flight is not listed, but known: %+v", s)
	}
	if got := p.samples(types.NamespacedName{Namespace: "default", Name: "asleep"}); got != nil {
		t.Errorf("a function that is not tracked has samples: %v", got)
	}
	p.forget(hello)
	if got := p.samples(hello); got != nil {
		t.Errorf("a forgotten function has samples: %v", got)
	}
}

// What the API does not list is unknown at once, with its own words; asked for by name once, not at every poll.
func TestPollUnknown(t *testing.T) {
	api := &fakeAPI{at: time.Now(), values: map[string]string{
		"default/hello/requests_per_second": "2", "default/hello/idle_seconds": "70",
	}}
	p, _ := newTestPoller(t, api)
	p.track(hello, proxiedInterest())
	p.poll(t.Context())
	if s := p.samples(hello)[v1alpha1.RequestsPerSecond]; s.Unknown != "" {
		t.Fatalf("known at first: got %+v", s)
	}
	api.takeAsked()

	api.set(func(f *fakeAPI) { delete(f.values, "default/hello/requests_per_second") })
	for range 3 {
		p.poll(t.Context())
	}
	s := p.samples(hello)[v1alpha1.RequestsPerSecond]
	if want := "requests_per_second is unknown: pod hello-1 answered 500"; s.Unknown != want || s.Value != 2 {
		t.Errorf("got %+v, want unknown in the API's words %q with the last value kept", s, want)
	}
	byName := 0
	for _, path := range api.takeAsked() {
		if strings.Contains(path, "/hello/") {
			byName++
		}
	}
	if byName != 1 {
		t.Errorf("asked %d times by name, want once per %s", byName, explainInterval)
	}

	api.set(func(f *fakeAPI) { f.values["default/hello/requests_per_second"] = "3" })
	p.poll(t.Context())
	if s := p.samples(hello)[v1alpha1.RequestsPerSecond]; s.Unknown != "" || s.Value != 3 {
		t.Errorf("back again: got %+v, want 3", s)
	}
}

// Why each metric is unknown stands in the condition in the API's own words.
func TestWordsOfTheAPIReachTheCondition(t *testing.T) {
	api := &fakeAPI{at: time.Now()}
	p, _ := newTestPoller(t, api)
	fn := newFunction("hello")
	p.track(hello, interest{Metrics: wanted(fn), Required: required(fn), Reconciled: time.Now()})
	p.poll(t.Context())
	status, reason, message := metricsAvailable(time.Now(), fn, p.samples(hello), time.Now().Add(-time.Minute))
	want := "requests_per_second unknown: requests_per_second is unknown: pod hello-1 answered 500; " +
		"idle_seconds unknown: idle_seconds is unknown: pod hello-1 answered 500; nothing is scaled down or put to sleep meanwhile"
	if status != metav1.ConditionFalse || reason != "MetricUnknown" || message != want {
		t.Errorf("got %s %s %q, want False MetricUnknown %q", status, reason, message, want)
	}
}

// A read that fails says nothing about the value: the last one stays known until it is too old, as does what the API
// said of it. Without any, the error's own words say why it is unknown.
func TestPollFails(t *testing.T) {
	api := &fakeAPI{at: time.Now(), values: map[string]string{"default/hello/idle_seconds": "70"}, down: true}
	p, _ := newTestPoller(t, api)
	p.track(hello, proxiedInterest())
	p.poll(t.Context())
	in := read(time.Now(), v1alpha1.IdleSeconds, p.samples(hello))
	if want := "no adapter is ready"; in.Unknown != want {
		t.Errorf("before the first value: unknown %q, want %q", in.Unknown, want)
	}

	api.set(func(f *fakeAPI) { f.down = false })
	p.poll(t.Context())
	before := p.samples(hello)[v1alpha1.IdleSeconds]
	if before.ReadError != "" {
		t.Errorf("after a read: %+v, want its failures forgotten", before)
	}
	api.set(func(f *fakeAPI) { f.down = true })
	p.poll(t.Context())
	after := p.samples(hello)
	if s := after[v1alpha1.IdleSeconds]; s.Value != 70 || !s.Time.Equal(before.Time) || !s.Polled.Equal(before.Polled) {
		t.Errorf("got %+v, want the value, its time and its poll as before: %+v", s, before)
	}
	if in := read(time.Now(), v1alpha1.IdleSeconds, after); in.Unknown != "" {
		t.Errorf("one failed read made the value unknown: %s", in)
	}
	want := "the last value is more than 10s old; the last read failed: no adapter is ready"
	if in := read(before.Time.Add(maxAge+time.Second), v1alpha1.IdleSeconds, after); in.Unknown != want {
		t.Errorf("too old: unknown %q, want %q", in.Unknown, want)
	}
	rate := read(time.Now(), v1alpha1.RequestsPerSecond, after).Unknown
	if !strings.HasPrefix(rate, "requests_per_second is unknown: pod hello-1 answered 500; the last read failed") {
		t.Errorf("what the API called unknown became %q", rate)
	}
	if got := testutil.ToFloat64(p.metrics.pollFailures.WithLabelValues(v1alpha1.IdleSeconds)); got != 2 {
		t.Errorf("%v failures counted, want 2", got)
	}
}

// An API that never answers costs one poll its time, no more.
func TestPollSurvivesAnAPIThatHangs(t *testing.T) {
	release := make(chan struct{})
	p, _ := newTestPoller(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) })
	p.api.timeout = 50 * time.Millisecond
	p.track(hello, proxiedInterest())
	start := time.Now()
	p.poll(t.Context())
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the poll took %s, want about 50ms", took)
	}
	if in := read(time.Now(), v1alpha1.IdleSeconds, p.samples(hello)); !strings.Contains(in.Unknown, "deadline") {
		t.Errorf("got %s, want unknown in the error's words", in)
	}
}

func TestPollRings(t *testing.T) {
	tests := []struct {
		name   string
		idle   string // empty for unknown
		change func(*interest)
		want   []string
	}{
		{"not while it is in use", "3", nil, nil},
		{"once idle_seconds reaches idleAfter", "60", nil, []string{"hello"}},
		{"not when nobody waits for that", "60", func(i *interest) { i.Idle = false }, nil},
		{"not while a metric is unknown", "", nil, nil},
		{"always while it is going to sleep", "", func(i *interest) { i.Always = true }, []string{"hello"}},
		{"when unknown becomes known", "3", func(i *interest) { i.Unknown = true }, []string{"hello"}},
		{"when the status may be due", "", func(i *interest) { i.Reconciled = time.Now().Add(-statusInterval) }, []string{"hello"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			api := &fakeAPI{at: time.Now(), values: map[string]string{"default/hello/requests_per_second": "0"}}
			if tt.idle != "" {
				api.values["default/hello/idle_seconds"] = tt.idle
			}
			p, rung := newTestPoller(t, api)
			i := proxiedInterest()
			if tt.change != nil {
				tt.change(&i)
			}
			p.track(hello, i)
			p.poll(t.Context())
			if diff := cmp.Diff(tt.want, rung()); diff != "" {
				t.Errorf("rung for (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPollerHealthy(t *testing.T) {
	p, _ := newTestPoller(t, &fakeAPI{})
	if err := p.healthy(); err != nil {
		t.Errorf("a standby's poller is not started and healthy: %v", err)
	}
	p.started, p.ticked = time.Now().Add(-time.Hour), time.Now()
	if err := p.healthy(); err != nil {
		t.Errorf("ticking: %v", err)
	}
	p.ticked = time.Now().Add(-2 * time.Minute)
	if err := p.healthy(); err == nil {
		t.Error("a poller that stopped ticking says that it is healthy")
	}
}
