// Package world is what the benchmarks run in: a real etcd and kube-apiserver, the objects of functions there, stand-ins
// for activators, and processes of their own for whatever is measured, so that what is measured of one is not another's.
package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
)

// World is a control plane and what is created in it.
type World struct {
	cluster *cluster.Cluster
	client  client.Client
	token   string // of an account that may read metrics and profiles
}

// New starts etcd and an API server, from the programs in state and with what they write in dir, or in a directory of
// their own where dir is empty. The controllers that would act on the functions' objects are off: 10,000 Deployments
// are no work that the benchmarks are about.
func New(ctx context.Context, state, dir string) (*World, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	c, err := cluster.Start(ctx, cluster.Options{
		ControlPlaneOnly: true, Root: root, Dir: dir, BinDir: filepath.Join(state, "bin"), Log: os.Stderr,
		ControllerManagerArgs: []string{"--controllers=serviceaccount-controller,root-ca-certificate-publisher-controller"},
	})
	if err != nil {
		return nil, err
	}
	w := &World{cluster: c}
	if err := w.prepare(ctx, root); err != nil {
		return nil, errors.Join(err, w.Stop(ctx))
	}
	return w, nil
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (w *World) Kubeconfig() string { return w.cluster.Kubeconfig() }

// Stop ends it, also when ctx has ended.
func (w *World) Stop(ctx context.Context) error { return w.cluster.Stop(context.WithoutCancel(ctx)) }

func (w *World) prepare(ctx context.Context, root string) error {
	crd := filepath.Join(root, "manifests", "crd", "functions.yaml")
	for _, args := range [][]string{{"apply", "-f", crd}, {"wait", "--for=condition=Established", "--timeout=30s", "-f", crd}} {
		kubectl := exec.CommandContext(ctx, filepath.Join(w.cluster.BinDir(), "kube"),
			append([]string{"kubectl", "--kubeconfig", w.cluster.Kubeconfig()}, args...)...)
		if out, err := kubectl.CombinedOutput(); err != nil {
			return fmt.Errorf("kind Function: %w: %s", err, out)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", w.cluster.Kubeconfig())
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 5000, 5000
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	if w.client, err = client.New(config, client.Options{Scheme: scheme.Scheme}); err != nil {
		return err
	}
	reader := metav1.ObjectMeta{Name: "reader", Namespace: v1alpha1.SystemNamespace}
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}},
		&corev1.ServiceAccount{ObjectMeta: reader},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"custom.metrics.k8s.io"}, Resources: []string{"*"}, Verbs: []string{"get", "list"},
		}, {
			NonResourceURLs: []string{"/metrics", "/debug/pprof/*"}, Verbs: []string{"get"},
		}}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "reader"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: reader.Namespace, Name: reader.Name}},
		},
	} {
		if err := w.client.Create(ctx, object); err != nil {
			return err
		}
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	token, err := kube.CoreV1().ServiceAccounts(reader.Namespace).CreateToken(ctx, reader.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	w.token = token.Status.Token
	return nil
}
