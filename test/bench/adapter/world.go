package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
)

// namespace of the functions.
const namespace = "default"

func functionName(i int) string { return fmt.Sprintf("function-%05d", i) }

// world is a control plane and what is created in it.
type world struct {
	cluster *cluster.Cluster
	client  client.Client
	token   string // of an account that may read custom metrics
}

// newWorld starts etcd and an API server. The controllers that would act on the functions' objects are off: 10,000
// Deployments of no replicas are no work that the benchmark is about.
func newWorld(ctx context.Context, state string) (*world, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	c, err := cluster.Start(ctx, cluster.Options{
		ControlPlaneOnly: true, Root: root, BinDir: filepath.Join(state, "bin"), Log: os.Stderr,
		ControllerManagerArgs: []string{"--controllers=serviceaccount-controller,root-ca-certificate-publisher-controller"},
	})
	if err != nil {
		return nil, err
	}
	w := &world{cluster: c}
	if err := w.prepare(ctx, root); err != nil {
		return nil, errors.Join(err, w.stop(ctx))
	}
	return w, nil
}

// stop ends it, also when ctx has ended.
func (w *world) stop(ctx context.Context) error { return w.cluster.Stop(context.WithoutCancel(ctx)) }

func (w *world) prepare(ctx context.Context, root string) error {
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

// functions makes the functions from..to-1, asleep, with all that such a function has: a workload, a Service, and the
// gate's endpoints.
func (w *world) functions(ctx context.Context, from, to int) error {
	var creating errgroup.Group
	creating.SetLimit(64)
	for i := from; i < to; i++ {
		creating.Go(func() error {
			for _, object := range sleeping(functionName(i)) {
				if err := w.client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
					return fmt.Errorf("%T %s: %w", object, object.GetName(), err)
				}
			}
			return nil
		})
	}
	return creating.Wait()
}

func sleeping(name string) []client.Object {
	none, port, portName, tcp, yes := int32(0), int32(8080), "http", corev1.ProtocolTCP, true
	labels := map[string]string{"app": name, "app.kubernetes.io/part-of": "bench", "team": "measurement"}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
	gate := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: "sluice-" + name + ".gate"},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.2.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.1.2.4"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
		},
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	gate.Labels = map[string]string{
		discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: v1alpha1.GateManager, v1alpha1.FunctionLabel: name,
	}
	return []client.Object{
		&v1alpha1.Function{ObjectMeta: meta, Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{Mode: v1alpha1.Proxied}, Scale: v1alpha1.Scale{MaxReplicas: 20},
		}},
		&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
			Replicas: &none,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "function", Image: "function"}}},
			},
		}},
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, // the range has not 10,000 addresses to spare, and nobody connects
			Selector:  map[string]string{"app": name},
			Ports:     []corev1.ServicePort{{Name: portName, Port: 80}},
		}},
		gate,
	}
}
