package scaler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// midnight is t=0 of every scenario.
var midnight = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// scenario is the world of one file of testdata. What a look does not mention stays as it was; what a decision asks
// for is done before the next look, as the reconciler would.
type scenario struct {
	rules rules
	fn    *v1alpha1.Function
	seen  observed
	mem   memory
}

// TestDecide runs the scenarios of testdata. Their commands:
//
//	function [min=N] [idleAfter=D] [rate] [concurrency] [queue=ACTIVATION] [topic=ACTIVATION]
//	    [lag=ACTIVATION] [no-traffic] [grace=D]
//	    a new Function and an empty world; the scaler has just started. queue and topic are external metrics with
//	    targets of 20 and 5 per replica, lag is kafka_lag with one of 100.
//	respec [min=N] [no-traffic]
//	    the spec changes.
//	restart
//	    the scaler starts anew: its memory is gone.
//	look t=D [replicas=N] [ready=(uid,...)] [activators=N] [gate=in|out] [has-gate=BOOL]
//	    [idle=SECONDS] [rps=N] [inflight=N] [queue=N] [topic=N] [lag=N] [partitions=N] [unknown=METRIC] [failed] [proven] [unproven=WHY] [held=WHY] [recorded=PHASE] [slept]
//	    [foreign-hpa] [refused]
//	    decide at time t. A metric that is given was observed and polled at t. refused lets the write of zero fail, as
//	    it does when somebody scaled meanwhile; failed is a poll whose reads failed. slept says that by the status it was
//	    Sluice that wrote the zero.
func TestDecide(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var s *scenario
		var h hostScenario
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "function":
				s = newScenario(t, d)
				return ""
			case "respec":
				s.respec(t, d)
				return ""
			case "hosts":
				h = hostScenario{}
				return ""
			case "host":
				return h.look(t, d)
			case "restart":
				if s != nil {
					s.mem = memory{}
				}
				h.hosts = hosts{}
				return ""
			case "look":
				return s.look(t, d)
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	})
}

func newScenario(t *testing.T, d *datadriven.TestData) *scenario {
	s := &scenario{rules: rules{Grace: time.Second}, fn: &v1alpha1.Function{}}
	s.fn.Namespace, s.fn.Name = "default", "hello"
	s.fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied}
	s.fn.Spec.Scale = v1alpha1.Scale{MaxReplicas: 10, IdleAfter: &metav1.Duration{Duration: time.Minute}}
	s.seen = observed{HasGate: true, Activators: 2, Samples: map[string]sample{}}
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "min":
			s.fn.Spec.Scale.MinReplicas = scanReplicas(t, arg)
		case "idleAfter":
			s.fn.Spec.Scale.IdleAfter.Duration = scanDuration(t, arg)
		case "grace":
			s.rules.Grace = scanDuration(t, arg)
		case "no-traffic":
			s.fn.Spec.Traffic, s.seen.HasGate = nil, false
		case "queue", "topic":
			s.fn.Spec.Metrics = append(s.fn.Spec.Metrics, v1alpha1.Metric{Prometheus: &v1alpha1.PrometheusMetric{
				Name: arg.Key, Target: map[string]resource.Quantity{"queue": resource.MustParse("20"), "topic": resource.MustParse("5")}[arg.Key],
				Activation: new(resource.MustParse(arg.Vals[0])),
			}})
		case "lag":
			s.fn.Spec.Metrics = append(s.fn.Spec.Metrics, v1alpha1.Metric{KafkaLag: &v1alpha1.KafkaLagMetric{
				Target: resource.MustParse("100"), Activation: new(resource.MustParse(arg.Vals[0])),
			}})
		case "rate":
			s.fn.Spec.Metrics = append(s.fn.Spec.Metrics, v1alpha1.Metric{
				RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("50")},
			})
		case "concurrency":
			s.fn.Spec.Metrics = append(s.fn.Spec.Metrics, v1alpha1.Metric{
				Concurrency: &v1alpha1.ConcurrencyMetric{Target: resource.MustParse("10")},
			})
		default:
			d.Fatalf(t, "unknown argument %q", arg.Key)
		}
	}
	return s
}

