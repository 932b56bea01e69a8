package adapter

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationfake "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/fake"
)

// pass lets d go by on the clock of a bubble.
func pass(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // synctest

// parsePEM returns the first certificate in data; nil if there is none.
func parsePEM(data []byte) *x509.Certificate {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

func apiService(name, namespace, service string) *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: apiregistrationv1.APIServiceSpec{
			Service: &apiregistrationv1.ServiceReference{Namespace: namespace, Name: service},
		},
	}
}

func ourAPIServices() []runtime.Object {
	var objects []runtime.Object
	for _, name := range apiServices {
		objects = append(objects, apiService(name, "sluice-system", Service))
	}
	return objects
}

func newTestKeeper(client *fake.Clientset, registrations *apiregistrationfake.Clientset) *keeper {
	metrics := newAdapterMetrics()
	return &keeper{
		secrets: client.CoreV1().Secrets("sluice-system"),
		bundles: &publisher{
			client:  registrations.ApiregistrationV1().APIServices(),
			service: types.NamespacedName{Namespace: "sluice-system", Name: Service},
			metrics: metrics, was: map[string]finding{},
			external: ExternalMetricsAuto, answering: func() bool { return true },
			status: &statusWriter{client: client.CoreV1().ConfigMaps("sluice-system")},
		},
		policy: policy, interval: 30 * time.Second, settle: 2 * time.Second,
		serving: &servingCert{}, metrics: metrics,
	}
}

func (k *keeper) bundle(t *testing.T, name string) []byte {
	t.Helper()
	a, err := k.bundles.client.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a.Spec.CABundle
}

func TestReplicasAgreeOnOneCertificate(t *testing.T) {
	client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	keepers := make([]*keeper, 5)
	var wg sync.WaitGroup
	for i := range keepers {
		keepers[i] = newTestKeeper(client, registrations)
		keepers[i].settle = 0
		wg.Go(func() {
			if err := keepers[i].first(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want, _ := keepers[0].serving.CurrentCertKeyContent()
	for _, k := range keepers {
		if err := k.sync(t.Context()); err != nil {
			t.Error(err)
		}
		got, _ := k.serving.CurrentCertKeyContent()
		if string(got) != string(want) || len(got) == 0 {
			t.Error("replicas serve different certificates")
		}
		for _, name := range apiServices {
			if err := verify(k.bundle(t, name), got, serverName, time.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	creates := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "update" {
			t.Error("a replica overwrote the Secret")
		}
		if a.GetVerb() == "create" {
			creates++
		}
	}
	if creates == 0 {
		t.Error("nobody created the Secret")
	}
}

// TestConflictTakesTheOthersCertificate has another replica renew between this one's read and its write.
func TestConflictTakesTheOthersCertificate(t *testing.T) {
	now := time.Now()
	old, _ := mustRenew(t, policy, nil, now.Add(-300*day)) // due
	theirs, _ := mustRenew(t, policy, old, now)
	secret := func(data map[string][]byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "sluice-system", Name: certSecret}, Data: data}
	}
	client := fake.NewClientset(secret(old))
	client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if err := client.Tracker().Update(a.GetResource(), secret(theirs), "sluice-system"); err != nil {
			return true, nil, err
		}
		return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), certSecret, errors.New("changed"))
	})
	k := newTestKeeper(client, apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := k.serving.CurrentCertKeyContent(); string(got) != string(theirs[corev1.TLSCertKey]) {
		t.Error("serves another certificate than the one that the other replica wrote")
	}
}

func TestForeignAPIServiceIsNeverTouched(t *testing.T) {
	foreignOne := apiService(apiServices[0], "monitoring", "prometheus-adapter")
	foreignOne.Spec.CABundle = []byte("theirs")
	local := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: apiServices[1]}} // served by the API server itself
	registrations := apiregistrationfake.NewSimpleClientset(foreignOne, local)
	k := newTestKeeper(fake.NewClientset(), registrations)
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range registrations.Actions() {
		if a.GetVerb() != "get" {
			t.Errorf("%s of a foreign APIService", a.GetVerb())
		}
	}
	if !k.serving.present() {
		t.Error("no certificate is served")
	}
	for _, name := range apiServices {
		if got := testutil.ToFloat64(k.metrics.apiService.WithLabelValues(name, "foreign")); got != 1 {
			t.Errorf("%s foreign = %v, want 1", name, got)
		}
	}
}

// TestPatchIsRefusedForAnAPIServiceThatChangesHands is the race between reading and patching.
func TestPatchIsRefusedForAnAPIServiceThatChangesHands(t *testing.T) {
	registrations := apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	registrations.PrependReactor("patch", "apiservices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		name := a.(clienttesting.PatchAction).GetName()
		err := registrations.Tracker().Update(a.GetResource(), apiService(name, "monitoring", "prometheus-adapter"), "")
		return false, nil, err
	})
	k := newTestKeeper(fake.NewClientset(), registrations)
	if err := k.sync(t.Context()); err == nil {
		t.Error("no error")
	}
	for _, name := range apiServices {
		if bundle := k.bundle(t, name); len(bundle) != 0 {
			t.Errorf("%s: bundle written over another's", name)
		}
	}
}

