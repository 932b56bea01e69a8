package scaler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// onQueue scales on what waits in a queue, 20 per replica, beside what the Function scales on already.
func onQueue(fn *v1alpha1.Function) {
	fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{
		Prometheus: &v1alpha1.PrometheusMetric{Name: "queue", Target: resource.MustParse("20")},
	})
}

// onQueueAlone is a Function without traffic.
func onQueueAlone(fn *v1alpha1.Function) {
	fn.Spec.Traffic, fn.Spec.Metrics = nil, nil
	onQueue(fn)
}

// queueWorld is a function without traffic, and its Deployment.
func queueWorld(replicas int32) []client.Object {
	d := newDeployment("hello", replicas)
	d.Status.ReadyReplicas = replicas
	return []client.Object{newFunction("hello", onQueueAlone), d}
}

// pods tells the function's Deployment how many of its pods are ready.
func (s *story) pods(name string, ready int32) {
	s.Helper()
	change(s, name, func(d *appsv1.Deployment) { d.Status.ReadyReplicas = ready })
}

// quiet lets the queue be empty for a time, and polls and looks once a second.
func (s *story) quiet(name string, d time.Duration) {
	s.Helper()
	for range d / time.Second {
		s.pass(time.Second)
		s.poll(name, "queue", 0)
		s.reconcile(name)
	}
}

