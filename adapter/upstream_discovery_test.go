package adapter

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/client-go/discovery"
	"k8s.io/metrics/pkg/apis/custom_metrics"
)

// TestDiscoveryShowsBoth in its old and in its aggregated form.
func TestDiscoveryShowsBoth(t *testing.T) {
	other := newOtherAdapter(t, serves(status(200, "")))
	r := start(t, other.behind)
	client, err := discovery.NewDiscoveryClientForConfig(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	names := func(version string) map[string]int {
		list, err := client.ServerResourcesForGroupVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]int{}
		for _, r := range list.APIResources {
			names[r.Name]++
		}
		return names
	}
	const version = "custom.metrics.k8s.io/v1beta2"
	r.eventually("the upstream's resources", func() string {
		if names(version)["pods/memory"] != 1 {
			return "pods/memory is not listed"
		}
		return ""
	})
	got := names(version)
	if got["pods/requests_per_second"] != 1 || got["functions.sluice.dev/requests_per_second"] != 1 {
		t.Errorf("resources = %v, want ours, and those of both once", got)
	}
	if got := names("external.metrics.k8s.io/v1beta1"); got["pods/memory"] != 1 || got["requests_per_second"] != 1 {
		t.Errorf("external: %v", got)
	}
	if got := names("custom.metrics.k8s.io/v1beta1"); got["pods/memory"] != 0 || len(got) == 0 {
		t.Errorf("v1beta1, which the upstream does not serve: %v", got)
	}
	v1beta1 := strings.Replace(othersRead, "v1beta2", "v1beta1", 1)
	if code, body := r.try(v1beta1, "good"); code != http.StatusNotFound || !strings.Contains(body, "does not serve v1beta1 of custom.metrics.k8s.io, it serves v1beta2") {
		t.Errorf("a read of v1beta1: %d %s", code, body)
	}
	r.eventually("aggregated discovery", func() string {
		_, resources, err := client.ServerGroupsAndResources()
		if err != nil {
			return err.Error()
		}
		for _, list := range resources {
			for _, r := range list.APIResources {
				if list.GroupVersion == version && r.Name == "pods/memory" {
					return ""
				}
			}
		}
		return "pods/memory is not listed"
	})

	other.become(answers(503, "text/html", "down"))
	seen := func() int { other.mu.Lock(); defer other.mu.Unlock(); return len(other.seen) }
	before := seen()
	r.eventually("two more looks", func() string {
		if n := seen() - before; n < 4 {
			return fmt.Sprint(n)
		}
		return ""
	})
	if names(version)["pods/memory"] != 1 {
		t.Error("what the upstream served is forgotten while it is down")
	}
}

// TestDiscoveryLeavesOutWhatContradicts: one resource that the aggregated form of discovery has no place for hides no
// other.
func TestDiscoveryLeavesOutWhatContradicts(t *testing.T) {
	all := &upstreams{own: map[string][]metav1.APIResource{custom_metrics.GroupName: {
		{Name: "pods/requests_per_second", Namespaced: true}, {Name: "namespaces/requests_per_second"},
	}}}
	found := &discovered{versions: map[string][]metav1.APIResource{"v1beta2": {
		{Name: "pods/lies"},
		{Name: "namespaces/lies", Namespaced: true},
		{Name: "nodes"},
		{Name: "nodes/lies", Namespaced: true},
		{Name: ""},
		{Name: "/lies"},
		{Name: "pods/"},
		{Name: "pods/requests_per_second", Namespaced: true, Kind: "theirs"},
		{Name: "pods/memory", Namespaced: true},
		{Name: "pods/memory", Namespaced: true},
		{Name: "nodes/memory"},
	}}}
	version := schema.GroupVersion{Group: custom_metrics.GroupName, Version: "v1beta2"}
	merged := all.merged(version, found)
	var got []string
	for _, r := range merged {
		got = append(got, r.Name+r.Kind)
	}
	want := []string{"pods/requests_per_second", "namespaces/requests_per_second", "nodes", "pods/memory", "nodes/memory"}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	if _, err := endpoints.ConvertGroupVersionIntoToDiscovery(merged); err != nil {
		t.Error(err)
	}
}

func TestDiscoveryRefusesRubbish(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"no list":              answers(200, "application/json", "[1]"),
		"another list":         answers(200, "application/json", `{"groupVersion":"apps/v1"}`),
		"a flood":              serveResources(`{}` + strings.Repeat(",{}", maxResources)),
		"resources of no kind": serveResources(`"pods"`),
		"an error":             status(500, "x"),
		"no version whatever":  answers(404, "text/plain", "404 page not found"),
	} {
		t.Run(name, func(t *testing.T) {
			u := newTestUpstream(t, newOtherAdapter(t, answer))
			if found, err := u.discover(t.Context(), versionsOf(u.group)); err == nil {
				t.Errorf("discovered %v", found)
			}
		})
	}
}

// serveResources answers discovery of any version with resources.
func serveResources(resources string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"groupVersion":%q,"resources":[%s]}`, strings.TrimPrefix(r.URL.Path, "/apis/"), resources)
	}
}

// TestDiscoveryTakesWhatIsThere, up to its bound, and an upstream without a metric.
func TestDiscoveryTakesWhatIsThere(t *testing.T) {
	for resources, want := range map[string]int{"": 0, "{}": 1, "{}" + strings.Repeat(",{}", maxResources-1): maxResources} {
		u := newTestUpstream(t, newOtherAdapter(t, serveResources(resources)))
		u.timeout = time.Minute
		found, err := u.discover(t.Context(), versionsOf(u.group))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(found.versions["v1beta2"]); got != want {
			t.Errorf("%d resources, want %d", got, want)
		}
	}
}
