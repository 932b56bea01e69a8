package adapter

import (
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	apiregistrationfake "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/fake"
)

func TestDeletedStatusComesBack(t *testing.T) {
	client := fake.NewClientset()
	k := newTestKeeper(client, apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
	k.mustLook(t)
	want := k.said(t)
	if err := k.bundles.status.client.Delete(t.Context(), statusConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.mustLook(t) // finds nothing new
	if got := k.said(t); got != want || got == "" {
		t.Errorf("status %q, want %q", got, want)
	}
}

// TestOtherReplicasStatusStays shows that a replica that finds nothing new does not write over one that sees other
// things.
func TestOtherReplicasStatusStays(t *testing.T) {
	k := newTestKeeper(fake.NewClientset(), apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
	k.mustLook(t)
	status, err := k.bundles.status.client.Get(t.Context(), statusConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	status.Data[externalAPIService] = "theirs"
	if _, err := k.bundles.status.client.Update(t.Context(), status, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.mustLook(t)
	if got := k.said(t); got != "theirs" {
		t.Errorf("status %q, want that of the other replica", got)
	}
}

func TestNamespaceThatIsNotThere(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(namespaces, "nope")
	})
	k := newTestKeeper(client, apiregistrationfake.NewSimpleClientset(ourAPIServices()...))
	err := k.sync(t.Context())
	for _, want := range []string{`"nope" not found`, "--namespace"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}
