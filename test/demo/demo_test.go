package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var hello = types.NamespacedName{Namespace: "default", Name: "hello"}

// world is a cluster with one function, as far as the demo can see it: it wakes with the first request, has the
// replicas that its rate asks for, and sleeps some time after the last request. Time is real, but runs a hundred times
// as fast.
type world struct {
	fn   *v1alpha1.Function
	gate *httptest.Server // answers for the function
	api  *httptest.Server // serves the custom metrics

	neverScales bool
	neverSleeps bool
	failAfter   int // requests that are answered before all others fail; 0: none fails

	mu       sync.Mutex // protects following
	requests []time.Time
}

const (
	worldIdleAfter = 300 * time.Millisecond
	worldWindow    = 300 * time.Millisecond
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{fn: manifest(t)}
	w.fn.Generation = 1
	w.fn.Spec.Scale.IdleAfter = &metav1.Duration{Duration: worldIdleAfter}
	w.fn.Spec.Metrics[0].RequestRate.Target = resource.MustParse("25")
	w.gate = httptest.NewServer(http.HandlerFunc(w.answer))
	w.api = httptest.NewServer(http.HandlerFunc(w.metric))
	t.Cleanup(w.gate.Close)
	t.Cleanup(w.api.Close)
	return w
}

// manifest is the Function that `make demo` applies.
func manifest(t *testing.T) *v1alpha1.Function {
	t.Helper()
	file, err := os.ReadFile("../function/function.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(file), "\n---\n")
	var fn v1alpha1.Function
	if err := yaml.UnmarshalStrict([]byte(docs[len(docs)-1]), &fn); err != nil {
		t.Fatal(err)
	}
	return &fn
}

func (w *world) answer(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	cold := w.replicasLocked() == 0
	w.requests = append(w.requests, time.Now())
	failed := w.failAfter > 0 && len(w.requests) > w.failAfter
	w.mu.Unlock()
	if cold {
		rw.Header().Set(coldStartHeader, "7ms")
	}
	if failed {
		http.Error(rw, `{"reason":"queue full"}`, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(rw, `{"pod":"hello-1"}`)
}

func (w *world) rateLocked() float64 {
	n := 0
	for _, at := range w.requests {
		if time.Since(at) < worldWindow {
			n++
		}
	}
	return float64(n) / worldWindow.Seconds()
}

func (w *world) replicasLocked() int32 {
	if len(w.requests) == 0 {
		return 0
	}
	if !w.neverSleeps && time.Since(w.requests[len(w.requests)-1]) > worldIdleAfter {
		return 0
	}
	if w.neverScales {
		return 1
	}
	return wanted(w.fn, w.rateLocked(), rateTarget(w.fn), 0)
}

func (w *world) metric(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	rate := w.rateLocked()
	w.mu.Unlock()
	rw.Header().Set("Content-Type", "application/json")
	const base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/hello/"
	switch r.URL.Path {
	case base + "requests_per_second":
		fmt.Fprintf(rw, `{"kind":"MetricValueList","apiVersion":"custom.metrics.k8s.io/v1beta2","items":[{"value":"%dm"}]}`, int(1000*rate))
	default:
		rw.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(rw).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 404,
			Reason: metav1.StatusReasonNotFound, Message: "no sample of hello yet",
		})
	}
}

// Get stands in for the API server.
func (w *world) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.replicasLocked()
	switch o := into.(type) {
	case *apiregistrationv1.APIService:
		o.Status.Conditions = []apiregistrationv1.APIServiceCondition{
			{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, Reason: "Passed", Message: "all checks passed"},
		}
	case *v1alpha1.Function:
		w.fn.DeepCopyInto(o)
		o.Status.Phase = v1alpha1.Active
		o.Status.Gate = &v1alpha1.GateStatus{Port: 20000, ServicePort: "http", InPath: n == 0}
		if n == 0 {
			o.Status.Phase = v1alpha1.Idle
			o.Status.LastDecision = &v1alpha1.DecisionStatus{Reason: "Idle", Message: "no request for 0.3s"}
		}
		o.Status.Conditions = []metav1.Condition{
			{Type: v1alpha1.ConditionReady, Status: "True", Reason: "GateSetUp", Message: "fine", ObservedGeneration: 1},
		}
	case *appsv1.Deployment:
		if key.Namespace == "sluice-system" {
			n = 1
		}
		o.Name, o.Namespace, o.Spec.Replicas = key.Name, key.Namespace, &n
		o.Status.ReadyReplicas, o.Status.UpdatedReplicas = n, n
	case *corev1.Service:
		host, port, err := net.SplitHostPort(w.gate.Listener.Addr().String())
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		o.Spec.ClusterIP = host
		o.Spec.Ports = []corev1.ServicePort{{Name: "other", Port: 1}, {Name: "http", Port: int32(number)}}
	case *autoscalingv2.HorizontalPodAutoscaler:
		target := w.fn.Spec.Metrics[0].RequestRate.Target
		o.Spec.Metrics = []autoscalingv2.MetricSpec{{Object: &autoscalingv2.ObjectMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: "requests_per_second"},
			Target: autoscalingv2.MetricTarget{AverageValue: &target},
		}}}
	default:
		return fmt.Errorf("the demo has no business with %T", into)
	}
	return nil
}