func (s *scenario) respec(t *testing.T, d *datadriven.TestData) {
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "min":
			s.fn.Spec.Scale.MinReplicas = scanReplicas(t, arg)
		case "no-traffic":
			s.fn.Spec.Traffic, s.seen.HasGate, s.seen.InPath = nil, false, false
		default:
			d.Fatalf(t, "unknown argument %q", arg.Key)
		}
	}
}

func scanDuration(t *testing.T, arg datadriven.CmdArg) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(arg.Vals[0])
	if err != nil {
		t.Fatalf("%s: %v", arg.Key, err)
	}
	return d
}

func scanReplicas(t *testing.T, arg datadriven.CmdArg) int32 {
	t.Helper()
	var n int
	arg.Scan(t, 0, &n)
	return int32(n)
}

var metricArgs = map[string]string{
	"idle": v1alpha1.IdleSeconds, "rps": v1alpha1.RequestsPerSecond, "inflight": v1alpha1.RequestsInFlight,
	"queue": "queue", "topic": "topic", "lag": v1alpha1.KafkaLag, "partitions": v1alpha1.KafkaPartitions,
}

func (s *scenario) look(t *testing.T, d *datadriven.TestData) string {
	now := midnight
	refused := false
	s.seen.ProofErr = ""
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "t":
			now = midnight.Add(scanDuration(t, arg))
		case "replicas":
			s.seen.Replicas = scanReplicas(t, arg)
		case "ready":
			s.seen.ReadyPods, s.seen.Ready = nil, 0
			for _, uid := range arg.Vals {
				if uid != "none" {
					s.seen.ReadyPods = append(s.seen.ReadyPods, types.UID(uid))
					s.seen.Ready++
				}
			}
		case "activators":
			arg.Scan(t, 0, &s.seen.Activators)
		case "gate":
			s.seen.InPath = arg.Vals[0] == "in"
		case "has-gate":
			arg.Scan(t, 0, &s.seen.HasGate)
		case "idle", "rps", "inflight", "queue", "topic", "lag", "partitions":
			var v int
			arg.Scan(t, 0, &v)
			name := metricArgs[arg.Key]
			s.seen.Samples[name] = sample{Value: float64(v), Time: now, Polled: now, QuietSince: s.seen.Samples[name].QuietSince}
			(&interest{External: s.fn.ExternalMetrics()}).quieten(now, s.seen.Samples)
		case "unknown":
			last := s.seen.Samples[arg.Vals[0]]
			last.Unknown = "no activator was scraped"
			s.seen.Samples[arg.Vals[0]] = last
			(&interest{External: s.fn.ExternalMetrics()}).quieten(now, s.seen.Samples)
		case "failed":
			for name, last := range s.seen.Samples {
				last.ReadError = "context deadline exceeded"
				s.seen.Samples[name] = last
			}
		case "proven":
			s.seen.ProvenAt = now
		case "unproven":
			s.seen.ProofErr = strings.Join(arg.Vals, " ")
		case "held":
			s.seen.Held = strings.Join(arg.Vals, " ")
		case "recorded":
			s.seen.Recorded = v1alpha1.Phase(arg.Vals[0])
		case "slept":
			s.seen.Slept = true
		case "foreign-hpa":
			s.seen.ForeignHPA = true
		case "refused":
			refused = true
		default:
			d.Fatalf(t, "unknown argument %q", arg.Key)
		}
	}
	if b, known := boundOf(now, s.fn, s.seen.Samples); known { // else the last one stays
		s.seen.Bound = b
	}
	before := fmt.Sprint(s.seen, s.mem)
	decided, mem := s.rules.decide(now, s.fn, s.seen, s.mem)
	if again, _ := s.rules.decide(now, s.fn, s.seen, s.mem); fmt.Sprint(again) != fmt.Sprint(decided) || fmt.Sprint(s.seen, s.mem) != before {
		t.Errorf("%s: decide is not pure: %v, then %v", d.Pos, decided, again)
	}
	s.checkInvariants(t, d, decided)
	s.seen.InPath = decided.Gate
	switch {
	case (decided.Sleep || decided.Wake) && refused:
		return render(decided) + "\n(refused)"
	case decided.Sleep:
		mem.becomeAsleep(now)
		s.seen.Replicas = 0
	case decided.Wake:
		s.seen.Replicas = decided.To
	}
	if decided.Transition {
		s.seen.Slept = decided.Sleep
	}
	s.mem = mem
	s.seen.Recorded = decided.Phase
	return render(decided)
}

