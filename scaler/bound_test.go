package scaler

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// onLag scales on the lag of a consumer group, 100 records per replica, beside what the Function scales on already.
func onLag(name string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{KafkaLag: &v1alpha1.KafkaLagMetric{
			Name: name, BootstrapServers: []string{"kafka:9092"}, Topic: "orders", Group: "hello", Target: resource.MustParse("100"),
		}})
	}
}

// onLagAlone is a Function without traffic, of at most 20 replicas.
func onLagAlone(fn *v1alpha1.Function) {
	fn.Spec.Traffic, fn.Spec.Metrics, fn.Spec.Scale.MaxReplicas = nil, nil, 20
	onLag("")(fn)
}

func minReplicas(n int32) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Scale.MinReplicas = n }
}

// lagWorld is a function on the lag of a group alone, and its Deployment.
func lagWorld(replicas int32, change ...func(*v1alpha1.Function)) []client.Object {
	d := newDeployment("hello", replicas)
	d.Status.ReadyReplicas = replicas
	return []client.Object{newFunction("hello", append([]func(*v1alpha1.Function){onLagAlone}, change...)...), d}
}

func TestBoundOf(t *testing.T) {
	now := time.Now()
	of := func(value float64) sample { return sample{Value: value, Time: now, Polled: now} }
	type known = map[string]sample
	for _, tt := range []struct {
		name    string
		change  []func(*v1alpha1.Function)
		samples known
		want    bound
		unknown bool
	}{
		{name: "fewer partitions than maxReplicas", samples: known{"kafka_partitions": of(12)}, want: bound{12, "12 partitions of kafka_lag"}},
		{name: "one partition", samples: known{"kafka_partitions": of(1)}, want: bound{1, "1 partition of kafka_lag"}},
		{name: "as many", samples: known{"kafka_partitions": of(20)}},
		{name: "more", samples: known{"kafka_partitions": of(1e12)}},
		{
			name: "fewer than minReplicas", change: []func(*v1alpha1.Function){minReplicas(15)}, samples: known{"kafka_partitions": of(12)},
			want: bound{15, "12 partitions of kafka_lag, but not below minReplicas 15"},
		},
		{
			name: "the larger of two", change: []func(*v1alpha1.Function){onLag("audit")},
			samples: known{"kafka_partitions": of(3), "kafka_audit_partitions": of(6)}, want: bound{6, "6 partitions of kafka_audit_lag"},
		},
		{
			name: "one of two is not known", change: []func(*v1alpha1.Function){onLag("audit")}, unknown: true,
			samples: known{"kafka_partitions": of(3)},
		},
		{
			name: "beside requests", samples: known{"kafka_partitions": of(3)},
			change: []func(*v1alpha1.Function){func(fn *v1alpha1.Function) {
				fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("1")}})
			}},
		},
		{name: "beside a queue", change: []func(*v1alpha1.Function){onQueue}, samples: known{"kafka_partitions": of(3)}},
		{name: "without a lag", change: []func(*v1alpha1.Function){onQueueAlone}, samples: known{"kafka_partitions": of(3)}},
		{name: "not read yet", unknown: true},
		{name: "unknown", samples: known{"kafka_partitions": {Unknown: "no broker answers"}}, unknown: true},
		{name: "not read any more", samples: known{"kafka_partitions": {Value: 3, Time: now, Polled: now.Add(-time.Minute)}}, unknown: true},
		{name: "none at all, which no topic has", samples: known{"kafka_partitions": of(0)}, unknown: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fn := newFunction("hello", append([]func(*v1alpha1.Function){onLagAlone}, tt.change...)...)
			got, ok := boundOf(now, fn, tt.samples)
			if diff := cmp.Diff(tt.want, got); diff != "" || ok == tt.unknown {
				t.Errorf("known %t (-want +got):\n%s", ok, diff)
			}
		})
	}
}

