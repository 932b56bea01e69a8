//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// holdTimeout is that of the functions whose pods do not serve.
const holdTimeout = 6 * time.Second

func holdFor(fn *v1alpha1.Function, d time.Duration) *v1alpha1.Function {
	fn.Spec.Activation.Timeout = &metav1.Duration{Duration: d}
	return fn
}

// podsThatNeverServe: a request for a function whose pod never becomes ready, or crashes while it starts, or whose image is
// not there, is held for activation.timeout and then answered 504 with a reason, which has what the pod says, if it has anything
// to say yet. Once the workload is mended, one that is held is answered by a pod.
func podsThatNeverServe(s *story) {
	bad := map[string]func(*corev1.Container){
		"unready": func(c *corev1.Container) { c.Args = []string{"--start-delay=1h"} },
		"crashes": func(c *corev1.Container) { c.Args = []string{"--delay=-1s"} },
		"imageless": func(c *corev1.Container) {
			c.Image = "docker.io/sluice/nothing:dev"
		},
		// The probe finds a connection and no answer on it.
		"mute": func(c *corev1.Container) { c.ReadinessProbe.HTTPGet.Path = "/?delay=60s" },
	}
	says := map[string]string{
		"unready": "container function: runs, and is not ready", "mute": "container function: runs, and is not ready",
		"crashes": "exit code 2", "imageless": "Image",
	}
	for name, spoil := range bad {
		template := s.template(name)
		spoil(&template.Spec.Containers[0])
		s.deploy(name, 0, template)
		s.service(name)
		s.create(holdFor(proxied(name), holdTimeout))
	}
	for name := range bad {
		s.awaitPhase(name, v1alpha1.Idle, 30*time.Second)
		s.awaitGate(name, true)
	}
	var wg sync.WaitGroup
	inVain := func(name, url, says string) {
		a := call(s.Context(), url, "")
		s.Logf("%s: %s", name, a)
		if said := s.refused(a, http.StatusGatewayTimeout, "HoldTimeout", name); said != "" {
			s.Errorf("%s: %s", name, said)
		}
		if says != "" && (!strings.Contains(a.body, "; pod "+name+"-") || !strings.Contains(a.body, says)) {
			s.Errorf("%s: %s; want that the pod says %q", name, a, says)
		}
		if a.took < holdTimeout || a.took > holdTimeout+2*time.Second {
			s.Errorf("%s: answered after %s; want activation.timeout, %s", name, a.took, holdTimeout)
		}
	}
	for name := range bad {
		url := s.clusterIP("sluice-" + name)
		wg.Go(func() { inVain(name, url, "") })
	}
	for name := range bad {
		url := s.clusterIP("sluice-" + name)
		s.awaitTried(name)
		wg.Go(func() { inVain(name, url, says[name]) })
	}
	wg.Wait()
	for name := range bad {
		url := s.clusterIP("sluice-" + name)
		s.change(name, func(fn *v1alpha1.Function) {
			holdFor(fn, time.Minute).Spec.Activation.Static = []v1alpha1.StaticAnswer{{Path: "/changed", Body: "changed"}}
		})
		// Who has not heard of it would hold what comes for as long as before.
		for _, gate := range s.gates(name) {
			eventually(s.T, 20*time.Second, "the activator at "+gate+" to know of the change", func(ctx context.Context) string {
				if a := askWithin(ctx, http.MethodGet, gate+"/changed", "", time.Second); a.body != "changed" {
					return a.String()
				}
				return ""
			})
		}
		wg.Go(func() {
			if said := call(s.Context(), url, "").ok(); said != "" {
				s.Errorf("%s, mended: %s", name, said)
			}
		})
	}
	for name := range bad {
		d := s.deployment(name)
		patch := client.MergeFrom(d.DeepCopy())
		d.Spec.Template = s.template(name)
		if err := s.client.Patch(s.Context(), d, patch); err != nil {
			s.Fatal(err)
		}
	}
	wg.Wait()
}

