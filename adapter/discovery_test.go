package adapter

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestDiscoveryIsConstant(t *testing.T) {
	got := map[string][]string{}
	for _, info := range (functionMetrics{fakeReader{}}).ListAllMetrics() {
		if info.Namespaced != (info.GroupResource != namespaces) {
			t.Errorf("%+v: namespaced is %t", info.GroupResource, info.Namespaced)
		}
		got[info.GroupResource.String()] = append(got[info.GroupResource.String()], info.Metric)
	}
	all := []string{"requests_per_second", "requests_in_flight", "request_duration_seconds", "idle_seconds"}
	want := map[string][]string{
		"functions.sluice.dev": all, "functions.kubeless.io": all, "deployments.apps": all, "statefulsets.apps": all,
		"services": all, "pods": all[:3], "namespaces": all[:2],
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	var external []string
	for _, info := range (functionMetrics{fakeReader{}}).ListAllExternalMetrics() {
		external = append(external, info.Metric)
	}
	if diff := gocmp.Diff(all, external); diff != "" {
		t.Error("external, -want +got:\n" + diff)
	}
}