// The HorizontalPodAutoscaler has no more replicas than there are partitions, as far as is known, and the status says so.
func TestLagBound(t *testing.T) {
	inStory(t, lagWorld(1), func(s *story) {
		most := func() int32 { return get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-hello").Spec.MaxReplicas }
		s.reconcile("hello")
		if got := most(); got != 20 {
			t.Errorf("maxReplicas %d before anything is known, want 20", got)
		}
		partitions := func(n float64) {
			s.poll("hello", "kafka_lag", 100)
			s.poll("hello", "kafka_partitions", n)
			s.pass(time.Second)
			s.reconcile("hello")
		}
		partitions(12)
		if got := most(); got != 12 {
			t.Errorf("maxReplicas %d, want 12", got)
		}
		s.pass(statusInterval)
		partitions(12)
		s.wantCondition("hello", "ScalingActive", metav1.ConditionTrue, "Scaling", "kafka_lag, bound by 12 partitions of kafka_lag")
		s.writes = nil
		partitions(12)
		s.wrote()

		// Partitions are added.
		partitions(16)
		if got := most(); got != 16 {
			t.Errorf("maxReplicas %d, want 16", got)
		}

		// The broker is away, then the scaler starts anew: the bound stays, and so do its words.
		s.pass(statusInterval)
		partitions(16)
		said := s.condition("hello", "ScalingActive").Message
		s.writes = nil
		s.pass(10 * time.Minute)
		s.reconcile("hello")
		s.restart()
		s.reconcile("hello")
		s.pass(statusInterval)
		s.reconcile("hello")
		s.wrote()
		if got := s.condition("hello", "ScalingActive").Message; got != said {
			t.Errorf("said %q, want %q as before", got, said)
		}

		// What bounds no more is not said any more.
		partitions(40)
		s.pass(statusInterval)
		partitions(40)
		if got := most(); got != 20 {
			t.Errorf("maxReplicas %d, want 20", got)
		}
		if got, want := s.condition("hello", "ScalingActive").Message, "HorizontalPodAutoscaler sluice-hello scales on kafka_lag"; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	})
}

// A maxReplicas that is raised while nothing is known was never a bound.
func TestLagUnboundWhileUnknown(t *testing.T) {
	inStory(t, lagWorld(1), func(s *story) {
		s.reconcile("hello")
		s.respec("hello", func(spec *v1alpha1.FunctionSpec) { spec.Scale.MaxReplicas = 30 })
		s.reconcile("hello")
		if got := get[autoscalingv2.HorizontalPodAutoscaler](s, "sluice-hello").Spec.MaxReplicas; got != 30 {
			t.Errorf("maxReplicas %d, want 30", got)
		}
		if got, want := s.condition("hello", "ScalingActive").Message, "HorizontalPodAutoscaler sluice-hello scales on kafka_lag"; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	})
}

// A function that sleeps is not written to because the scaler has forgotten how many partitions there are; and it wakes
// to no more replicas than there were.
func TestLagAsleepAcrossRestart(t *testing.T) {
	inStory(t, lagWorld(1), func(s *story) {
		quiet := func(d time.Duration) {
			for range d / time.Second {
				s.pass(time.Second)
				s.poll("hello", "kafka_lag", 0)
				s.poll("hello", "kafka_partitions", 12)
				s.reconcile("hello")
			}
		}
		s.reconcile("hello")
		quiet(30 * time.Second)
		if got := s.replicas("hello"); got != 0 {
			t.Fatalf("%d replicas, want 0", got)
		}
		s.pods("hello", 0)
		quiet(30 * time.Second)
		s.restart()
		s.writes = nil
		s.reconcile("hello")
		s.pass(time.Minute)
		s.reconcile("hello")
		s.wroteNothing()
		s.poll("hello", "kafka_lag", 10_000)
		s.reconcile("hello")
		s.wrote("scale hello 0 -> 12")
	})
}

// served lets a handler answer without a network, which no synctest bubble can wait for.
type served struct{ http.Handler }

func (s served) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result(), nil
}

// From the value at the metrics API to the write there are two polls at most, whenever it comes.
func TestLagWakesWithinTwoPolls(t *testing.T) {
	for _, after := range []time.Duration{time.Millisecond, 500 * time.Millisecond, 999 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			inStory(t, lagWorld(0), func(s *story) {
				api := &fakeAPI{at: time.Now(), values: map[string]string{"default/hello/kafka_lag": "0", "default/hello/kafka_partitions": "12"}}
				reads, err := newMetricsAPI(&rest.Config{Host: "http://api", Transport: served{api}}, 900*time.Millisecond)
				if err != nil {
					s.Fatal(err)
				}
				rung := make(chan struct{}, 1)
				const interval = time.Second
				s.r.poller = newPoller(reads, interval, func(types.NamespacedName) { rung <- struct{}{} }, newTelemetry())
				ctx, cancel := context.WithCancel(s.Context())
				stopped := make(chan error)
				go func() { stopped <- s.r.poller.Start(ctx) }()
				defer func() {
					cancel()
					if err := <-stopped; err != nil {
						s.Error(err)
					}
				}()
				s.reconcile("hello")
				s.pass(20 * interval)
				s.writes = nil

				s.pass(after)
				api.set(func(f *fakeAPI) { f.at = time.Now(); f.values["default/hello/kafka_lag"] = "850" })
				came := time.Now()
				select {
				case <-rung:
				case <-time.After(2 * interval):
					s.Fatal("nobody was told within two polls")
				}
				s.reconcile("hello")
				// The second is the bound, which the scaler knew of since it was asleep only.
				s.wrote("scale hello 0 -> 9", "update *v2.HorizontalPodAutoscaler sluice-hello")
				if d := get[appsv1.Deployment](s, "hello"); time.Since(came) > 2*interval || *d.Spec.Replicas != 9 {
					s.Errorf("%d replicas after %s, want 9 within two polls", *d.Spec.Replicas, time.Since(came))
				}
			})
		})
	}
}