// checkInvariants holds for every look of every scenario.
func (s *scenario) checkInvariants(t *testing.T, d *datadriven.TestData, got decision) {
	t.Helper()
	if got.Sleep != (got.Reason == reasonSleeping) || (got.Sleep && (got.To != 0 || got.From == 0)) {
		t.Errorf("%s: the scaler writes 0 when it puts to sleep, and nothing else: %+v", d.Pos, got)
	}
	wanted := slices.ContainsFunc(s.fn.ExternalMetrics(), func(m v1alpha1.ExternalMetric) bool {
		in := read(got.Time, m.Name, s.seen.Samples)
		return in.Unknown == "" && m.IsActive(in.Value)
	})
	byValue := wanted && s.fn.MaySleep() && !s.seen.ForeignHPA
	undone := s.seen.Slept && (!s.fn.MaySleep() || s.seen.ForeignHPA)
	if got.Wake && (got.From != 0 || got.To < 1 || got.To > s.fn.Spec.Scale.MaxReplicas || (!byValue && !undone)) {
		t.Errorf("%s: the scaler wakes only for a metric that is known, or what it put to sleep and may not sleep: %+v", d.Pos, got)
	}
	if byValue && got.Wake && got.To > s.seen.Bound.most(s.fn) {
		t.Errorf("%s: wakes to %d replicas, bound by %s", d.Pos, got.To, s.seen.Bound.By)
	}
	if s.seen.Replicas == 0 && s.seen.HasGate && !got.Gate {
		t.Errorf("%s: at zero replicas the gate must be in the path", d.Pos)
	}
	if s.seen.Ready == 0 && s.seen.InPath && s.seen.HasGate && !got.Gate {
		t.Errorf("%s: the gate left with no pod ready", d.Pos)
	}
	if !got.Sleep {
		return
	}
	gated := s.seen.InPath && got.Gate && !s.seen.ProvenAt.IsZero()
	if (s.fn.Spec.Traffic != nil && !gated) || s.seen.Held != "" || !s.fn.MaySleep() || wanted {
		t.Errorf("%s: sleeps out of order", d.Pos)
	}
	for _, in := range got.Inputs {
		if in.Unknown != "" {
			t.Errorf("%s: sleeps while %s", d.Pos, in)
		}
	}
}

func render(d decision) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, gate %s", d.Phase, map[bool]string{true: "in", false: "out"}[d.Gate])
	if d.From != d.To {
		fmt.Fprintf(&b, ", scale %d -> %d", d.From, d.To)
	}
	for _, flag := range []struct {
		on   bool
		name string
	}{{d.Sleep || d.Wake, "write"}, {d.Prove, "prove"}, {d.Watch, "watch"}, {d.Transition, "transition"}, {d.Quiet, "quiet"}} {
		if flag.on {
			b.WriteString(", " + flag.name)
		}
	}
	if d.Again > 0 {
		fmt.Fprintf(&b, ", again in %s", d.Again)
	}
	fmt.Fprintf(&b, "\n%s: %s", d.Reason, d.Message())
	return b.String()
}
