package adapter

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationfake "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/fake"
)

// mustLook has k look once at everything.
func (k *keeper) mustLook(t *testing.T) {
	t.Helper()
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.register(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// external is the APIService of external.metrics.k8s.io; nil if there is none.
func (k *keeper) external(t *testing.T) *apiregistrationv1.APIService {
	t.Helper()
	a, err := k.bundles.client.Get(t.Context(), externalAPIService, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// state is what the metric says of the APIService of external.metrics.k8s.io.
func (k *keeper) state() string {
	for _, o := range []ownership{ours, foreign, missing} {
		if testutil.ToFloat64(k.metrics.apiService.WithLabelValues(externalAPIService, string(o))) == 1 {
			return string(o)
		}
	}
	return ""
}

// said is the status of the APIService of external.metrics.k8s.io.
func (k *keeper) said(t *testing.T) string {
	t.Helper()
	status, err := k.bundles.status.client.Get(t.Context(), statusConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return status.Data[externalAPIService]
}

func TestExternalIsCreatedWhileThereIsNone(t *testing.T) {
	objects := ourAPIServices()
	objects[1].(*apiregistrationv1.APIService).UID = "uid-of-v1beta2"
	k := newTestKeeper(fake.NewClientset(), apiregistrationfake.NewSimpleClientset(objects...))
	answering := false
	k.bundles.answering = func() bool { return answering }
	k.mustLook(t)
	if a := k.external(t); a != nil {
		t.Fatal("created before the adapter answers")
	}
	if got := k.state(); got != "missing" {
		t.Errorf("state %q, want missing", got)
	}
	answering = true
	k.mustLook(t)
	want := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "v1beta1.external.metrics.k8s.io",
			Labels: map[string]string{"app.kubernetes.io/managed-by": "sluice-adapter", "app.kubernetes.io/part-of": "sluice"},
			// Uninstalling the manifests takes it along.
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apiregistration.k8s.io/v1", Kind: "APIService", Name: "v1beta2.custom.metrics.k8s.io", UID: "uid-of-v1beta2",
			}},
		},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: "external.metrics.k8s.io", Version: "v1beta1", GroupPriorityMinimum: 100, VersionPriority: 100,
			Service:  &apiregistrationv1.ServiceReference{Namespace: "sluice-system", Name: "sluice-adapter"},
			CABundle: k.trusted,
		},
	}
	if diff := gocmp.Diff(want, k.external(t)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	if got := k.state(); got != "ours" {
		t.Errorf("state %q, want ours", got)
	}
	if got := k.said(t); got != "ours: leads to sluice-system/sluice-adapter" {
		t.Errorf("status %q", got)
	}
}

// TestExternalWaitsForAnswers shows that it is there a second after the adapter answers, not an interval.
func TestExternalWaitsForAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newTestKeeper(fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
		answers := time.Now().Add(10 * time.Second)
		k.bundles.answering = func() bool { return time.Now().After(answers) }
		if err := k.first(t.Context()); err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		defer running.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		running.Go(func() { k.run(ctx) })
		pass(10 * time.Second)
		if k.external(t) != nil {
			t.Error("created before the adapter answers")
		}
		pass(2 * time.Second)
		if k.external(t) == nil {
			t.Error("not created 2s after the adapter answers")
		}
	})
}

func TestForeignExternalIsLeftAloneAndReported(t *testing.T) {
	keda := apiService(externalAPIService, "keda", "keda-operator-metrics-apiserver")
	client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(append(ourAPIServices(), keda)...)
	k := newTestKeeper(client, registrations)
	for _, mode := range []ExternalMetrics{ExternalMetricsAuto, ExternalMetricsOff} {
		k.bundles.external = mode
		k.mustLook(t)
		if diff := gocmp.Diff(keda, k.external(t)); diff != "" {
			t.Errorf("%s: -before +after:\n%s", mode, diff)
		}
	}
	for _, a := range registrations.Actions() {
		if a.GetVerb() == "create" || a.GetVerb() == "delete" {
			t.Errorf("%s of a foreign APIService", a.GetVerb())
		}
	}
	if got := k.state(); got != "foreign" {
		t.Errorf("state %q, want foreign", got)
	}
	const want = "foreign: leads to keda/keda-operator-metrics-apiserver; Sluice's metrics are not served through it"
	if got := k.said(t); got != want {
		t.Errorf("status %q, want %q", got, want)
	}

	writes := func() (n int) {
		for _, a := range client.Actions() {
			if a.GetResource().Resource == "configmaps" && a.GetVerb() != "get" {
				n++
			}
		}
		return n
	}
	before := writes()
	k.mustLook(t)
	if got := writes() - before; got != 0 {
		t.Errorf("%d writes of a status that has not changed", got)
	}

	// KEDA is uninstalled.
	k.bundles.external = ExternalMetricsAuto
	if err := k.bundles.client.Delete(t.Context(), externalAPIService, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.mustLook(t)
	if a := k.external(t); a == nil || a.Spec.Service.Name != Service {
		t.Errorf("APIService = %v, want ours where the foreign one has gone", a)
	}
	if got := k.said(t); !strings.HasPrefix(got, "ours") {
		t.Errorf("status %q", got)
	}
}

// TestSomebodyElseIsFirst has another installer create it between our look and our creation.
func TestSomebodyElseIsFirst(t *testing.T) {
	registrations := apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	registrations.PrependReactor("create", "apiservices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return false, nil, registrations.Tracker().Add(apiService(externalAPIService, "keda", "keda-operator-metrics-apiserver"))
	})
	k := newTestKeeper(fake.NewClientset(), registrations)
	k.mustLook(t)
	if a := k.external(t); a.Spec.Service.Namespace != "keda" {
		t.Errorf("it leads to %v", a.Spec.Service)
	}
	if got := k.state(); got != "foreign" {
		t.Errorf("state %q, want foreign", got)
	}
}

