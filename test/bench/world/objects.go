package world

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Namespace of the functions.
const Namespace = "default"

// FunctionName is the name of the i-th function.
func FunctionName(i int) string { return fmt.Sprintf("function-%05d", i) }

// atOnce is how many objects are created at a time.
const atOnce = 64

// Sleeping makes the functions from..to-1, asleep, with all that such a function has: a workload, a Service, and the
// gate's endpoints.
func (w *World) Sleeping(ctx context.Context, from, to int) error {
	var creating errgroup.Group
	creating.SetLimit(atOnce)
	for i := from; i < to; i++ {
		creating.Go(func() error {
			name := FunctionName(i)
			return w.create(ctx, append(function(name, 0, v1alpha1.Traffic{Mode: v1alpha1.Proxied}), gateSlice(name))...)
		})
	}
	return creating.Wait()
}

// Awake makes n functions of mode Direct with pods at the addresses, the same number each. Their pods count their
// requests as metrics says.
func (w *World) Awake(ctx context.Context, n int, pods []netip.AddrPort, metrics v1alpha1.PodMetrics) error {
	if err := Eventually(ctx, time.Minute, "a ServiceAccount for pods", func(ctx context.Context) error {
		return w.client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: "default"}, &corev1.ServiceAccount{})
	}); err != nil {
		return err
	}
	var creating errgroup.Group
	creating.SetLimit(atOnce)
	each := len(pods) / n
	for i := range n {
		creating.Go(func() error {
			name, its := FunctionName(i), pods[i*each:(i+1)*each]
			traffic := v1alpha1.Traffic{Mode: v1alpha1.Direct, PodMetrics: &metrics}
			if err := w.create(ctx, function(name, int32(each), traffic)...); err != nil {
				return err
			}
			slice := endpointSlice(Namespace, name, name+"-pods", "http", its)
			for j := range its {
				pod := &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: Namespace, Name: fmt.Sprintf("%s-%03d", name, j), Labels: labels(name),
					},
					Spec: podSpec(),
				}
				if err := w.create(ctx, pod); err != nil {
					return err
				}
				slice.Endpoints[j].TargetRef = &corev1.ObjectReference{
					Kind: "Pod", Namespace: Namespace, Name: pod.Name, UID: pod.UID,
				}
			}
			return w.create(ctx, slice)
		})
	}
	return creating.Wait()
}

// Activators makes the addresses those of activators.
func (w *World) Activators(ctx context.Context, addresses []netip.AddrPort) error {
	return w.create(ctx, endpointSlice(v1alpha1.SystemNamespace, v1alpha1.ActivatorService,
		v1alpha1.ActivatorService, v1alpha1.ActivatorMetricsPort, addresses))
}

func (w *World) create(ctx context.Context, objects ...client.Object) error {
	for _, object := range objects {
		if err := w.client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%T %s: %w", object, object.GetName(), err)
		}
	}
	return nil
}

func labels(function string) map[string]string {
	return map[string]string{"app": function, "app.kubernetes.io/part-of": "bench", "team": "measurement"}
}

func podSpec() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{{Name: "function", Image: "function"}}}
}

// function is a Function with its workload and its Service.
func function(name string, replicas int32, traffic v1alpha1.Traffic) []client.Object {
	meta := metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: labels(name)}
	return []client.Object{
		&v1alpha1.Function{ObjectMeta: meta, Spec: v1alpha1.FunctionSpec{
			Traffic: &traffic, Scale: v1alpha1.Scale{MaxReplicas: 20},
		}},
		&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: meta.Labels}, Spec: podSpec()},
		}},
		&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, // the range has not 10,000 addresses to spare, and nobody connects
			Selector:  map[string]string{"app": name},
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80}},
		}},
	}
}

// gateSlice makes activators the endpoints of a function's Service.
func gateSlice(function string) *discoveryv1.EndpointSlice {
	slice := endpointSlice(Namespace, function, "sluice-"+function+".gate", "http", []netip.AddrPort{
		netip.MustParseAddrPort("10.1.2.3:8080"), netip.MustParseAddrPort("10.1.2.4:8080"),
	})
	slice.Labels[discoveryv1.LabelManagedBy], slice.Labels[v1alpha1.FunctionLabel] = v1alpha1.GateManager, function
	return slice
}

// endpointSlice lists ready endpoints of a Service, which all have the port of the first.
func endpointSlice(namespace, service, name, portName string, at []netip.AddrPort) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: &portName, Port: new(int32(at[0].Port())), Protocol: new(corev1.ProtocolTCP),
		}},
	}
	for _, a := range at {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return slice
}