func TestQueueAlone(t *testing.T) {
	inStory(t, queueWorld(2), func(s *story) {
		s.reconcile("hello")
		hpa := get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-hello")
		want := []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ObjectMetricSourceType,
			Object: &autoscalingv2.ObjectMetricSource{
				DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "sluice.dev/v1alpha1", Kind: "Function", Name: "hello"},
				Metric:          autoscalingv2.MetricIdentifier{Name: "queue"},
				Target:          autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: new(resource.MustParse("20"))},
			},
		}}
		if diff := cmp.Diff(want, hpa.Spec.Metrics); diff != "" || *hpa.Spec.MinReplicas != 1 {
			s.Errorf("minReplicas %d, metrics (-want +got):\n%s", *hpa.Spec.MinReplicas, diff)
		}
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionUnknown, "Waiting")
		s.poll("hello", "queue", 35)
		s.reconcile("hello")
		s.wantCondition("hello", "MetricsAvailable", metav1.ConditionTrue, "MetricsKnown")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionTrue, "Scaling", "queue")
		fn := s.function("hello")
		if m := fn.Status.Metrics; len(m) != 1 || m[0].Name != "queue" || m[0].Value.String() != "35" || m[0].Target.String() != "20" {
			s.Errorf("metrics: got %+v, want queue 35 of 20", m)
		}
		if len(fn.Finalizers) != 1 || fn.Status.Gate != nil {
			s.Errorf("finalizers %v, gate %+v, want one and no gate", fn.Finalizers, fn.Status.Gate)
		}
		s.writes = nil

		// Asleep after idleAfter of quiet, with no gate and no proof.
		s.quiet("hello", 10*time.Second)
		s.wrote()
		s.quiet("hello", time.Second)
		s.wrote("scale hello 2 -> 0")
		s.pods("hello", 0)
		if diff := cmp.Diff([]string{"Sleeping"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}

		// Idle is free, whatever is polled.
		s.writes = nil
		s.quiet("hello", time.Minute)
		s.pass(time.Minute) // the last value is too old by now
		s.reconcile("hello")
		s.wroteNothing()

		// Something to do.
		s.poll("hello", "queue", 45)
		s.reconcile("hello")
		s.wrote("scale hello 0 -> 3")
		st := s.function("hello").Status
		if st.Phase != v1alpha1.Waking || st.Replicas != 3 || st.LastDecision.Reason != "Waking" || st.LastDecision.To != 3 {
			s.Errorf("status waking: %+v, last decision %+v", st, st.LastDecision)
		}
		s.pods("hello", 3)
		s.reconcile("hello")
		s.wrote()
		if diff := cmp.Diff([]string{"Waking", "Woken"}, s.newEvents()); diff != "" {
			s.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

// A restarted scaler knows nothing: it neither wakes nor puts to sleep before it has read, and counts idleAfter anew.
func TestQueueAcrossRestarts(t *testing.T) {
	t.Run("awake", func(t *testing.T) {
		inStory(t, queueWorld(1), func(s *story) {
			s.reconcile("hello")
			s.quiet("hello", 9*time.Second)
			s.restart()
			s.reconcile("hello")
			s.quiet("hello", 10*time.Second)
			if got := s.replicas("hello"); got != 1 {
				s.Errorf("%d replicas, want 1: nobody knows of the time before", got)
			}
			s.quiet("hello", time.Second)
			if got := s.replicas("hello"); got != 0 {
				s.Errorf("%d replicas, want 0", got)
			}
		})
	})
	t.Run("asleep", func(t *testing.T) {
		inStory(t, queueWorld(1), func(s *story) {
			s.reconcile("hello")
			s.quiet("hello", 11*time.Second)
			s.writes = nil
			s.restart()
			s.reconcile("hello")
			s.wroteNothing()
			s.poll("hello", "queue", 1)
			s.reconcile("hello")
			s.wrote("scale hello 0 -> 1")
		})
	})
}

// A sleeping function without traffic that is deleted is woken; there is nothing to wait for after that.
func TestQueueDeletedAsleep(t *testing.T) {
	inStory(t, queueWorld(1), func(s *story) {
		s.reconcile("hello")
		s.quiet("hello", 11*time.Second)
		s.pods("hello", 0)
		s.writes = nil
		if err := s.Delete(s.Context(), s.function("hello")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		s.reconcile("hello")
		s.wrote("scale hello 0 -> 1", "delete *v2.HorizontalPodAutoscaler sluice-hello")
		s.wantGone("hello")
	})
}

// A zero that somebody else wrote, by hand or by a HorizontalPodAutoscaler, stays: no request can get lost by it.
func TestQueueDeletedAtZero(t *testing.T) {
	inStory(t, queueWorld(1), func(s *story) {
		s.reconcile("hello")
		s.scale("hello", 0)
		s.pods("hello", 0)
		s.reconcile("hello")
		s.writes = nil
		if err := s.Delete(s.Context(), s.function("hello")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("hello")
		s.wrote("delete *v2.HorizontalPodAutoscaler sluice-hello")
		s.wantGone("hello")
	})
}

// Nobody can send a request to a function without traffic, so that is no remedy.
func TestZeroReplicasWithoutTraffic(t *testing.T) {
	fn := newFunction("hello", onQueueAlone, func(fn *v1alpha1.Function) { fn.Spec.Scale.MinReplicas = 1 })
	inStory(t, []client.Object{fn, newDeployment("hello", 0)}, func(s *story) {
		s.reconcile("hello")
		s.wantCondition("hello", "ScalingActive", metav1.ConditionFalse, "ZeroReplicas", "scale it to 1")
		if got := s.condition("hello", "ScalingActive").Message; strings.Contains(got, "request") {
			t.Errorf("the remedy is %q", got)
		}
	})
}

// What sleeps by the queue, and may not any more, is woken, and needs no finalizer then.
func TestQueueRemoved(t *testing.T) {
	inStory(t, queueWorld(1), func(s *story) {
		s.reconcile("hello")
		s.quiet("hello", 11*time.Second)
		s.respec("hello", func(spec *v1alpha1.FunctionSpec) { spec.Scale.MinReplicas = 1 })
		s.reconcile("hello")
		if got := s.replicas("hello"); got != 1 {
			s.Errorf("%d replicas, want 1", got)
		}
		if got := s.function("hello").Finalizers; len(got) != 0 {
			s.Errorf("finalizers %v, want none", got)
		}
	})
}

// With traffic as well, the gate is in the path while the queue wakes the function, and what is read while it sleeps is
// the queue alone.
func TestQueueBesideTraffic(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", onQueue)), func(s *story) {
		s.metrics("hello", 0, 0)
		s.poll("hello", "queue", 0)
		s.reconcile("hello")
		s.poll("hello", "queue", 0)
		s.pass(10 * time.Second)
		s.metrics("hello", 10*time.Second, 0)
		s.reconcile("hello")
		if s.gated("hello") != nil {
			s.Fatal("the gate joined, although the queue is not known")
		}
		s.poll("hello", "queue", 0)
		s.pass(10 * time.Second)
		s.metricsBeside("hello", 20*time.Second)
		s.poll("hello", "queue", 0)
		s.reconcile("hello")
		s.reconcile("hello")
		s.proofs <- nil
		s.reconcile("hello")
		s.pass(2 * time.Second)
		s.metricsBeside("hello", 22*time.Second)
		s.poll("hello", "queue", 0)
		s.writes = nil
		s.reconcile("hello")
		s.wrote("scale hello 1 -> 0")
		s.ready("hello")
		hello := types.NamespacedName{Namespace: "default", Name: "hello"}
		if got := s.r.poller.tracked[hello].Metrics; !cmp.Equal(got, []string{"queue"}) {
			s.Errorf("read while it sleeps: %v, want the queue", got)
		}
		s.poll("hello", "queue", 21)
		s.reconcile("hello")
		s.wrote("scale hello 0 -> 2")
		if s.gated("hello") == nil {
			s.Error("the gate left before a pod was ready")
		}
		s.ready("hello", "hello-2")
		s.reconcile("hello")
		s.wrote("delete *v1.EndpointSlice sluice-hello.gate")
	})
}

// metricsBeside is metrics, and leaves what is known of others.
func (s *story) metricsBeside(name string, idle time.Duration) {
	key := types.NamespacedName{Namespace: "default", Name: name}
	queue := s.r.poller.samples(key)["queue"]
	s.metrics(name, idle, 0)
	s.r.poller.values[key]["queue"] = queue
}

// A zero that a user's own HorizontalPodAutoscaler wrote is its own to undo, by whatever it scales on.
func TestQueueBesideForeignHPA(t *testing.T) {
	foreign := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "mine"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "hello"},
		},
	}
	inStory(t, append(queueWorld(0), foreign), func(s *story) {
		s.reconcile("hello")
		if got := len(s.r.poller.tracked); got != 0 {
			s.Errorf("%d functions are polled, want none", got)
		}
		s.poll("hello", "queue", 100)
		s.reconcile("hello")
		if got := s.replicas("hello"); got != 0 {
			s.Errorf("%d replicas, want 0", got)
		}
	})
}

