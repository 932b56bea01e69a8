//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// outage is how long the API server is away.
const outage = time.Minute

// withoutAPIServer: the control plane but etcd ends, and comes back after a minute. (Controller manager and scheduler end by
// themselves where they elect a leader, which they do everywhere but here.) Warm traffic goes on through both doors and past
// the gate. A request for a function that sleeps is held until the API server is back, or until its timeout is over, which
// says that the wake has failed. Afterwards all is as before: functions wake by one write, and sleep.
func withoutAPIServer(s *story) {
	host := s.host("proxied")
	s.workload("proxied", 2)
	s.create(proxied("proxied", host))
	s.workload("direct", 1)
	s.create(direct("direct"))
	s.asleep(holdFor(proxied("patient"), 5*time.Minute))
	s.asleep(holdFor(proxied("impatient"), 10*time.Second))
	s.asleep(idleAfter(direct("after"), sleepIdle))
	for _, name := range []string{"proxied", "direct"} {
		s.awaitPhase(name, v1alpha1.Active, 30*time.Second)
	}
	patient, impatient, after := s.clusterIP("sluice-patient"), s.clusterIP("sluice-impatient"), s.clusterIP("after")
	stops := []func(){
		s.steadyLoad(s.clusterIP("sluice-proxied"), 40, false),
		s.steadyLoad(s.clusterIP("sluice-proxied"), 20, true),
		s.hostLoad(s.door(), host, 20, false),
		s.steadyLoad(s.clusterIP("direct"), 20, false),
	}

	programs := []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}
	back := sync.OnceFunc(func() {
		if err := s.cluster.StartPrograms(context.Background(), programs...); err != nil {
			s.Errorf("the stories that follow have no cluster: %v", err)
		}
	})
	defer back()
	if err := s.cluster.StopPrograms(s.Context(), programs...); err != nil {
		s.Fatal(err)
	}
	away := time.Now()
	type held struct {
		answer
		at time.Time
	}
	answers := make(chan held, 1)
	go func() {
		a := askWithin(s.Context(), http.MethodPost, patient, "", 3*time.Minute)
		answers <- held{a, time.Now()}
	}()
	a := call(s.Context(), impatient, "")
	s.Logf("without the API server: %s", a)
	if said := s.refused(a, http.StatusGatewayTimeout, "HoldTimeout", "impatient"); said != "" {
		s.Error(said)
	}
	wait(s.Context(), time.Until(away.Add(outage)))
	select {
	case a := <-answers:
		s.Fatalf("a request that may be held for 5 minutes: %s, while the API server was away", a)
	default:
	}
	back()
	// They look for the API server less and less often, and so would begin with new pods and Services a minute later, and the
	// stories that follow would meet that too.
	for _, name := range []string{"kubelet", "kube-proxy"} {
		s.restartProgram(name)
	}
	returned := time.Now()
	s.Logf("the API server was away for %s", returned.Sub(away).Round(100*time.Millisecond))

	// The scaler sees what is made from now on: one that only followed before looks for the API server as often as one that led.
	s.workload("new", 0)
	s.create(proxied("new"))
	s.awaitPhase("new", v1alpha1.Idle, 45*time.Second) // the Lease of the one that led lasts 15 s
	s.Logf("a new function was set up %s after the API server was back", time.Since(returned).Round(100*time.Millisecond))

	h := <-answers
	s.Logf("held meanwhile: %s; %s after the API server was back", h, h.at.Sub(returned).Round(100*time.Millisecond))
	if said := h.ok(); said != "" {
		s.Errorf("a request that was held until the API server was back: %s", said)
	}
	s.tellOutage("patient", returned, h.at)
	for _, name := range []string{"sluice-activator", "sluice-adapter", "sluice-scaler"} {
		s.awaitRollout(s.T, name, 2)
	}
	s.mustAnswer(after, "")
	s.mustAnswer(impatient, "")
	for name, want := range map[string]int32{"proxied": 2, "direct": 1} {
		if n := *s.deployment(name).Spec.Replicas; n != want {
			s.Errorf("%s has %d replicas; want %d as before", name, n, want)
		}
	}
	for _, stop := range stops {
		stop()
	}
	eventually(s.T, 60*time.Second, "metrics to be known again", func(ctx context.Context) string {
		if rate, err := s.metric(ctx, "proxied", v1alpha1.RequestsPerSecond); err != nil || rate < 0 {
			return fmt.Sprintf("%v (%v)", rate, err)
		}
		return ""
	})
	s.awaitPhase("after", v1alpha1.Idle, 45*time.Second)
	s.Logf("a function was asleep again %s after the API server was back", time.Since(returned).Round(time.Second))
}

// restartProgram ends one of the cluster's programs and starts it again.
func (s *story) restartProgram(name string) {
	s.Helper()
	if err := errors.Join(s.cluster.StopPrograms(s.Context(), name), s.cluster.StartPrograms(s.Context(), name)); err != nil {
		s.Fatal(err)
	}
}

// What Sluice may add to the time that Kubernetes itself needs after the API server is back.
const (
	wokenAfter    = 6 * time.Second // from the API server's return to the wake
	answeredAfter = 2 * time.Second // from the pod's address to the answer
)

// tellOutage tells, and checks, when a function that was asked for in the outage was woken, by one write, when its pod had
// an address, and when the request was answered.
func (s *story) tellOutage(name string, returned, answered time.Time) {
	s.Helper()
	wakes := s.wakes(name)
	if len(wakes) != 1 {
		s.Fatalf("%d accepted wakes of the function that was asked for meanwhile; want 1", len(wakes))
	}
	addresses := s.writes(func(w write) bool {
		return w.ObjectRef.Resource == "endpointslices" && strings.HasPrefix(w.ObjectRef.Name, name+"-") && w.StageTimestamp.After(wakes[0].StageTimestamp)
	})
	if len(addresses) == 0 {
		s.Fatal("no EndpointSlice was written after the wake")
	}
	woken, address := wakes[0].StageTimestamp, addresses[0].StageTimestamp
	s.Logf("from the return of the API server: woken after %s, the pod's address after %s, the answer after %s",
		woken.Sub(returned).Round(100*time.Millisecond), address.Sub(returned).Round(100*time.Millisecond), answered.Sub(returned).Round(100*time.Millisecond))
	if late := woken.Sub(returned); late > wokenAfter {
		s.Errorf("woken %s after the API server was back; want %s at most", late, wokenAfter)
	}
	if late := answered.Sub(address); late > answeredAfter {
		s.Errorf("answered %s after the pod had an address; want %s at most", late, answeredAfter)
	}
}