// awaitTried waits until the kubelet has tried to start the container of a function's pod: before, the pod has little to say.
func (s *story) awaitTried(name string) {
	s.Helper()
	eventually(s.T, 30*time.Second, "the pod of "+name+" to be tried", func(context.Context) string {
		said := "no pod has a container yet"
		for _, pod := range s.pods(name) {
			for _, c := range pod.Status.ContainerStatuses {
				if c.State.Waiting == nil || c.State.Waiting.Reason != "ContainerCreating" {
					return ""
				}
				said = c.State.Waiting.Reason
			}
		}
		return said
	})
}

// gates are the base URLs of a function's port, one at each activator.
func (s *story) gates(name string) (urls []string) {
	s.Helper()
	port := s.function(name).Status.Gate.Port
	for _, pod := range s.activators() {
		urls = append(urls, fmt.Sprintf("http://%s:%d", pod.Status.PodIP, port))
	}
	return urls
}

// refused says why an answer is not the gate's own with this reason for a function, or "".
func (s *story) refused(a answer, status int, reason, function string) string {
	if a.err != nil || a.status != status {
		return fmt.Sprintf("%s; want status %d", a, status)
	}
	var said struct{ Error, Reason, Function string }
	if err := json.Unmarshal([]byte(a.body), &said); err != nil {
		return fmt.Sprintf("%s: %v", a, err)
	}
	if said.Reason != reason || a.header.Get("Sluice-Reason") != reason || said.Function != s.namespace+"/"+function || said.Error == "" {
		return fmt.Sprintf("%s; want reason %s, of %s", a, reason, function)
	}
	return ""
}

// podsThatTurnBad: what a function that is awake answers while its only pod is frozen, and while it says that it is not
// ready.
func podsThatTurnBad(s *story) {
	template := s.template("proxied")
	template.Spec.Containers[0].ReadinessProbe.TimeoutSeconds = 1 // so that it is noticed soon that the pod is frozen
	s.deploy("proxied", 1, template)
	s.service("proxied")
	// Long enough for Kubernetes to see that a pod is ready again, while a request is held.
	s.create(holdFor(proxied("proxied"), 2*holdTimeout))
	s.awaitPhase("proxied", v1alpha1.Active, 30*time.Second)
	url := s.clusterIP("sluice-proxied")
	s.mustAnswer(url, "")
	pod := s.pods("proxied")[0]

	// Frozen: the kernel takes connections, and nobody answers. The gate sets no limit to an answer: the client does.
	thaw := s.freeze(pod.UID, "function")
	inFlight := make(chan answer, 1)
	go func() { inFlight <- call(s.Context(), url, "") }()
	impatient, cancel := context.WithTimeout(s.Context(), 2*time.Second)
	defer cancel()
	if a := call(impatient, url, ""); a.err == nil {
		s.Errorf("a frozen pod, and a client that waits for 2 s: %s; want its own timeout", a)
	}
	s.awaitPodReady(pod, false)
	s.awaitHeld("proxied")
	// Now it is known to be unready: what comes is held, and what was sent stays where it is.
	if said := s.refused(call(s.Context(), url, ""), http.StatusGatewayTimeout, "HoldTimeout", "proxied"); said != "" {
		s.Errorf("a frozen pod that is known to be unready: %s", said)
	}
	thaw()
	if said := (<-inFlight).ok(); said != "" {
		s.Errorf("what a frozen pod had got, once it goes on: %s", said)
	}
	s.awaitPodReady(pod, true)
	s.mustAnswer(url, "")

	// Unready: held for activation.timeout, or until it is ready again.
	s.unready(pod, time.Hour)
	s.awaitPodReady(pod, false)
	s.awaitHeld("proxied")
	if said := s.refused(call(s.Context(), url, ""), http.StatusGatewayTimeout, "HoldTimeout", "proxied"); said != "" {
		s.Errorf("an unready pod: %s", said)
	}
	go func() { inFlight <- call(s.Context(), url, "") }()
	eventually(s.T, 5*time.Second, "the request to be held", func(ctx context.Context) string {
		if n := s.activatorSum(ctx, v1alpha1.ActivatorHeld, "proxied"); n != 1 {
			return fmt.Sprintf("%v held", n)
		}
		return ""
	})
	s.unready(pod, 0)
	a := <-inFlight
	s.Logf("held until the pod was ready again: %s, Sluice-Cold-Start %s", a, a.header.Get("Sluice-Cold-Start"))
	if said := a.ok(); said != "" || a.header.Get("Sluice-Cold-Start") == "" {
		s.Errorf("a request that waits for the pod to be ready again: %s; want an answer that says how long it was held", a)
	}
}

