package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/bench/world"
)

// The two functions of the cold part, which differ in that Sluice knows the one.
const (
	floorName    = "floor"
	subjectName  = "subject"
	functionPort = 8080
)

// headerListening is how the sample function tells since when it listens.
const headerListening = "Listening-Since"

// coldCluster is the test cluster with the two functions, in a namespace that ends with the measurement.
type coldCluster struct {
	client    client.Client
	kube      kubernetes.Interface
	audit     string
	namespace string
	service   netip.AddrPort // of the subject
}

func newColdCluster(ctx context.Context, o options) (*coldCluster, error) {
	if o.kubeconfig == "" || o.audit == "" {
		return nil, errors.New("run it with `make bench-cold`: -kubeconfig or -audit is missing")
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 500, 500
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return nil, err
	}
	c := &coldCluster{audit: o.audit}
	if c.client, err = client.New(config, client.Options{Scheme: scheme.Scheme}); err != nil {
		return nil, err
	}
	if c.kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-cold-"}}
	if err := c.client.Create(ctx, namespace); err != nil {
		return nil, err
	}
	c.namespace = namespace.Name
	if err := c.prepare(ctx); err != nil {
		return nil, errors.Join(err, c.remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// remove takes the functions away: the Function first, because the scaler has work to do when it goes.
func (c *coldCluster) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, coldLimit)
	defer cancel()
	fn := &v1alpha1.Function{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: subjectName}}
	if err := c.client.Delete(ctx, fn); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return c.client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}})
}

func (c *coldCluster) prepare(ctx context.Context) error {
	for _, name := range []string{floorName, subjectName} {
		meta := metav1.ObjectMeta{Namespace: c.namespace, Name: name}
		template := functionTemplate(name)
		for _, object := range []client.Object{
			&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
				Replicas: new(int32(0)), Template: template, Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			}},
			&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
				Selector: template.Labels,
				Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(functionPort)}},
			}},
		} {
			if err := c.client.Create(ctx, object); err != nil {
				return err
			}
		}
	}
	if err := c.client.Create(ctx, &v1alpha1.Function{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: subjectName},
		Spec: v1alpha1.FunctionSpec{
			Traffic: &v1alpha1.Traffic{
				Mode:       v1alpha1.Direct,
				PodMetrics: &v1alpha1.PodMetrics{Requests: "function_calls_total", InFlight: "function_in_flight"},
			},
			Scale: v1alpha1.Scale{MaxReplicas: 1, IdleAfter: &metav1.Duration{Duration: 2 * time.Second}},
		},
	}); err != nil {
		return err
	}
	var service corev1.Service
	if err := c.client.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: subjectName}, &service); err != nil {
		return err
	}
	ip, err := netip.ParseAddr(service.Spec.ClusterIP)
	c.service = netip.AddrPortFrom(ip, 80)
	return err
}

// functionTemplate is the sample function's pod. It has no preStop, which would make each round longer and is of no use
// to a function that nobody asks while it ends.
func functionTemplate(name string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: new(false),
			Containers: []corev1.Container{{
				Name: "function", Image: "docker.io/sluice/function:dev", ImagePullPolicy: corev1.PullNever,
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: functionPort}},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(functionPort)}},
					PeriodSeconds: 1,
				},
				SecurityContext: &corev1.SecurityContext{RunAsNonRoot: new(true), RunAsUser: new(int64(65532))},
			}},
		},
	}
}

// awaitAsleep waits until the subject sleeps behind its gate.
func (c *coldCluster) awaitAsleep(ctx context.Context) error {
	return world.Eventually(ctx, coldLimit, "the function to sleep", func(ctx context.Context) error {
		var fn v1alpha1.Function
		if err := c.client.Get(ctx, types.NamespacedName{Namespace: c.namespace, Name: subjectName}, &fn); err != nil {
			return err
		}
		if fn.Status.Phase != v1alpha1.Idle || fn.Status.Gate == nil || !fn.Status.Gate.InPath {
			return fmt.Errorf("phase %q, gate %+v", fn.Status.Phase, fn.Status.Gate)
		}
		return nil
	})
}

// scale writes the scale: to 0 as it comes, to 1 as the activator does.
func (c *coldCluster) scale(ctx context.Context, name string, replicas int32) error {
	kind, patch := types.MergePatchType, []byte(`{"spec":{"replicas":0}}`)
	if replicas > 0 {
		kind, patch = types.JSONPatchType, v1alpha1.WakePatch(replicas)
	}
	_, err := c.kube.AppsV1().Deployments(c.namespace).Patch(ctx, name, kind, patch, metav1.PatchOptions{}, "scale")
	return err
}

func (c *coldCluster) watchPods(ctx context.Context, name string) (watch.Interface, error) {
	return c.kube.CoreV1().Pods(c.namespace).Watch(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
}

// answer is when the first byte of a function's answer came, and since when the function listens.
type answer struct {
	at, listening time.Time
}

// insist asks in a tight loop until the answer is 200.
func insist(ctx context.Context, at netip.AddrPort, path string) (answer, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		a, err := ask(attempt, at, path)
		cancel()
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return a, errors.Join(err, ctx.Err())
		}
		if err := nap(500 * time.Microsecond); err != nil {
			return a, err
		}
	}
}

// ask makes one request in a connection of its own.
func ask(ctx context.Context, at netip.AddrPort, path string) (a answer, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: function\r\nConnection: close\r\n\r\n", path); err != nil {
		return a, err
	}
	reader := bufio.NewReader(conn)
	if _, err := reader.Peek(1); err != nil {
		return a, err
	}
	a.at = time.Now()
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %.300s", resp.Status, text)
	}
	if since := resp.Header.Get(headerListening); since != "" {
		a.listening, err = time.Parse(time.RFC3339Nano, since)
	}
	return a, err
}
