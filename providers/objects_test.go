package providers

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var (
	deployments = schema.GroupResource{Group: "apps", Resource: "deployments"}
	services    = schema.GroupResource{Resource: "services"}
)

func named(namespace, name, workload, service string) Function {
	return Function{
		Name:     types.NamespacedName{Namespace: namespace, Name: name},
		Workload: Object{Resource: deployments, Name: workload, Exists: true},
		Service:  Object{Resource: services, Name: service, Exists: true},
	}
}

func TestOwner(t *testing.T) {
	s := NewStore(Intervals{})
	s.SetFunction(named("a", "two", "two", "shared"), nil)
	s.SetFunction(named("a", "one", "one", "shared"), nil)
	s.SetFunction(named("b", "three", "three", ""), nil)
	owner := func(namespace string, resource schema.GroupResource, name string) string {
		info, err := s.Owner(namespace, resource, name)
		if err != nil {
			return err.Error()
		}
		return info.Name.String()
	}
	check := func(want map[[3]string]string) {
		t.Helper()
		for of, want := range want {
			resource := map[string]schema.GroupResource{"deployment": deployments, "service": services}[of[1]]
			if got := owner(of[0], resource, of[2]); got != want {
				t.Errorf("owner of %v = %q, want %q", of, got, want)
			}
		}
	}
	none := ErrNoFunction.Error()
	check(map[[3]string]string{
		{"a", "deployment", "one"}:    "a/one",
		{"a", "deployment", "two"}:    "a/two",
		{"a", "service", "shared"}:    "it belongs to 2 functions, a/one, a/two: ask for one of them",
		{"b", "deployment", "three"}:  "b/three",
		{"b", "service", ""}:          none,
		{"b", "service", "shared"}:    none,
		{"a", "service", "one"}:       none,
		{"", "deployment", "one"}:     none,
		{"a", "deployment", "shared"}: none,
	})
	s.SetFunction(named("a", "two", "moved", "own"), nil)
	proxied := named("a", "one", "one", "shared")
	proxied.Rule.Proxied = true // is measured anew, and owns the same
	s.SetFunction(proxied, nil)
	check(map[[3]string]string{
		{"a", "deployment", "two"}:   none,
		{"a", "deployment", "moved"}: "a/two",
		{"a", "service", "shared"}:   "a/one",
		{"a", "deployment", "one"}:   "a/one",
		{"a", "service", "own"}:      "a/two",
	})
	s.DeleteFunction(types.NamespacedName{Namespace: "a", Name: "one"})
	s.DeleteFunction(types.NamespacedName{Namespace: "a", Name: "two"})
	s.DeleteFunction(types.NamespacedName{Namespace: "b", Name: "three"})
	if len(s.owners)+len(s.functions)+len(s.namespaces[""].functions) != 0 || len(s.namespaces) != 1 {
		t.Errorf("left over: %v %v %v", s.owners, s.functions, s.namespaces)
	}
}