func TestReplicasCreateExternalOnce(t *testing.T) {
	client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	var wg sync.WaitGroup
	keepers := make([]*keeper, 5)
	for i := range keepers {
		keepers[i] = newTestKeeper(client, registrations)
		keepers[i].settle = 0
		wg.Go(func() {
			if err := keepers[i].sync(t.Context()); err != nil {
				t.Error(err)
			}
			if err := keepers[i].bundles.createExternal(t.Context(), keepers[i].trusted); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keepers {
		k.mustLook(t)
	}
	if a := keepers[0].external(t); a == nil || !bytes.Equal(a.Spec.CABundle, keepers[0].trusted) {
		t.Errorf("APIService = %v, want one with the bundle", a)
	}
}

func TestExternalOff(t *testing.T) {
	k := newTestKeeper(fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
	k.mustLook(t)
	if k.external(t) == nil {
		t.Fatal("not created")
	}
	k.bundles.external = ExternalMetricsOff
	k.mustLook(t)
	if k.external(t) != nil {
		t.Error("ours was not deleted")
	}
	k.mustLook(t)
	if k.external(t) != nil || k.state() != "missing" {
		t.Errorf("state %q, want missing, and nothing created", k.state())
	}
	if got := k.said(t); got != "missing: not created, because of --external-metrics=Off" {
		t.Errorf("status %q", got)
	}
}

// TestOffDeletesOnlyWhatItRead has it change hands between the two.
func TestOffDeletesOnlyWhatItRead(t *testing.T) {
	registrations := apiregistrationfake.NewSimpleClientset(append(ourAPIServices(), apiService(externalAPIService, "sluice-system", Service))...)
	registrations.PrependReactor("delete", "apiservices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		conditions := a.(clienttesting.DeleteActionImpl).DeleteOptions.Preconditions
		if conditions == nil || conditions.UID == nil || conditions.ResourceVersion == nil {
			t.Error("deleted whatever it is by now")
		}
		err := registrations.Tracker().Update(a.GetResource(), apiService(externalAPIService, "keda", "keda-operator-metrics-apiserver"), "")
		if err != nil {
			t.Error(err)
		}
		return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), externalAPIService, errReset)
	})
	k := newTestKeeper(fake.NewClientset(), registrations)
	k.bundles.external = ExternalMetricsOff
	k.mustLook(t)
	if got := k.state(); got != "foreign" {
		t.Errorf("state %q, want foreign", got)
	}
}

// TestExternalGoesWithItsOwner: without an APIService that uninstalling takes away, none is created that it would not.
func TestExternalGoesWithItsOwner(t *testing.T) {
	k := newTestKeeper(fake.NewClientset(), apiregistrationfake.NewSimpleClientset(
		apiService(apiServices[0], "monitoring", "prometheus-adapter")))
	k.mustLook(t)
	if k.external(t) != nil {
		t.Error("created without an owner")
	}
	if got := k.said(t); !strings.Contains(got, "not created while no APIService of custom.metrics.k8s.io leads to Sluice") {
		t.Errorf("status %q", got)
	}
}

// TestRightsThatAreMissingHoldUpNoCertificate: what is only told may fail.
func TestRightsThatAreMissingHoldUpNoCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
		forbid := func(a clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "", errReset)
		}
		client.PrependReactor("*", "configmaps", forbid)
		registrations.PrependReactor("create", "apiservices", forbid)
		k := newTestKeeper(client, registrations)
		k.policy.caLife, k.policy.leafLife = 20*time.Minute, 10*time.Minute
		if err := k.first(t.Context()); err != nil {
			t.Fatal(err)
		}
		before, _ := k.serving.CurrentCertKeyContent()
		var running sync.WaitGroup
		defer running.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		running.Go(func() { k.run(ctx) })
		pass(8 * time.Minute)
		if after, _ := k.serving.CurrentCertKeyContent(); bytes.Equal(before, after) {
			t.Error("the serving certificate was not renewed")
		}
		if got := testutil.ToFloat64(k.metrics.certErrors); got == 0 {
			t.Error("no error was counted")
		}
	})
}
