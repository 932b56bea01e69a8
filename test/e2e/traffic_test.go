//go:build e2e

package e2e

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/load"
)

// The test cluster's own networks, inside its network namespace: the only addresses that a story sends load to.
var clusterNetworks = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/16")}

// offeredLoad is a load that goes on until it is stopped.
type offeredLoad struct {
	began time.Time
	stop  func() (load.Result, error) // ends it, waits for what is under way, and tells
}

// offer offers rate requests per second until stop, for five minutes at most: each on a connection of its own, or with
// kept ones on as few connections as it takes.
func (s *story) offer(url, host string, rate float64, kept bool) offeredLoad {
	s.Helper()
	end := make(chan struct{})
	type outcome struct {
		result load.Result
		err    error
	}
	done := make(chan outcome, 1)
	ctx, cancel := context.WithCancel(context.Background()) // the story's own ends before its clean-ups
	l := offeredLoad{began: time.Now()}
	go func() {
		result, err := load.Run(ctx, load.Options{
			URL:              url,
			Host:             host,
			Steps:            []load.Step{load.Constant(rate, 5*time.Minute)},
			MaxRequests:      int(rate * 301),
			Timeout:          70 * time.Second,
			FreshConnections: !kept,
			Allow:            clusterNetworks,
			Stop:             end,
		})
		done <- outcome{result, err}
	}()
	l.stop = sync.OnceValues(func() (load.Result, error) {
		close(end)
		o := <-done
		return o.result, o.err
	})
	s.Cleanup(func() {
		_, _ = l.stop()
		cancel()
	})
	return l
}

// steadyLoad offers load until stop, which fails the story for every request that was not answered with a 2xx status.
func (s *story) steadyLoad(url string, rate float64, kept bool) (stop func()) {
	s.Helper()
	return s.hostLoad(url, "", rate, kept)
}

// hostLoad does the same of a host at the shared door.
func (s *story) hostLoad(url, host string, rate float64, kept bool) (stop func()) {
	s.Helper()
	l := s.offer(url, host, rate, kept)
	stop = sync.OnceFunc(func() {
		s.Helper()
		r, err := l.stop()
		s.Logf("load of %v/s: %d requests, %d answered, p50 %s, p99 %s, max %s", rate, r.Sent, r.Answered(), r.Latency.P50, r.Latency.P99, r.Latency.Max)
		if err != nil || r.Sent == 0 || r.Failed() > 0 {
			s.Errorf("load of %v/s on %s, of which %d left: %v", rate, url, r.Sent, errors.Join(err, r.Err()))
			for _, f := range r.Failures[:min(len(r.Failures), 10)] {
				s.Logf("%s", f)
			}
		}
	})
	s.Cleanup(stop)
	return stop
}

// activatorStarted is the number of a function's requests that have come through any activator.
func (s *story) activatorStarted(ctx context.Context, function string) float64 {
	s.Helper()
	return s.activatorSum(ctx, v1alpha1.ActivatorStarted, function)
}

// activatorSum is a figure of a function, of all activators together.
func (s *story) activatorSum(ctx context.Context, metric, function string) float64 {
	s.Helper()
	total := 0.0
	for _, families := range s.activatorMetrics(ctx) {
		for _, m := range families[metric].GetMetric() {
			if label(m, v1alpha1.LabelNamespace) == s.namespace && label(m, v1alpha1.LabelFunction) == function {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue() // one of them is there
			}
		}
	}
	return total
}

// activatorMetrics are those of each activator.
func (s *story) activatorMetrics(ctx context.Context) (all []map[string]*dto.MetricFamily) {
	s.Helper()
	var pods corev1.PodList
	if err := s.client.List(ctx, &pods, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingLabels{"app.kubernetes.io/name": "sluice-activator"}); err != nil {
		s.Fatal(err)
	}
	for _, pod := range pods.Items {
		raw, err := s.kube.CoreV1().Pods(pod.Namespace).ProxyGet("http", pod.Name, "9090", "metrics", nil).DoRaw(ctx)
		if err != nil {
			s.Fatalf("metrics of %s: %v", pod.Name, err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(string(raw)))
		if err != nil {
			s.Fatalf("metrics of %s: %v", pod.Name, err)
		}
		all = append(all, families)
	}
	return all
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// door is the base URL of the gate's shared door.
func (s *story) door() string {
	s.Helper()
	var svc corev1.Service
	if err := s.client.Get(s.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ActivatorService}, &svc); err != nil {
		s.Fatal(err)
	}
	return "http://" + svc.Spec.ClusterIP
}

// each calls f for each object in list.
func (s *story) each(list client.ObjectList, f func(client.Object)) {
	s.Helper()
	err := meta.EachListItem(list, func(o runtime.Object) error {
		f(o.(client.Object))
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}
