package activator

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func created(sec int64) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.CreationTimestamp = metav1.Unix(sec, 0) }
}

func gatePort(port int32) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { gateOf(fn).Port = port }
}

func ready(fn *function) []string {
	addresses := []string{}
	for _, p := range fn.pods.Load().ready {
		addresses = append(addresses, p.address)
	}
	return addresses
}

// Whose a host is stands in the statuses, which the scaler writes. The spec alone, however old its Function, gives nothing.
func TestHostBelongsToWhomItWasGranted(t *testing.T) {
	set := func(tb *table, name string, sec int64, change ...func(*v1alpha1.Function)) {
		tb.setFunction(newTestFunction(name, append(change, created(sec))...))
	}
	tests := []struct {
		name  string
		steps func(*table)
		want  string
	}{
		{"nobody", func(*table) {}, ""},
		{"granted", func(tb *table) { set(tb, "b", 1, hosts("h")) }, "b"},
		{"only wanted", func(tb *table) { set(tb, "b", 1, wants("h")) }, ""},
		{"an older one wants it too", func(tb *table) {
			set(tb, "a", 2, hosts("h"))
			set(tb, "b", 1, wants("h"))
		}, "a"},
		{"the older one came first in the watch", func(tb *table) {
			set(tb, "b", 1, wants("h"))
			set(tb, "a", 2, hosts("h"))
		}, "a"},
		{"dropped, and not passed on yet", func(tb *table) {
			set(tb, "a", 2, hosts("h"))
			set(tb, "a", 2, has("h"))
			set(tb, "b", 1, wants("h"))
		}, "a"},
		{"dropped by a change to Direct", func(tb *table) {
			set(tb, "a", 2, hosts("h"))
			set(tb, "a", 2, has("h"), direct)
		}, "a"},
		{"dropped by the older, and passed on", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "b", 1, has("h"))
			set(tb, "a", 2, hosts("h"))
		}, "a"},
		{"passed on before it was seen to be dropped", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "a", 2, hosts("h"))
			set(tb, "b", 1, has("h"))
		}, "a"},
		{"taken back while the other has it too", func(tb *table) {
			set(tb, "b", 1, has("h"))
			set(tb, "a", 2, hosts("h"))
			set(tb, "b", 1, hosts("h"))
		}, "b"},
		{"granted twice: the older", func(tb *table) {
			set(tb, "a", 2, hosts("h"))
			set(tb, "b", 1, hosts("h"))
		}, "b"},
		{"granted twice, as old: by name", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "a", 1, hosts("h"))
		}, "a"},
		{"withdrawn", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "b", 1, wants("h"))
		}, ""},
		{"owner deleted", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "a", 2, hosts("h"))
			tb.removeFunction(newTestFunction("b").Key())
		}, "a"},
		{"loser deleted", func(tb *table) {
			set(tb, "b", 1, hosts("h"))
			set(tb, "a", 2, hosts("h"))
			tb.removeFunction(newTestFunction("a").Key())
		}, "b"},
		{"without traffic", func(tb *table) {
			set(tb, "b", 1, hosts("h"), func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil })
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tb := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
			tt.steps(tb)
			got := ""
			if fn := tb.ownerOf("h"); fn != nil {
				got = fn.key.Name
			}
			if got != tt.want {
				t.Errorf("owner of the host: got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPortIsAssignedToTheOldestAndMoves(t *testing.T) {
	var got []string
	tb := newTable(func(port int32, fn *function) {
		owner := "nobody"
		if fn != nil {
			owner = fn.key.Name
		}
		got = append(got, cmp.Diff(int32(20000), port)+owner)
	}, newPeers(newMetrics(), Options{}))
	on := func(name string, sec int64, port int32) {
		tb.setFunction(newTestFunction(name, created(sec), gatePort(port)))
	}
	on("young", 2, 20000)
	on("old", 1, 20000)   // takes it over
	on("old", 1, 20000)   // says nothing new
	on("young", 2, 20000) // neither
	tb.removeFunction(newTestFunction("old").Key())
	tb.removeFunction(newTestFunction("young").Key())
	if diff := cmp.Diff([]string{"young", "old", "young", "nobody"}, got); diff != "" {
		t.Errorf("owners of the port (-want +got):\n%s", diff)
	}
}

func TestPodsFollowSlicesAndFunction(t *testing.T) {
	tb := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
	// Slices that are there before the Function count too.
	tb.setSlice(newSlice("hello", 0, "10.0.0.1:80", true))
	tb.setSlice(newSlice("other", 0, "10.0.0.9:80", true))
	tb.setFunction(newTestFunction("hello"))
	fn := tb.functions[newTestFunction("hello").Key()]
	want := func(step string, addresses ...string) {
		t.Helper()
		if diff := cmp.Diff(append([]string{}, addresses...), ready(fn)); diff != "" {
			t.Errorf("%s: ready pods (-want +got):\n%s", step, diff)
		}
	}
	want("function after slice", "10.0.0.1:80")
	tb.setSlice(newSlice("hello", 0, "10.0.0.1:80", false))
	want("not ready")
	gate := newSlice("hello", 1, "10.0.0.2:20000", true)
	gate.Labels[discoveryv1.LabelManagedBy] = v1alpha1.GateManager
	tb.setSlice(gate)
	want("the gate's own slice")
	tb.setSlice(newSlice("hello", 0, "10.0.0.1:80", true))
	want("ready again", "10.0.0.1:80")
	moved := newTestFunction("hello")
	moved.Spec.Traffic.Service.Name = "other"
	tb.setFunction(moved)
	want("another Service", "10.0.0.9:80")
	named := moved.DeepCopy()
	named.Status.Gate = &v1alpha1.GateStatus{ServicePort: "http"}
	tb.setFunction(named)
	want("a port name that the slice does not have")
	tb.setFunction(moved)
	tb.removeSlice(newSlice("other", 0, "10.0.0.9:80", true))
	want("slice removed")
	tb.removeSlice(newSlice("hello", 0, "10.0.0.1:80", true))
	tb.removeFunction(fn.key)
	if len(tb.services) != 0 || len(tb.functions) != 0 {
		t.Errorf("the table keeps %d services and %d functions that nobody needs", len(tb.services), len(tb.functions))
	}
}

func TestCountersOutliveAChangeOfModeButNotTheFunction(t *testing.T) {
	tb := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
	tb.setFunction(newTestFunction("hello"))
	key := newTestFunction("hello").Key()
	tb.functions[key].stats.start()
	tb.setFunction(newTestFunction("hello", direct, gatePort(20001)))
	if got := tb.functions[key].stats.snapshot().started; got != 1 {
		t.Errorf("started after a change of mode: got %d, want 1", got)
	}
	again := newTestFunction("hello")
	again.UID = "another"
	tb.setFunction(again)
	if got := tb.functions[key].stats.snapshot().started; got != 0 {
		t.Errorf("started of a Function created anew: got %d, want 0", got)
	}
}

func TestHostName(t *testing.T) {
	for in, want := range map[string]string{
		"hello.example.com": "hello.example.com", "Hello.Example.COM:8080": "hello.example.com",
		"hello.example.com.": "hello.example.com", "hello.example.com.:80": "hello.example.com",
		"[::1]:8080": "[::1]", "[::1]": "[::1]", "": "",
	} {
		if got := hostName(in); got != want {
			t.Errorf("hostName(%q): got %q, want %q", in, got, want)
		}
	}
}
