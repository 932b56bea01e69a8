//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/prometheus"
)

// scalesOnQueue is a StatefulSet that works off a queue, whose depth a Prometheus server knows. It sleeps while the queue
// is empty, is woken to as many replicas as the depth asks for, keeps them while Prometheus is gone, and sleeps again.
func scalesOnQueue(s *story) {
	const target = 10
	queue := s.queue()
	server := s.prometheus(prometheus.Target{Address: queue.address, Labels: map[string]string{"namespace": s.namespace}})

	s.statefulSet("worker", 0)
	fn := idleAfter(proxied("worker"), 2*time.Second)
	fn.Spec.Traffic = nil
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "worker"}
	fn.Spec.Metrics = []v1alpha1.Metric{{Prometheus: &v1alpha1.PrometheusMetric{
		Name: "queue_depth", Server: server.URL, Query: `sum(queue_depth{namespace="{{.Namespace}}",queue="{{.Function}}"})`,
		Target: resource.MustParse(fmt.Sprint(target)),
	}}}
	s.create(fn)
	s.awaitPhase("worker", v1alpha1.Idle, 30*time.Second)
	eventually(s.T, 30*time.Second, "the depth to be served", func(ctx context.Context) string {
		if got, err := s.metric(ctx, "worker", "queue_depth"); err != nil || got != 0 {
			return fmt.Sprintf("%v (%v)", got, err)
		}
		return ""
	})

	queue.set(35)
	began := time.Now()
	var first int32
	eventually(s.T, 30*time.Second, "the queue to wake it", func(ctx context.Context) string {
		first = s.setReplicas(ctx, "worker")
		if first == 0 {
			return "0 replicas"
		}
		return ""
	})
	s.Logf("from the queue to %d replicas: %s", first, time.Since(began).Round(time.Millisecond))
	if first != 4 { // ceil(35 / 10)
		s.Errorf("woken to %d replicas; want 4 at once", first)
	}
	s.awaitPhase("worker", v1alpha1.Active, 60*time.Second)
	queue.set(45)
	eventually(s.T, 90*time.Second, "its HPA to follow the depth", func(ctx context.Context) string {
		if n := s.setReplicas(ctx, "worker"); n != 5 { // ceil(45 / 10)
			return fmt.Sprintf("%d replicas", n)
		}
		return ""
	})

	if err := server.Stop(); err != nil {
		s.Fatal(err)
	}
	queue.set(0)
	s.awaitConditionWithin(60*time.Second, "worker", v1alpha1.ConditionMetricsAvailable, "False", "MetricUnknown", "queue_depth")
	always(s.T, 30*time.Second, "replicas while the depth is unknown", func(ctx context.Context) string {
		if n := s.setReplicas(ctx, "worker"); n != 5 {
			return fmt.Sprintf("%d, want 5", n)
		}
		return ""
	})

	s.startPrometheus(server.Address, prometheus.Target{Address: queue.address, Labels: map[string]string{"namespace": s.namespace}})
	s.awaitPhase("worker", v1alpha1.Idle, 90*time.Second)
	if n := s.setReplicas(s.Context(), "worker"); n != 0 {
		s.Errorf("%d replicas of an idle function", n)
	}
}

// scalesOnQuery is a function that Prometheus counts: a real server scrapes its pod, and the rate that it computes is
// what Sluice counts by itself.
func scalesOnQuery(s *story) {
	s.workload("hello", 1)
	fn := direct("hello")
	fn.Spec.Scale.MinReplicas = 1
	fn.Spec.Scale.MaxReplicas = 1 // the pod that is scraped stays the only one
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	server := s.prometheus(prometheus.Target{Address: net.JoinHostPort(s.onlyPod("hello").Status.PodIP, "8080"), Labels: map[string]string{"namespace": s.namespace, "function": "hello"}})
	s.change("hello", func(fn *v1alpha1.Function) {
		fn.Spec.Metrics = []v1alpha1.Metric{{Prometheus: &v1alpha1.PrometheusMetric{
			Name: "calls", Server: server.URL, Target: resource.MustParse("10"),
			Query: `sum(rate(function_calls_total{namespace="{{.Namespace}}",function="{{.Function}}"}[20s]))`,
		}}}
	})
	const rate = 20.0
	stop := s.steadyLoad(s.clusterIP("hello"), rate, false)
	defer stop()
	for _, metric := range []string{"calls", v1alpha1.RequestsPerSecond} {
		eventually(s.T, 90*time.Second, metric+" to be the rate", func(ctx context.Context) string {
			if got, err := s.metric(ctx, "hello", metric); err != nil || got < rate*0.9 || got > rate*1.1 {
				return fmt.Sprintf("%v (%v)", got, err)
			}
			return ""
		})
	}
}