func TestBundleComesBackAfterSomebodyAppliedWithoutIt(t *testing.T) {
	registrations := apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	k := newTestKeeper(fake.NewClientset(), registrations)
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := apiService(apiServices[0], "sluice-system", Service)
	again.Spec.InsecureSkipTLSVerify = true
	if _, err := k.bundles.client.Update(t.Context(), again, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, err := k.bundles.client.Get(t.Context(), apiServices[0], metav1.GetOptions{})
	if err != nil || len(a.Spec.CABundle) == 0 || a.Spec.InsecureSkipTLSVerify {
		t.Errorf("spec = %+v, %v; want the bundle, and verification", a.Spec, err)
	}
	before := len(registrations.Actions())
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(registrations.Actions()) - before; got != 3 {
		t.Errorf("%d calls when all is well, want 3 reads", got)
	}
}

// TestRotationIsNeverSeenAsAnError runs two replicas with short-lived certificates for many rotations of the CA.
// Whatever either serves at any time verifies by what is published.
func TestRotationIsNeverSeenAsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var keepers []*keeper
		for range 2 {
			k := newTestKeeper(client, registrations)
			k.policy.caLife, k.policy.leafLife = 20*time.Minute, 10*time.Minute
			if err := k.first(ctx); err != nil {
				t.Fatal(err)
			}
			keepers = append(keepers, k)
			wg.Go(func() { k.run(ctx) })
			pass(13 * time.Second) // out of step
		}
		served, authorities := map[string]bool{}, map[string]bool{}
		for range 3600 {
			pass(time.Second)
			for i, k := range keepers {
				cert, _ := k.serving.CurrentCertKeyContent()
				served[string(cert)] = true
				for _, name := range apiServices {
					bundle := k.bundle(t, name)
					authorities[parsePEM(bundle).Subject.CommonName] = true
					if err := verify(bundle, cert, serverName, time.Now()); err != nil {
						t.Fatalf("replica %d at %s, by %s: %v", i, time.Now(), name, err)
					}
				}
			}
		}
		cancel()
		wg.Wait()
		if len(served) < 7 || len(authorities) < 4 {
			t.Errorf("%d certificates of %d CAs in an hour, want at least 7 of 4", len(served), len(authorities))
		}
		if got := testutil.ToFloat64(keepers[0].metrics.certErrors); got != 0 {
			t.Errorf("%v errors", got)
		}
	})
}

// TestADeletedSecretKeepsTheFormerCATrusted: until the new certificate is served, the former one is.
func TestADeletedSecretKeepsTheFormerCATrusted(t *testing.T) {
	client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
	k, other := newTestKeeper(client, registrations), newTestKeeper(client, registrations)
	for _, k := range []*keeper{k, other} {
		k.settle = 0
		if err := k.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	former, _ := k.serving.CurrentCertKeyContent()
	if err := k.secrets.Delete(t.Context(), certSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	renewed, _ := k.serving.CurrentCertKeyContent()
	if string(renewed) == string(former) {
		t.Fatal("no new certificate was made")
	}
	for _, name := range apiServices {
		for whose, cert := range map[string][]byte{"this replica's new": renewed, "the other replica's former": former} {
			if err := verify(k.bundle(t, name), cert, serverName, time.Now()); err != nil {
				t.Errorf("%s: %s certificate: %v", name, whose, err)
			}
		}
	}
	if err := other.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := other.serving.CurrentCertKeyContent(); string(got) != string(renewed) {
		t.Error("the other replica serves another certificate")
	}
}

// TestEveryReplicaWaitsForTheAPIServersToNotice has API servers that act on a bundle a second and a half after it was
// published. The second replica finds it published already, and must wait all the same.
func TestEveryReplicaWaitsForTheAPIServersToNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const late = 15 // looks at 10 Hz
		client, registrations := fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		var keepers []*keeper
		for range 2 {
			k := newTestKeeper(client, registrations)
			if err := k.first(ctx); err != nil {
				t.Fatal(err)
			}
			keepers = append(keepers, k)
			wg.Go(func() { k.run(ctx) })
			pass(time.Second) // so that the second one looks before the API servers have noticed
		}
		first, _ := keepers[0].serving.CurrentCertKeyContent()
		var bundles [][]byte
		for look := range 600 {
			pass(100 * time.Millisecond)
			if look == 100 {
				if err := keepers[0].secrets.Delete(ctx, certSecret, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			bundles = append(bundles, keepers[0].bundle(t, apiServices[0]))
			acted := bundles[max(0, look-late)]
			for i, k := range keepers {
				cert, _ := k.serving.CurrentCertKeyContent()
				if err := verify(acted, cert, serverName, time.Now()); err != nil {
					t.Fatalf("replica %d, after %d looks: %v", i, look, err)
				}
			}
		}
		for i, k := range keepers {
			if cert, _ := k.serving.CurrentCertKeyContent(); string(cert) == string(first) {
				t.Errorf("replica %d still serves the former certificate", i)
			}
		}
	})
}

func TestFirstWaitsForTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		back := time.Now().Add(time.Minute)
		client.PrependReactor("*", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if time.Now().Before(back) {
				return true, nil, fmt.Errorf("connection refused")
			}
			return false, nil, nil
		})
		k := newTestKeeper(client, apiregistrationfake.NewSimpleClientset())
		if err := k.first(t.Context()); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(back); late > 3*time.Second {
			t.Errorf("%s after the API server was back", late)
		}
	})
}

func pemOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
