package scaler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// hostScenario plays the statuses of the Functions that have to do with one host; see testdata/hosts.txt.
type hostScenario struct {
	hosts  hosts
	claims []hostClaim
}

// look settles one Function after the other. A line is NAME, followed by what changes about it before; "later" is without a look.
func (s *hostScenario) look(t *testing.T, d *datadriven.TestData) string {
	lag := d.HasArg("lag")
	var out strings.Builder
	for line := range strings.Lines(d.Input) {
		words := strings.Fields(line)
		name := types.NamespacedName{Name: words[0]}
		i := slices.IndexFunc(s.claims, func(c hostClaim) bool { return c.Function == name })
		if i < 0 {
			i = len(s.claims)
			s.claims = append(s.claims, hostClaim{Function: name})
		}
		c := &s.claims[i]
		c.Lingers = false
		looked := true
		for _, word := range words[1:] {
			var sec int64
			switch _, err := fmt.Sscanf(word, "created=%d", &sec); {
			case err == nil:
				c.Created = time.Unix(sec, 0)
			case word == "wants":
				c.Wants = true
			case word == "drops", word == "deleted":
				c.Wants = false
			case word == "has":
				c.Holds = true
			case word == "later":
				looked = false
			case word == "lingers":
				c.Lingers = true
			default:
				d.Fatalf(t, "unknown word %q", word)
			}
		}
		if looked {
			out.WriteString(s.settle(t, i, lag) + "\n")
		}
	}
	return out.String()
}

func (s *hostScenario) settle(t *testing.T, i int, lag bool) string {
	me := s.claims[i]
	v, err := s.hosts.settle("h", me, func() ([]hostClaim, error) {
		return slices.Concat(s.claims[:i:i], s.claims[i+1:]), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !lag {
		s.claims[i].Holds = v.Hold
	}
	switch name := me.Function.Name; {
	case v.Hold && me.Wants:
		return name + " holds it"
	case v.Hold:
		return name + " keeps it until another has it"
	case v.Rival.Name != "":
		return name + ": taken by " + v.Rival.Name
	default:
		return name + ": nothing"
	}
}

func proxiedAt(host ...string) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied, Hosts: host} }
}

// hostsOf are the hosts granted to a Function.
func (s *story) hostsOf(name string) []string {
	s.Helper()
	if g := s.function(name).Status.Gate; g != nil {
		return g.Hosts
	}
	return nil
}

func (s *story) wantHosts(name string, want ...string) {
	s.Helper()
	if got := s.hostsOf(name); !slices.Equal(got, want) {
		s.Errorf("hosts granted to %s: got %q, want %q", name, got, want)
	}
}

// A Function that names a host later than another gets it when the other lets go of it, and no moment before; in
// between, one of the two is always served under it.
func TestHostMovesBetweenFunctions(t *testing.T) {
	old := newFunction("old", proxiedAt())
	young := newFunction("young", proxiedAt("h.example"), func(fn *v1alpha1.Function) {
		fn.CreationTimestamp = metav1.NewTime(fn.CreationTimestamp.Add(time.Hour))
	})
	objects := append(awakeWorld(old), newDeployment("young", 1), newService("young"), newSlice("default", "young", podEndpoints("young-1")...), young)
	inStory(t, objects, func(s *story) {
		var rung []string
		s.r.ring = func(fn types.NamespacedName) { rung = append(rung, fn.Name) }
		s.reconcile("young")
		s.reconcile("old")
		s.wantHosts("young", "h.example")

		change(s, "old", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Hosts = []string{"h.example", "o.example"} })
		s.reconcile("old")
		s.wantHosts("old", "o.example")
		s.wantCondition("old", "Ready", metav1.ConditionFalse, "HostConflict", "h.example", "default/young")
		s.restart()
		s.r.ring = func(fn types.NamespacedName) { rung = append(rung, fn.Name) }
		s.reconcile("old")
		s.reconcile("young")
		s.wantHosts("old", "o.example")
		s.wantHosts("young", "h.example")
		s.wantCondition("young", "Ready", metav1.ConditionTrue, "Ready")

		change(s, "young", func(fn *v1alpha1.Function) { fn.Spec.Traffic.Hosts = nil })
		if again := s.reconcile("young").RequeueAfter; again == 0 || again > soon {
			s.Errorf("with the host on its way, the next look is in %s, want one soon", again)
		}
		s.wantHosts("young", "h.example")
		s.reconcile("old")
		s.wantHosts("old", "h.example", "o.example")
		s.wantCondition("old", "Ready", metav1.ConditionTrue, "Ready")
		s.reconcile("young")
		s.wantHosts("young")
		if !slices.Equal(rung, []string{"old"}) {
			s.Errorf("reconciled for the host that was let go: %q, want old", rung)
		}
		s.writes = nil
		s.reconcile("young")
		s.reconcile("old")
		s.wroteNothing()
	})
}

