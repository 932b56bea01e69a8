package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	basecmd "sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
)

// empty is a provider that does nothing: it answers every read with the same number.
type empty struct{}

func (empty) GetMetricByName(
	_ context.Context, name types.NamespacedName, info provider.CustomMetricInfo, _ labels.Selector,
) (*custom_metrics.MetricValue, error) {
	return &custom_metrics.MetricValue{
		DescribedObject: custom_metrics.ObjectReference{
			Kind: "Function", APIVersion: "sluice.dev/v1alpha1", Namespace: name.Namespace, Name: name.Name,
		},
		Metric:        custom_metrics.MetricIdentifier{Name: info.Metric},
		Timestamp:     metav1.Now(),
		WindowSeconds: new(int64(30)),
		Value:         *resource.NewMilliQuantity(0, resource.DecimalSI),
	}, nil
}

func (empty) GetMetricBySelector(
	context.Context, string, labels.Selector, provider.CustomMetricInfo, labels.Selector,
) (*custom_metrics.MetricValueList, error) {
	return &custom_metrics.MetricValueList{}, nil
}

func (empty) ListAllMetrics() []provider.CustomMetricInfo { return nil }

// floor serves the library as its users do, with the empty provider. Its authorization is cached for as long as the
// adapter's, so that a difference is not one of caches.
func floor(ctx context.Context, kubeconfig, address string) error {
	klog.SetLogger(logr.Discard())
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("-address: %w", err)
	}
	base := &basecmd.AdapterBase{Name: "floor"}
	base.WithCustomMetrics(empty{})
	base.Flags().AddGoFlagSet(flag.NewFlagSet("", flag.ContinueOnError))
	if err := base.Flags().Parse([]string{
		"--lister-kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port=" + port, "--cert-dir=",
	}); err != nil {
		return err
	}
	base.CustomMetricsAdapterServerOptions.Authorization.AllowCacheTTL = 5 * time.Minute
	base.CustomMetricsAdapterServerOptions.SecureServing.ServerCert.CertDirectory = ""
	return base.Run(ctx)
}
