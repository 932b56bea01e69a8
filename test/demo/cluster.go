package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// callTimeout bounds one call to the API server.
const callTimeout = 5 * time.Second

// unlimited turns client-go's own rate limit off. The demo makes a few calls a second; near the end of a stage the limiter
// would refuse one for want of time, and that would be the last thing seen.
const unlimited = -1

// cluster reads objects, and metrics of functions, from the API server.
type cluster struct {
	client.Reader
	metrics rest.Interface
}

// connect makes a cluster from the kubeconfig at path, or from the pod's own credentials if path is empty.
func connect(path string) (cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return cluster{}, fmt.Errorf("kubeconfig %q: %w", path, err)
	}
	config.Timeout = callTimeout
	config.QPS = unlimited
	config.WarningHandler = rest.NoWarnings{}
	scheme, err := newScheme()
	if err != nil {
		return cluster{}, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return cluster{}, fmt.Errorf("client: %w", err)
	}
	metrics, err := metricsClient(config)
	if err != nil {
		return cluster{}, err
	}
	return cluster{Reader: c, metrics: metrics}, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiregistrationv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("scheme: %w", err)
		}
	}
	return scheme, nil
}

func metricsClient(config *rest.Config) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.QPS = unlimited
	config.APIPath = "/apis"
	config.GroupVersion = &custommetrics.SchemeGroupVersion
	config.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	config.ContentType = runtime.ContentTypeJSON
	c, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("metrics client: %w", err)
	}
	return c, nil
}

// metricPath is where the API server serves a metric of a function.
func metricPath(fn types.NamespacedName, metric string) string {
	return fmt.Sprintf("/apis/%s/namespaces/%s/%s/%s/%s", custommetrics.SchemeGroupVersion,
		fn.Namespace, v1alpha1.FunctionResource, fn.Name, metric)
}

// value reads a metric of fn. The error is the API server's reason why there is no value.
func (c cluster) value(ctx context.Context, fn types.NamespacedName, metric string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	result := c.metrics.Get().AbsPath(metricPath(fn, metric)).Do(ctx)
	if err := result.Error(); err != nil { // unlike Raw's, with the message of the server
		return 0, err
	}
	body, err := result.Raw()
	if err != nil {
		return 0, err
	}
	var list custommetrics.MetricValueList
	if err := json.Unmarshal(body, &list); err != nil {
		return 0, fmt.Errorf("metric %s: %w", metric, err)
	}
	if len(list.Items) != 1 {
		return 0, fmt.Errorf("metric %s: %d items where there must be one", metric, len(list.Items))
	}
	return list.Items[0].Value.AsApproximateFloat64(), nil
}

func (c cluster) get(ctx context.Context, key types.NamespacedName, into client.Object) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.Get(ctx, key, into); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	return nil
}

func (c cluster) function(ctx context.Context, key types.NamespacedName) (*v1alpha1.Function, error) {
	var fn v1alpha1.Function
	return &fn, c.get(ctx, key, &fn)
}

func (c cluster) deployment(ctx context.Context, key types.NamespacedName) (*appsv1.Deployment, error) {
	var d appsv1.Deployment
	return &d, c.get(ctx, key, &d)
}

func (c cluster) autoscaler(ctx context.Context, key types.NamespacedName) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	var hpa autoscalingv2.HorizontalPodAutoscaler
	return &hpa, c.get(ctx, key, &hpa)
}

// replicas is what d asks for; the API server's default is 1.
func replicas(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}
