package scaler

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"
)

// rights are those that the manifest gives the scaler by a ClusterRole or Role: "get apps/deployments", with a name
// where they are for one object only.
func rights(t testing.TB, kind string) []string {
	t.Helper()
	manifest, err := os.ReadFile("../manifests/base/scaler.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for doc := range strings.SplitSeq(string(manifest), "\n---\n") {
		var role rbacv1.ClusterRole // a Role has the same members
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != kind {
			continue
		}
		for _, rule := range role.Rules {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						for _, name := range names {
							all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", verb, path.Join(group, resource), name)))
						}
					}
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func verbs(resource string, all ...string) []string {
	var rights []string
	for _, verb := range all {
		rights = append(rights, verb+" "+resource)
	}
	return rights
}

// The manifest grants what the scaler uses, and nothing more. Of each: who uses it.
func TestRightsAreTheLeast(t *testing.T) {
	want := slices.Concat(
		verbs("sluice.dev/functions", "get", "list", "watch", "patch"), // cache; finalizer
		verbs("sluice.dev/functions/status", "patch"),
		verbs("apps/deployments", "get", "list", "watch"),  // cache
		verbs("apps/statefulsets", "get", "list", "watch"), // cache
		verbs("apps/deployments/scale", "patch"),
		verbs("apps/statefulsets/scale", "patch"),
		verbs("autoscaling/horizontalpodautoscalers", "get", "list", "watch", "create", "update", "delete"),
		verbs("services", "get", "list", "watch", "create", "update", "delete"),
		verbs("discovery.k8s.io/endpointslices", "get", "list", "watch", "create", "update", "delete"),
		verbs("events.k8s.io/events", "create", "patch"), // patch: a series
		verbs("custom.metrics.k8s.io/*", "get"),          // metrics have names of the users' own, and RBAC knows no "functions.sluice.dev/*"
	)
	slices.Sort(want)
	if diff := cmp.Diff(want, rights(t, "ClusterRole")); diff != "" {
		t.Errorf("ClusterRole (-want +got):\n%s", diff)
	}
	want = slices.Concat(
		verbs("coordination.k8s.io/leases", "create"), // a name can not be required of what does not exist
		[]string{"get coordination.k8s.io/leases " + name, "update coordination.k8s.io/leases " + name},
		verbs("events", "create", "patch"), // of the leader election
	)
	slices.Sort(want)
	if diff := cmp.Diff(want, rights(t, "Role")); diff != "" {
		t.Errorf("Role (-want +got):\n%s", diff)
	}
}

// authorize fails the story at a write that the manifest does not grant.
func (s *story) authorize(verb string, obj client.Object, subresource string) {
	gvk, err := apiutil.GVKForObject(obj, s.Scheme())
	if err != nil {
		s.Error(err)
		return
	}
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	right := verb + " " + path.Join(resource.Group, resource.Resource, subresource)
	if !slices.Contains(s.granted, right) {
		s.Errorf("the scaler needs %q, which its ClusterRole does not grant", right)
	}
}

// Reads of all Functions of a namespace are of the name "*", so that the API server authorizes them as get.
func TestPollsAreGets(t *testing.T) {
	resolver := request.RequestInfoFactory{APIPrefixes: sets.NewString("apis", "api"), GrouplessAPIPrefixes: sets.NewString("api")}
	granted := rights(t, "ClusterRole")
	api := &fakeAPI{at: time.Now()}
	var seen atomic.Int32
	p, _ := newTestPoller(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := resolver.NewRequestInfo(r)
		if err != nil {
			t.Error(err)
		}
		right := info.Verb + " " + path.Join(info.APIGroup, info.Resource, info.Subresource)
		if !slices.Contains(granted, right) && !slices.Contains(granted, info.Verb+" "+info.APIGroup+"/*") {
			t.Errorf("%s needs %q, which is not granted", r.URL.Path, right)
		}
		seen.Add(1)
		api.ServeHTTP(w, r)
	}))
	p.track(hello, proxiedInterest())
	p.poll(t.Context())
	if got := seen.Load(); got != 5 {
		t.Errorf("%d requests, want 3 lists and 2 questions", got)
	}
}