func (w *world) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("the demo lists nothing")
}

// play runs the demo in w and returns what it printed.
func (w *world) play(t *testing.T, change func(*Options)) (string, error) {
	t.Helper()
	config := &rest.Config{Host: w.api.URL}
	metrics, err := metricsClient(config)
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		Function: hello, System: "sluice-system", Kubectl: "kubectl",
		RampFrom: 5, RampTo: 100, Ramp: 600 * time.Millisecond, Hold: 200 * time.Millisecond,
		Interval: 50 * time.Millisecond, Poll: 10 * time.Millisecond,
		SetUp: 20 * time.Second, Follow: 20 * time.Second, SleepMargin: 20 * time.Second,
	}
	if change != nil {
		change(&opts)
	}
	var out strings.Builder
	err = New(cluster{Reader: w, metrics: metrics}, terminal{w: &out}, opts).Run(t.Context())
	t.Log(out.String())
	// client-go keeps connections to the API server for the process's life; the test's ends here.
	http.DefaultClient.CloseIdleConnections()
	if c, ok := metrics.(*rest.RESTClient); ok {
		c.Client.CloseIdleConnections()
	}
	return out.String(), err
}

func TestDemo(t *testing.T) {
	out, err := newWorld(t).play(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	inOrder := []string{
		`Sluice demo: function default/hello`,
		`\[1/10\] metrics API: .*\n.*Available=True`,
		`Deployment sluice-system/sluice-activator: 1 of 1 pods are up to date, 1 ready`,
		`Function default/hello: Ready=True \(GateSetUp: fine\)`,
		`phase Idle, replicas 0, gate in the path; last decision Idle: no request for 0.3s`,
		`GET http://127.0.0.1:\d+/ \(Service sluice-hello\)\n.*200 OK\n.*{"pod":"hello-1"}`,
		`held by the gate: 7ms \(header Sluice-Cold-Start\), end to end: `,
		`the load rises from 5 to 100 requests per second in 0.6s`,
		`TIME OFFERED/S`,
		`requests_in_flight is unknown: no sample of hello yet`,
		`replicas, \d ready, where requests_per_second .* at a target of 25 per replica asks for \d \(at most 5\)`,
		`sent, \d+ answered, none failed`,
		`phase Active, replicas \d, gate out of the path`,
		`phase Idle, replicas 0, gate in the path`,
		`Summary`,
		`requests +\d+ sent, \d+ answered, 0 failed`,
		`replicas +[45] at the peak`,
		`kubectl -n default get fn hello`,
		`kubectl get --raw /apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/hello/requests_per_second`,
		`make demo-down`,
	}
	rest := out
	for _, re := range inOrder {
		at := regexp.MustCompile(re).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("output lacks %q, or has it too early", re)
		}
		rest = rest[at[1]:]
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colours where there is no terminal")
	}
}

