//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Uninstalling wakes what sleeps, leaves every workload running, removes all that Sluice made, and leaves nothing that
// would keep a namespace from going away.
func uninstall(s *story) {
	s.asleep(direct("own"))
	s.asleep(onRate(proxied("through", "through.example.com"), "10"))
	s.workload("awake", 2)
	s.create(onRate(proxied("awake"), "10"))
	s.awaitPhase("awake", v1alpha1.Active, 30*time.Second)

	cmd := exec.CommandContext(s.Context(), "make", "-C", s.root, "uninstall", "KUBECTL="+filepath.Join(s.cluster.Dir(), "bin", "kubectl"))
	out, err := cmd.CombinedOutput()
	s.Logf("make uninstall:\n%s", out)
	if err != nil {
		s.Fatal(err)
	}

	for name, want := range map[string]int32{"own": 1, "through": 1, "awake": 2} {
		if got := *s.deployment(name).Spec.Replicas; got < 1 || name == "awake" && got != want {
			s.Errorf("workload %s has %d replicas; want %d", name, got, want)
		}
		s.mustAnswer(s.clusterIP(name), "")
	}
	var left []string
	if err := s.client.Get(s.Context(), client.ObjectKey{Name: v1alpha1.SystemNamespace}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		left = append(left, fmt.Sprintf("namespace %s (%v)", v1alpha1.SystemNamespace, err))
	}
	for _, list := range []client.ObjectList{
		&autoscalingv2.HorizontalPodAutoscalerList{}, &corev1.ServiceList{}, &discoveryv1.EndpointSliceList{},
		&rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{}, &rbacv1.RoleBindingList{},
	} {
		eventually(s.T, 30*time.Second, fmt.Sprintf("no %T of Sluice to be left", list), func(ctx context.Context) string {
			return s.ours(ctx, list)
		})
	}
	if _, err := s.kube.Discovery().ServerResourcesForGroupVersion("sluice.dev/v1alpha1"); !apierrors.IsNotFound(err) {
		left = append(left, fmt.Sprintf("API group sluice.dev (%v)", err))
	}
	if len(left) > 0 {
		s.Errorf("left behind: %s", strings.Join(left, ", "))
	}

	// An APIService that nobody answers would keep every namespace of the cluster from going away.
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
	if err := s.client.Delete(s.Context(), ns); err != nil {
		s.Fatal(err)
	}
	eventually(s.T, 60*time.Second, "the namespace to go away", func(ctx context.Context) string {
		var ns corev1.Namespace
		err := s.client.Get(ctx, client.ObjectKey{Name: s.namespace}, &ns)
		if apierrors.IsNotFound(err) {
			return ""
		}
		return fmt.Sprintf("%v, %+v", err, ns.Status.Conditions)
	})
}

// ours names what Sluice made among the objects of one kind in the whole cluster, or "".
func (s *story) ours(ctx context.Context, list client.ObjectList) string {
	if err := s.client.List(ctx, list); err != nil {
		return err.Error()
	}
	var names []string
	s.each(list, func(obj client.Object) {
		// The story's own Services and what follows from them carry other names.
		if strings.HasPrefix(obj.GetName(), "sluice-") {
			names = append(names, obj.GetNamespace()+"/"+obj.GetName())
		}
	})
	return strings.Join(names, ", ")
}