// podsThatTurnBadDirect: while the only pod of a function in mode Direct is not ready, Kubernetes refuses connections, as
// without Sluice. The gate does not come into the path: it is for functions that sleep.
func podsThatTurnBadDirect(s *story) {
	s.workload("direct", 1)
	s.create(direct("direct"))
	s.awaitPhase("direct", v1alpha1.Active, 30*time.Second)
	url := s.clusterIP("direct")
	s.mustAnswer(url, "")
	before := s.activatorStarted(s.Context(), "direct")
	pod := s.pods("direct")[0]
	s.unready(pod, time.Hour)
	eventually(s.T, 20*time.Second, "connections to be refused", func(ctx context.Context) string {
		if a := call(ctx, url, ""); a.err == nil || !strings.Contains(a.err.Error(), "connection refused") {
			return a.String()
		}
		return ""
	})
	s.unready(pod, 0)
	eventually(s.T, 20*time.Second, "the pod to answer again", func(ctx context.Context) string { return call(ctx, url, "").ok() })
	if n := s.activatorStarted(s.Context(), "direct") - before; n != 0 {
		s.Errorf("%v requests passed through the gate", n)
	}
}

// unready has a pod fail its readiness probe for a while.
func (s *story) unready(pod corev1.Pod, d time.Duration) {
	s.Helper()
	if a := call(s.Context(), fmt.Sprintf("http://%s:8080/unready?for=%s", pod.Status.PodIP, d), ""); a.status != http.StatusOK {
		s.Fatalf("turning pod %s unready: %s", pod.Name, a)
	}
}

// awaitPodReady waits until the EndpointSlices call a pod of a function ready, or not ready.
func (s *story) awaitPodReady(pod corev1.Pod, ready bool) {
	s.Helper()
	eventually(s.T, 20*time.Second, fmt.Sprintf("pod %s to be ready = %v", pod.Name, ready), func(ctx context.Context) string {
		var slices discoveryv1.EndpointSliceList
		if err := s.client.List(ctx, &slices, client.InNamespace(s.namespace), client.MatchingLabels{discoveryv1.LabelServiceName: pod.Labels["app"]}); err != nil {
			return err.Error()
		}
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				if e.TargetRef != nil && e.TargetRef.UID == pod.UID && e.Conditions.Ready != nil && *e.Conditions.Ready == ready {
					return ""
				}
			}
		}
		return "it is not"
	})
}

// awaitHeld waits until each activator holds what comes, as it does once it has heard that there is no ready pod.
func (s *story) awaitHeld(name string) {
	s.Helper()
	for _, gate := range s.gates(name) {
		s.awaitHeldBy(name, gate)
	}
}

// awaitHeldBy does the same of the activator whose port for the function is at url.
func (s *story) awaitHeldBy(name, url string) {
	s.Helper()
	eventually(s.T, 20*time.Second, "requests to be held at "+url, func(ctx context.Context) string {
		if n := s.activatorSum(ctx, v1alpha1.ActivatorHeld, name); n > 0 {
			return fmt.Sprintf("%v are held since before", n)
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		ended := make(chan answer, 1)
		go func() { ended <- call(ctx, url, "") }()
		for {
			if s.activatorSum(s.Context(), v1alpha1.ActivatorHeld, name) > 0 {
				cancel()
				<-ended
				return ""
			}
			select {
			case a := <-ended:
				return a.String()
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}
