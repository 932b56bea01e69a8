//go:build e2e

package e2e

import (
	"context"
	"net/http"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// A health check comes twice a second, through the gate. It neither wakes the function nor, once a real request has, keeps
// it awake; while there is a pod the pod answers it.
func staticAnswers(s *story) {
	host := "hello." + s.namespace + ".example.com"
	fn := idleAfter(proxied("hello", host), 10*time.Second)
	fn.Spec.Activation.Static = []v1alpha1.StaticAnswer{{Path: "/healthz", Body: "asleep\n"}}
	s.asleep(fn)
	door := s.door()
	check := func() string {
		a := ask(s.Context(), http.MethodGet, door+"/healthz", host)
		if a.err != nil || a.status != http.StatusOK {
			s.Errorf("the check: %s", a)
		}
		return a.body
	}
	eventually(s.T, 10*time.Second, "the host to lead to the function", func(ctx context.Context) string {
		if a := ask(ctx, http.MethodGet, door+"/healthz", host); a.status != http.StatusOK {
			return a.String()
		}
		return ""
	})
	for range 6 {
		if got := check(); got != "asleep\n" {
			s.Errorf("while it sleeps the check got %q, want the static answer", got)
		}
		<-time.After(500 * time.Millisecond)
	}
	if got := *s.deployment("hello").Spec.Replicas; got != 0 {
		s.Fatalf("%d replicas: the checks woke the function", got)
	}

	s.mustAnswer(door, host)
	// The activator by which that went knows of the pod, others only once Kubernetes calls it ready.
	s.awaitPhase("hello", v1alpha1.Active, 20*time.Second)
	eventually(s.T, 5*time.Second, "the pod to answer the check, whichever activator has it", func(context.Context) string {
		for range 8 {
			if check() == "asleep\n" {
				return "it got the static answer"
			}
		}
		return ""
	})
	eventually(s.T, time.Minute, "the function to sleep again while checks go on", func(ctx context.Context) string {
		check()
		if fn := s.function("hello"); fn.Status.Phase != v1alpha1.Idle {
			return string(fn.Status.Phase)
		}
		return ""
	})
	if got := s.activatorStarted(s.Context(), "hello"); got != 1 {
		s.Errorf("%v requests were counted, want the one that was none of the checks", got)
	}
}

// Who only wants to read is told to come back, and the function wakes with nobody waiting for it.
func placeholderWakes(s *story) {
	fn := direct("hello")
	fn.Spec.Activation.Placeholder = &v1alpha1.Placeholder{Body: "waking up"}
	s.asleep(fn)
	url := s.clusterIP("hello")
	a := ask(s.Context(), http.MethodGet, url, "")
	if a.status != http.StatusServiceUnavailable || a.body != "waking up" || a.header.Get("Retry-After") == "" || a.took > time.Second {
		s.Errorf("got %s %v, want the placeholder at once", a, a.header)
	}
	s.awaitPhase("hello", v1alpha1.Active, 20*time.Second)
	eventually(s.T, 20*time.Second, "the pod to answer", func(ctx context.Context) string { return ask(ctx, http.MethodGet, url, "").ok() })
}

// A function whose pods do not come up has its requests answered by another Service of its namespace.
func fallbackAnswers(s *story) {
	s.workload("sorry", 1)
	fn := direct("hello")
	fn.Spec.Activation.Timeout = &metav1.Duration{Duration: 2 * time.Second}
	fn.Spec.Activation.Fallback = &v1alpha1.Fallback{Name: "sorry", Port: new(intstr.FromInt32(80))}
	template := s.template("hello")
	template.Spec.Containers[0].Image = "docker.io/sluice/there-is-none:dev"
	s.create(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "hello"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(0)), Template: template, Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
		},
	})
	s.service("hello")
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Idle, 20*time.Second)
	s.awaitGate("hello", true)
	s.awaitCondition("hello", v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready")
	url := s.clusterIP("hello")
	eventually(s.T, 40*time.Second, "the fallback's pod to answer", func(ctx context.Context) string {
		a := call(ctx, url, "")
		if said := a.ok(); said != "" {
			return said
		}
		if a.header.Get("Sluice-Fallback") != "sorry" || a.header.Get("Sluice-Reason") != "HoldTimeout" || !strings.Contains(a.body, "sorry-") {
			s.Errorf("got %s %v, want it from a pod of sorry", a, a.header)
		}
		return ""
	})

	if err := s.client.Delete(s.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "sorry"}}); err != nil {
		s.Fatal(err)
	}
	s.awaitCondition("hello", v1alpha1.ConditionReady, metav1.ConditionFalse, "FallbackMissing", "spec.activation.fallback.name", "sorry")
	eventually(s.T, 20*time.Second, "requests to be refused", func(ctx context.Context) string {
		if a := call(ctx, url, ""); a.status != http.StatusGatewayTimeout || a.header.Get("Retry-After") == "" {
			return a.String()
		}
		return ""
	})
}
