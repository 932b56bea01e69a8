//go:build integration

package integration

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Without a broker the lag is an error in words, for whoever reads it and in the conditions, and nothing scales: what is
// awake does not sleep, what sleeps does not wake, and a function that is healthy beside it is untouched.
func (w *world) kafkaAway(t *testing.T) {
	silent := silentServer(t)
	for _, tt := range []struct {
		name     string
		server   string
		authRef  string
		replicas int32
		want     []string // what the metrics API says
	}{
		{name: "lag-refused", server: nobody(t), replicas: 2, want: []string{"kafka_lag", "connection refused"}},
		{name: "lag-silent", server: silent, replicas: 2, want: []string{"kafka_lag", silent}},
		{name: "lag-asleep", server: silent, replicas: 0, want: []string{"kafka_lag", silent}},
		{name: "lag-forbidden", server: strings.Replace(silent, "127.0.0.1", "localhost", 1), replicas: 2, want: []string{"kafka_lag", "localhost:", "--kafka-allow"}},
		{name: "lag-secret", server: silent, authRef: "kafka", replicas: 2, want: []string{"kafka_lag", "authRef", "default/kafka"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w.workload(t, tt.name, tt.replicas)
			fn := lagging(tt.name, tt.server)
			if tt.authRef != "" {
				fn.Spec.Metrics[0].KafkaLag.AuthRef = &v1alpha1.SecretRef{Name: tt.authRef}
			}
			w.create(t, fn)
			eventually(t, 30*time.Second, "the metrics API to say why", w.unread(tt.name, v1alpha1.KafkaLag, tt.want...))
			eventually(t, 10*time.Second, "the partitions to be unknown too", w.unread(tt.name, v1alpha1.KafkaPartitions, tt.want[1:]...))
			w.noParts(t, tt.name, tt.want[1:]...)
			if tt.replicas > 0 {
				eventually(t, 60*time.Second, "the HPA to say why", w.hpaSays("sluice-"+tt.name, tt.want...))
				eventually(t, 30*time.Second, "the Function to say why", w.metricsUnknown(tt.name, tt.want...))
			} else {
				w.awaitPhase(t, tt.name, v1alpha1.Idle)
			}
			before := w.version(t, tt.name)
			w.adapterIsReady(t)
			hold, cancel := context.WithTimeout(t.Context(), 3*fn.IdleAfter())
			defer cancel()
			<-hold.Done()
			if n := w.replicas(t.Context(), t, tt.name); n != tt.replicas {
				t.Errorf("%d replicas while the lag is unknown; want %d", n, tt.replicas)
			}
			if after := w.version(t, tt.name); tt.replicas == 0 && after != before {
				t.Error("a sleeping function was written to")
			}
			var hpa autoscalingv2.HorizontalPodAutoscaler
			if err := w.client.Get(t.Context(), key("sluice-"+tt.name), &hpa); err != nil || hpa.Spec.MaxReplicas != 5 {
				t.Errorf("maxReplicas %d with unknown partitions (%v); want 5", hpa.Spec.MaxReplicas, err)
			}
		})
	}
}

// adapterIsReady fails unless the adapter says so, which neither a broker that refuses nor one that hangs is to change.
func (w *world) adapterIsReady(t *testing.T) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.adapter+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if said, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Errorf("the adapter is not ready: %s: %s", answer.Status, said)
	}
}

// lagging is a Function on the lag of a group alone.
func lagging(name, server string) *v1alpha1.Function {
	fn := function(name)
	fn.Spec.Traffic, fn.Spec.Activation = nil, v1alpha1.Activation{}
	fn.Spec.Metrics = []v1alpha1.Metric{{KafkaLag: &v1alpha1.KafkaLagMetric{
		BootstrapServers: []string{server}, Topic: "orders", Group: name, Target: resource.MustParse("100"),
	}}}
	return fn
}

// unread says what is wrong until reading a metric is an error with each of the words, of the answer itself.
func (w *world) unread(name, metric string, words ...string) func(context.Context) string {
	return func(ctx context.Context) string {
		err := w.kube.Discovery().RESTClient().Get().
			AbsPath("/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/" + name + "/" + metric).
			Do(ctx).Error()
		if err == nil {
			return metric + " is known"
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				return fmt.Sprintf("%q is not in: %v", word, err)
			}
		}
		return ""
	}
}

// noParts reads what a lag is made of that is not known.
func (w *world) noParts(t *testing.T, name string, words ...string) {
	t.Helper()
	raw, err := w.kube.Discovery().RESTClient().Get().
		AbsPath("/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/" + name + "/kafka_lag/partitions").DoRaw(t.Context())
	var got struct {
		Group      string
		Lag        *int64
		Error      string
		Partitions []any
	}
	if err := errors.Join(err, json.Unmarshal(raw, &got)); err != nil {
		t.Fatalf("partitions: %v in %s", err, raw)
	}
	known := got.Lag != nil || got.Group != name || len(got.Partitions) > 0
	for _, word := range words {
		known = known || !strings.Contains(got.Error, word)
	}
	if known {
		t.Errorf("partitions: %s, want unknown for %q", raw, words)
	}
}

// metricsUnknown says what is wrong until the condition MetricsAvailable is False with each of the words.
func (w *world) metricsUnknown(name string, words ...string) func(context.Context) string {
	return func(ctx context.Context) string {
		var fn v1alpha1.Function
		if err := w.client.Get(ctx, key(name), &fn); err != nil {
			return err.Error()
		}
		c := meta.FindStatusCondition(fn.Status.Conditions, v1alpha1.ConditionMetricsAvailable)
		if c == nil || c.Status != metav1.ConditionFalse {
			return fmt.Sprintf("MetricsAvailable is %+v", c)
		}
		for _, word := range words {
			if !strings.Contains(c.Message, word) {
				return fmt.Sprintf("%q is not in: %s", word, c.Message)
			}
		}
		return ""
	}
}

// nobody is an address at which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	address := listen(t)
	if err := address.Close(); err != nil {
		t.Fatal(err)
	}
	return address.Addr().String()
}

// silentServer is the address of a server that accepts connections, as the kernel does for it, and never answers.
func silentServer(t *testing.T) string {
	t.Helper()
	server := listen(t)
	t.Cleanup(func() { _ = server.Close() })
	return server.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}