func TestDemoFails(t *testing.T) {
	tests := []struct {
		name   string
		world  func(*world)
		change func(*Options)
		stage  string
		want   string // a regular expression
	}{
		{
			name: "a failed request", world: func(w *world) { w.failAfter = 10 }, stage: "ramp",
			want: `^demo: stage "ramp": \d+ of \d+ requests failed; first: request 9, .* status 503: {"reason":"queue full"}$`,
		},
		{
			name: "no replicas", world: func(w *world) { w.neverScales = true }, stage: "replicas follow",
			change: func(o *Options) { o.Follow = time.Second },
			want: `^demo: stage "replicas follow" was not observed within 1s: last seen: 1 replicas, 1 ready, ` +
				`where requests_per_second .* asks for [45] \(at most 5\)$`,
		},
		{
			name: "no sleep", world: func(w *world) { w.neverSleeps = true }, stage: "sleep",
			change: func(o *Options) { o.SleepMargin = 200 * time.Millisecond },
			want:   `^demo: stage "sleep" was not observed within 0.5s: last seen: phase Active, replicas 1, gate out of the path$`,
		},
		{
			name: "nothing held", world: func(w *world) { w.neverSleeps, w.requests = true, []time.Time{time.Now()} }, stage: "asleep",
			change: func(o *Options) { o.SetUp = 100 * time.Millisecond },
			want:   `^demo: stage "asleep" was not observed within 0.1s: last seen: phase Active, replicas 1, `,
		},
		{
			name: "a function of mode Direct", world: func(w *world) { w.fn.Spec.Traffic.Mode = v1alpha1.Direct }, stage: "function ready",
			want: `^demo: stage "function ready": function default/hello is not of mode Proxied, .*; set spec.traffic.mode$`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.world(w)
			out, err := w.play(t, tt.change)
			var failed *StageError
			if !errors.As(err, &failed) || failed.Stage != tt.stage {
				t.Fatalf("error = %v, want one of stage %q", err, tt.stage)
			}
			if !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("error = %v\nwant    %s", err, tt.want)
			}
			if strings.Contains(out, "Summary") || !strings.Contains(out, "make demo-down") {
				t.Error("a failure is to end without a summary, and with the commands that help to find out more")
			}
		})
	}
}

// What `make demo` applies is what the demo's stages and deadlines are made for.
func TestManifestIsPresentable(t *testing.T) {
	fn := manifest(t)
	if err := presentable(fn); err != nil {
		t.Error(err)
	}
	if fn.Key() != hello {
		t.Errorf("function is %s, want %s", fn.Key(), hello)
	}
	_, opts, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	top := wanted(fn, opts.RampTo, rateTarget(fn), 1)
	if top < 2 || top >= fn.Spec.Scale.MaxReplicas {
		t.Errorf("the load asks for %d replicas; to show that they follow it must be more than 1 and less than the maximum of %d",
			top, fn.Spec.Scale.MaxReplicas)
	}
	if fn.IdleAfter() != 10*time.Second || fn.Window() != 30*time.Second {
		t.Errorf("idleAfter %s, window %s; want 10s and 30s", fn.IdleAfter(), fn.Window())
	}
}

func TestWanted(t *testing.T) {
	fn := manifest(t) // at most 5
	tests := []struct {
		name    string
		rate    float64
		current int32
		want    int32
	}{
		{"nothing", 0, 0, 1},
		{"one", 5, 1, 1},
		{"rounded up", 151, 1, 4},
		{"exactly", 200, 2, 4},
		{"a little more is tolerated", 219, 4, 4},
		{"but not from another number", 201, 2, 5},
		{"a little less is tolerated", 181, 4, 4},
		{"clamped", 1000, 4, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := wanted(fn, tt.rate, 50, tt.current); got != tt.want {
				t.Errorf("wanted = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestDeploymentReady(t *testing.T) {
	one, zero := int32(1), int32(0)
	deployment := func(spec *int32, generation, observed int64, updated, ready int32) *appsv1.Deployment {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: generation}}
		d.Spec.Replicas = spec
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: observed, UpdatedReplicas: updated, ReadyReplicas: ready}
		return d
	}
	tests := []struct {
		name string
		d    *appsv1.Deployment
		want bool
	}{
		{"ready", deployment(&one, 2, 2, 1, 1), true},
		{"default replicas", deployment(nil, 1, 1, 1, 1), true},
		{"not seen by its controller", deployment(&one, 2, 1, 1, 1), false},
		{"only the old pod is ready", deployment(&one, 2, 2, 0, 1), false},
		{"no pod", deployment(&one, 1, 1, 1, 0), false},
		{"scaled to zero by hand", deployment(&zero, 1, 1, 0, 0), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := deploymentReady(tt.d); got != tt.want {
				t.Errorf("ready = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	if _, _, err := parse([]string{"--allow", "10.0.0.0"}); err == nil || !strings.Contains(err.Error(), "--allow") {
		t.Errorf("error = %v, want one that names --allow", err)
	}
	_, opts, err := parse([]string{"--function", "f", "--namespace", "n", "--allow", "10.0.0.0/8, fd00::/8"})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintln(opts.Function, opts.Allow, opts.RampFrom, opts.RampTo, opts.Ramp, opts.Hold, opts.Kubectl)
	if diff := cmp.Diff("n/f [10.0.0.0/8 fd00::/8] 5 200 1m0s 20s .cluster/bin/kubectl\n", got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}