var queue = []v1alpha1.ExternalMetric{{Name: "queue", Target: resource.MustParse("20"), Activation: resource.MustParse("5")}}

func sleeper() interest {
	return interest{Metrics: []string{"queue"}, External: queue, Required: []string{"queue"}, Asleep: true}
}

// One list call per namespace and metric that a tracked function there has, however many functions that is.
func TestPollReadsOnlyWhatIsWanted(t *testing.T) {
	api := &fakeAPI{at: time.Now()}
	p, _ := newTestPoller(t, api)
	for _, name := range []string{"a", "b"} {
		p.track(types.NamespacedName{Namespace: "default", Name: name}, sleeper())
	}
	p.track(types.NamespacedName{Namespace: "other", Name: "c"}, interest{Metrics: []string{v1alpha1.IdleSeconds}, Reconciled: time.Now()})
	p.poll(t.Context())
	want := []string{"default/functions.sluice.dev/*/queue", "other/functions.sluice.dev/*/idle_seconds"}
	if diff := cmp.Diff(want, withoutQuestions(api.takeAsked()), cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// withoutQuestions leaves the list calls.
func withoutQuestions(asked []string) []string {
	var lists []string
	for _, path := range asked {
		if parts := strings.Split(path, "/"); len(parts) == 4 && parts[2] == "*" {
			lists = append(lists, path)
		}
	}
	return lists
}

// A function that sleeps is rung for when a value is above its activation, and for nothing else, however long that takes.
func TestPollRingsForSleepers(t *testing.T) {
	for _, tt := range []struct {
		name, value string
		old         time.Duration
		want        []string
		blind       float64
	}{
		{name: "nothing to do", value: "0"},
		{name: "at the activation", value: "5"},
		{name: "above it", value: "5001m", want: []string{"hello"}},
		{name: "of a source that is asked once a minute", value: "9", old: time.Minute, want: []string{"hello"}},
		{name: "too old to be true", value: "9", old: time.Hour, blind: 1},
		{name: "unknown", blind: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := &fakeAPI{at: time.Now().Add(-tt.old), values: map[string]string{}}
			if tt.value != "" {
				api.values["default/hello/queue"] = tt.value
			}
			p, rung := newTestPoller(t, api)
			p.track(hello, sleeper())
			p.poll(t.Context())
			if diff := cmp.Diff(tt.want, rung()); diff != "" {
				t.Errorf("rung for (-want +got):\n%s", diff)
			}
			if got := testutil.ToFloat64(p.metrics.blindSleepers); got != tt.blind {
				t.Errorf("%v blind sleepers, want %v", got, tt.blind)
			}
		})
	}
}

// Quiet is counted from poll to poll: a value above the activation, or none, begins anew; a read that fails does not,
// as long as the last value is not too old.
func TestPollCountsQuiet(t *testing.T) {
	api := &fakeAPI{at: time.Now(), values: map[string]string{"default/hello/queue": "5"}}
	p, _ := newTestPoller(t, api)
	p.track(hello, sleeper())
	quiet := func() time.Time {
		p.poll(t.Context())
		return p.samples(hello)["queue"].QuietSince
	}
	first := quiet()
	if first.IsZero() {
		t.Fatal("not quiet at its activation")
	}
	if got := quiet(); got != first {
		t.Errorf("the count began anew at %s, want %s", got, first)
	}
	api.set(func(f *fakeAPI) { f.down = true })
	if got := quiet(); got != first {
		t.Errorf("one read that failed: quiet since %s, want %s", got, first)
	}
	api.set(func(f *fakeAPI) { f.down = false; f.values["default/hello/queue"] = "6" })
	if got := quiet(); !got.IsZero() {
		t.Errorf("above its activation: quiet since %s", got)
	}
	api.set(func(f *fakeAPI) { f.values["default/hello/queue"] = "0" })
	second := quiet()
	if !second.After(first) {
		t.Errorf("quiet since %s, want later than %s", second, first)
	}
	api.set(func(f *fakeAPI) { delete(f.values, "default/hello/queue") })
	if got := quiet(); !got.IsZero() {
		t.Errorf("unknown: quiet since %s", got)
	}

	// A function that wakes is read anew; what it slept by stays known.
	api.set(func(f *fakeAPI) { f.values["default/hello/queue"] = "0" })
	since := quiet()
	p.track(hello, interest{Metrics: []string{v1alpha1.IdleSeconds, "queue"}, External: queue, Reconciled: time.Now()})
	if got := p.samples(hello); len(got) != 1 || got["queue"].QuietSince != since {
		t.Errorf("after the wake: %+v, want the queue, quiet since %s", got, since)
	}
}

// An external metric may be old at its source, but not unread.
func TestReadExternal(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name   string
		sample sample
		want   string
	}{
		{"fresh", sample{Time: now, Polled: now}, ""},
		{"of a minute ago", sample{Time: now.Add(-time.Minute), Polled: now}, ""},
		{"too old to be true", sample{Time: now.Add(-6 * time.Minute), Polled: now}, "the last value is more than 5m0s old"},
		{"not read any more", sample{Time: now.Add(-11 * time.Second), Polled: now.Add(-11 * time.Second)}, "it was last read more than 10s ago"},
	} {
		if got := read(now, "queue", map[string]sample{"queue": tt.sample}).Unknown; got != tt.want {
			t.Errorf("%s: unknown %q, want %q", tt.name, got, tt.want)
		}
	}
}