func TestListOfNamespaces(t *testing.T) {
	s := NewStore(Intervals{})
	for _, name := range []string{"b/two", "a/three", "b/one", "a/one", "c/x"} {
		namespace, name, _ := strings.Cut(name, "/")
		s.SetFunction(named(namespace, name, name, name), nil)
	}
	s.DeleteFunction(types.NamespacedName{Namespace: "c", Name: "x"})
	for namespace, want := range map[string][]string{
		"": {"a/one", "a/three", "b/one", "b/two"}, "a": {"a/one", "a/three"}, "b": {"b/one", "b/two"}, "c": nil,
	} {
		var got []string
		for _, info := range s.List(namespace) {
			got = append(got, info.Name.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("namespace %q (-want +got):\n%s", namespace, diff)
		}
	}
}

func (w *world) podValue(n int, metric string) (Value, error) {
	return w.store.PodValue("default", fmt.Sprintf("hello-%d", n), metric)
}

func TestPodValues(t *testing.T) {
	fn := timed
	fn.Rule.Gauge = true
	inWorld(t, fn, func(w *world) {
		a := activator(1, 0)
		a.held = 5
		w.acts = []*process{a}
		one, two := pod(1, 0).old(), pod(2, 900*time.Millisecond).old()
		one.rate, one.busy, one.lasts = 30, 3, 0.1
		two.rate, two.busy, two.lasts = 10, 1, 0.5
		w.pods = []*process{one, two}
		w.list()
		w.run(40 * time.Second)
		check := func(n int, metric string, want float64) Value {
			t.Helper()
			v, err := w.podValue(n, metric)
			if err != nil || v.Value < want*0.99 || v.Value > want*1.01 {
				t.Fatalf("%s of pod %d = %+v, %v; want %v", metric, n, v, err, want)
			}
			return v
		}
		for i, p := range w.pods {
			check(i+1, v1alpha1.RequestsPerSecond, p.rate)
			check(i+1, v1alpha1.RequestsInFlight, p.busy) // none that is held
			check(i+1, v1alpha1.RequestDurationSeconds, p.lasts)
		}
		w.want(v1alpha1.RequestsInFlight, 9)

		// Each has an age of its own, and the activators' does not matter.
		a.down, one.down = errors.New("timeout"), errors.New("reset")
		w.run(3500 * time.Millisecond)
		if v := check(1, v1alpha1.RequestsPerSecond, 30); time.Since(v.At) < 5*time.Second {
			t.Errorf("pod 1 does not answer, and its value is %s old", time.Since(v.At))
		}
		if v := check(2, v1alpha1.RequestsPerSecond, 10); time.Since(v.At) > 2*time.Second || v.Window != 30*time.Second {
			t.Errorf("value of pod 2 is %s old over %s", time.Since(v.At), v.Window)
		}
		w.run(3 * time.Second)
		_, err := w.podValue(1, v1alpha1.RequestsPerSecond)
		if u := (*Unknown)(nil); !errors.As(err, &u) || u.Reason != Stale || u.Err == nil {
			t.Errorf("pod that does not answer: %v", err)
		}
		for metric, want := range map[string]Reason{v1alpha1.IdleSeconds: NoMetric, "nonsense": NoMetric} {
			_, err = w.podValue(2, metric)
			if u := (*Unknown)(nil); !errors.As(err, &u) || u.Reason != want {
				t.Errorf("%s of a pod: %v, want %s", metric, err, want)
			}
		}

		// A young pod: over the time that it has.
		three := pod(3, 0).fresh()
		three.rate = 10
		w.pods = []*process{two, three}
		w.list()
		_, err = w.podValue(3, v1alpha1.RequestsPerSecond)
		if u := (*Unknown)(nil); !errors.As(err, &u) || u.Reason != NoData {
			t.Errorf("pod that was not asked: %v", err)
		}
		w.run(9 * time.Second)
		if v := check(3, v1alpha1.RequestsPerSecond, 10); v.Window > 9*time.Second || v.Window < 6*time.Second {
			t.Errorf("window of a pod of 9 s: %s", v.Window)
		}
		if _, err = w.podValue(1, v1alpha1.RequestsPerSecond); !errors.Is(err, ErrNoPod) {
			t.Errorf("pod that is gone: %v", err)
		}
		w.store.DeleteFunction(hello)
		if _, err = w.podValue(2, v1alpha1.RequestsPerSecond); !errors.Is(err, ErrNoPod) {
			t.Errorf("pod of a function that is gone: %v", err)
		}
		if len(w.store.pods)+len(w.store.targets) != len(w.acts) {
			t.Errorf("left over: %d pods, %d targets", len(w.store.pods), len(w.store.targets))
		}
	})
}

func TestPodsOf(t *testing.T) {
	other := types.NamespacedName{Namespace: "other", Name: "hello"}
	inWorld(t, direct, func(w *world) {
		w.pods = []*process{pod(2, 0), pod(1, 0), pod(3, 0)}
		w.pods[2].Pod = Object{} // not heard of yet
		w.list()
		elsewhere := pod(0, 0).Endpoint
		elsewhere.Function = other
		fn := direct
		fn.Name = other
		w.store.SetFunction(fn, []Endpoint{elsewhere, w.pods[0].Endpoint}) // the latter is not its own
		check := func(namespace string, want ...string) {
			t.Helper()
			var got []string
			for _, p := range w.store.Pods(namespace) {
				got = append(got, p.Function.String()+" "+p.Pod.Name+" "+p.Pod.Labels["pod"])
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("pods of %q (-want +got):\n%s", namespace, diff)
			}
		}
		check("default", "default/hello hello-1 1", "default/hello hello-2 2")
		check("", "default/hello hello-1 1", "default/hello hello-2 2", "other/hello hello-0 0")
		w.pods[2].Pod = Object{Name: "hello-3"}
		w.pods[0].Pod.Labels = map[string]string{"pod": "changed"}
		w.list()
		check("default", "default/hello hello-1 1", "default/hello hello-2 changed", "default/hello hello-3 ")
		if _, err := w.podValue(3, v1alpha1.RequestsPerSecond); errors.Is(err, ErrNoPod) {
			t.Error("a pod whose name was heard of late has no value")
		}

		fn = direct
		fn.Name.Name = "second"
		shared := w.pods[1].Endpoint
		shared.Function = fn.Name
		w.store.SetFunction(fn, []Endpoint{shared})
		_, err := w.podValue(1, v1alpha1.RequestsPerSecond)
		want := &Ambiguous{Functions: []types.NamespacedName{hello, fn.Name}}
		if a := (*Ambiguous)(nil); !errors.As(err, &a) || !cmp.Equal(a, want) {
			t.Errorf("pod of two functions: %v, want %v", err, want)
		}
	})
}

func TestPodWithoutTheCounter(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		one, two := pod(1, 0).old(), pod(2, 0).old()
		one.noCount, two.noCount = true, true
		w.pods = []*process{one, two}
		w.list()
		w.run(20 * time.Second)
		_, err := w.podValue(1, v1alpha1.RequestsPerSecond)
		if u := (*Unknown)(nil); !errors.As(err, &u) || u.Reason != CounterMissing {
			t.Errorf("before any pod has shown the counter: %v", err)
		}
		two.noCount, two.base = false, 1
		w.run(2 * time.Second)
		if v, err := w.podValue(1, v1alpha1.RequestsPerSecond); err != nil || v.Value != 0 {
			t.Errorf("once another pod has shown it: %v, %v; want 0", v, err)
		}
	})
}

// A Function that was deleted and made again at once may be told of as one that has changed.
func TestInfoHasTheUID(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		for _, uid := range []types.UID{"first", "second"} {
			w.fn.UID = uid
			w.list()
			if info, err := w.store.Info(hello); err != nil || info.UID != uid {
				t.Errorf("UID %q (%v), want %q", info.UID, err, uid)
			}
			if list := w.store.List("default"); len(list) != 1 || list[0].UID != uid {
				t.Errorf("listed %+v, want UID %q", list, uid)
			}
		}
	})
}