// coldStartStatefulSet is a request to a StatefulSet that sleeps.
func coldStartStatefulSet(s *story) {
	s.statefulSet("hello", 0)
	fn := idleAfter(proxied("hello"), 2*time.Second)
	fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "hello"}
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Idle, 20*time.Second)
	s.awaitGate("hello", true)
	url := s.clusterIP("sluice-hello")
	s.Logf("a StatefulSet's cold start: %s", s.mustAnswer(url, ""))
	s.awaitPhase("hello", v1alpha1.Active, 20*time.Second) // the phase that is told may still be the one before
	s.awaitPhase("hello", v1alpha1.Idle, 60*time.Second)
	s.awaitGate("hello", true)
	s.Logf("and another: %s", s.mustAnswer(s.clusterIP("hello"), ""))
}

// statefulSet creates what workload does, with a StatefulSet in place of the Deployment.
func (s *story) statefulSet(name string, replicas int32) {
	s.Helper()
	template := s.template(name)
	s.create(&appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Template: template, ServiceName: name,
			Selector:            &metav1.LabelSelector{MatchLabels: template.Labels},
			PodManagementPolicy: appsv1.ParallelPodManagement,
		},
	})
	s.service(name)
}

func (s *story) setReplicas(ctx context.Context, name string) int32 {
	s.Helper()
	var set appsv1.StatefulSet
	if err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &set); err != nil {
		s.Fatal(err)
	}
	return *set.Spec.Replicas
}

// queue is what an exporter says of a queue.
type queue struct {
	address string
	depth   atomic.Int64
}

func (q *queue) set(depth int64) { q.depth.Store(depth) }

// queue serves the depth of a queue named worker, until the story ends.
func (s *story) queue() *queue {
	s.Helper()
	ln, err := (&net.ListenConfig{}).Listen(s.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	q := &queue{address: ln.Addr().String()}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintf(w, "# TYPE queue_depth gauge\nqueue_depth{queue=\"worker\"} %d\n", q.depth.Load())
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // says that it was closed
	}()
	s.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return q
}

// prometheus starts a server on the node, where pods reach it.
func (s *story) prometheus(targets ...prometheus.Target) *prometheus.Server {
	s.Helper()
	ln, err := (&net.ListenConfig{}).Listen(s.Context(), "tcp", net.JoinHostPort(s.nodeIP(), "0"))
	if err != nil {
		s.Fatal(err)
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		s.Fatal(err)
	}
	return s.startPrometheus(address, targets...)
}

func (s *story) startPrometheus(address string, targets ...prometheus.Target) *prometheus.Server {
	s.Helper()
	binary, err := prometheus.Find(s.Context(), filepath.Join(s.root, ".cluster", "prometheus"))
	if err != nil {
		s.Fatal(err)
	}
	dir := s.TempDir()
	server, err := prometheus.Start(context.Background(), prometheus.Options{Binary: binary, Dir: dir, Address: address, Targets: targets})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := server.Stop(); err != nil {
			s.Error(err)
		}
		if log, err := os.ReadFile(filepath.Join(dir, "log")); err == nil && s.Failed() {
			s.Logf("prometheus: %s", strings.TrimSpace(string(log[max(0, len(log)-2000):])))
		}
	})
	return server
}

// nodeIP is the address at which pods reach what runs beside them.
func (s *story) nodeIP() string {
	s.Helper()
	var nodes corev1.NodeList
	if err := s.client.List(s.Context(), &nodes); err != nil {
		s.Fatal(err)
	}
	for _, node := range nodes.Items {
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				return a.Address
			}
		}
	}
	s.Fatal("the node has no address")
	return ""
}