// A host that nobody else wants is served for some seconds more: whoever gets it may come a moment later.
func TestHostLingers(t *testing.T) {
	inStory(t, awakeWorld(newFunction("hello", proxiedAt("h.example"))), func(s *story) {
		s.reconcile("hello")
		change(s, "hello", func(fn *v1alpha1.Function) {
			fn.Spec.Traffic = newFunction("hello").Spec.Traffic // mode Direct
		})
		again := s.reconcile("hello").RequeueAfter
		s.wantHosts("hello", "h.example")
		if again == 0 || again > hostLinger {
			s.Errorf("the next look is in %s, want one within %s", again, hostLinger)
		}
		s.pass(hostLinger)
		s.reconcile("hello")
		s.wantHosts("hello")

		// Taken back before the time is up, it is as if nothing had been.
		change(s, "hello", proxiedAt("h.example"))
		s.reconcile("hello")
		change(s, "hello", proxiedAt())
		s.reconcile("hello")
		s.pass(hostLinger / 2)
		change(s, "hello", proxiedAt("h.example"))
		s.reconcile("hello")
		change(s, "hello", proxiedAt())
		s.reconcile("hello")
		s.pass(hostLinger / 2)
		s.reconcile("hello")
		s.wantHosts("hello", "h.example")
	})
}

// A Function that is deleted goes only once the Function that waits for its host has it.
func TestDeletedFunctionPassesItsHostOn(t *testing.T) {
	heir := newFunction("heir", proxiedAt("h.example"))
	gone := newFunction("gone", proxiedAt("h.example"), func(fn *v1alpha1.Function) {
		fn.Status.Gate = &v1alpha1.GateStatus{Port: 20005, Hosts: []string{"h.example"}}
	})
	objects := append(awakeWorld(gone), newDeployment("heir", 1), newService("heir"), newSlice("default", "heir", podEndpoints("heir-1")...), heir)
	inStory(t, objects, func(s *story) {
		s.reconcile("gone")
		s.reconcile("heir")
		s.wantCondition("heir", "Ready", metav1.ConditionFalse, "HostConflict", "default/gone")
		if err := s.Delete(s.Context(), s.function("gone")); err != nil {
			s.Fatal(err)
		}
		s.reconcile("gone")
		if s.function("gone") == nil {
			s.Fatal("the Function went before its host was passed on")
		}
		s.reconcile("heir")
		s.wantHosts("heir", "h.example")
		s.reconcile("gone")
		if s.function("gone") != nil {
			s.Error("the Function is still there after its host was passed on")
		}
	})
}

// Another hand's Function with the same workload loses its hosts with everything else.
func TestSupersededFunctionHoldsNoHost(t *testing.T) {
	first := newFunction("first", func(fn *v1alpha1.Function) {
		fn.Spec.WorkloadRef = &v1alpha1.WorkloadRef{Name: "hello"}
		fn.Spec.Traffic.Service.Name = "first"
	})
	hello := newFunction("hello", proxiedAt("h.example"), func(fn *v1alpha1.Function) {
		fn.CreationTimestamp = metav1.NewTime(fn.CreationTimestamp.Add(time.Hour))
		fn.Status.Gate = &v1alpha1.GateStatus{Port: 20005, Hosts: []string{"h.example"}}
	})
	inStory(t, append(awakeWorld(hello), []client.Object{first}...), func(s *story) {
		s.reconcile("hello")
		s.wantCondition("hello", "Ready", metav1.ConditionFalse, "WorkloadConflict")
		s.wantHosts("hello")
	})
}
