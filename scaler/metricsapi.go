package scaler

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"k8s.io/metrics/pkg/client/custom_metrics/scheme"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// metricsAPI reads metrics of Functions from custom.metrics.k8s.io, as the HorizontalPodAutoscaler does.
type metricsAPI struct {
	client  rest.Interface
	timeout time.Duration
}

// newMetricsAPI makes a client with a budget of its own: the polls must not wait behind the reconciler's writes, nor
// those behind the polls. timeout bounds each read.
func newMetricsAPI(config *rest.Config, timeout time.Duration) (*metricsAPI, error) {
	c := rest.CopyConfig(config)
	c.APIPath = "/apis"
	c.GroupVersion = &v1beta2.SchemeGroupVersion
	c.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.ContentType = "application/json"
	c.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(200, 400)
	c.Timeout = timeout
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", v1beta2.SchemeGroupVersion, err)
	}
	return &metricsAPI{client: client, timeout: timeout}, nil
}

// list reads one metric of all Functions in a namespace. A Function whose value is unknown is absent.
func (a *metricsAPI) list(ctx context.Context, namespace, metric string) (map[types.NamespacedName]sample, error) {
	items, err := a.read(ctx, namespace, v1beta2.AllObjects, metric)
	if err != nil {
		return nil, err
	}
	samples := make(map[types.NamespacedName]sample, len(items))
	for _, item := range items {
		key := types.NamespacedName{Namespace: namespace, Name: item.DescribedObject.Name}
		samples[key] = sample{Value: item.Value.AsApproximateFloat64(), Time: item.Timestamp.Time}
	}
	return samples, nil
}

// explain asks for one metric of one Function by name and returns the API's words for why there is no value; empty
// when there is one after all.
func (a *metricsAPI) explain(ctx context.Context, fn types.NamespacedName, metric string) string {
	if _, err := a.read(ctx, fn.Namespace, fn.Name, metric); err != nil {
		return words(err)
	}
	return ""
}

func (a *metricsAPI) read(ctx context.Context, namespace, name, metric string) ([]v1beta2.MetricValue, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var list v1beta2.MetricValueList
	err := a.client.Get().
		Namespace(namespace).
		Resource(v1alpha1.FunctionResource.String()).
		Name(name).
		SubResource(metric).
		MaxRetries(0). // the next poll is the retry
		Do(ctx).
		Into(&list)
	if err != nil {
		return nil, fmt.Errorf("metric %s of %s in namespace %s: %w", metric, v1alpha1.FunctionResource, namespace, err)
	}
	return list.Items, nil
}

// words are the API server's own words for an error, where it is one of its.
func words(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		return status.Status().Message
	}
	return err.Error()
}
