// Package adapter is the aggregated API server that serves functions' values as custom.metrics.k8s.io, v1beta1 and
// v1beta2, and external.metrics.k8s.io: for functions.sluice.dev, and for what stands for a function elsewhere, its
// workload, Service and pods.
//
// It hides the Kubernetes side of serving: the API's shapes and errors, delegated authentication and authorization,
// a serving certificate that it issues, shares between replicas and rotates itself, other adapters beside it, and Events. The
// values come from a Reader; answering for them does no I/O beyond asking the API server who the caller is. What is not
// Sluice's is asked of another adapter, where there is one.
package adapter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	apiregistration "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Service is the name of the Service in front of the adapter, which the APIServices name.
const Service = "sluice-adapter"

// Options of Run.
type Options struct {
	// Config of the Kubernetes API server. Required.
	Config *rest.Config
	// Reader answers what the values are. Required.
	Reader Reader
	// Namespace of the adapter's Service and of the Secret with its certificate. Default v1alpha1.SystemNamespace.
	Namespace string
	// Server has the generic API server's own options: address, authentication, authorization, audit, profiling, tracing. With a
	// certificate file set in it, the adapter issues no certificate and leaves the APIServices alone. Default
	// NewServerOptions().
	Server *ServerOptions
	// Ready says why values cannot be given yet; the adapter is not ready while it does. Default: always ready.
	Ready func() error
	// Registry has the process's own metrics, which are served on /metrics beside the generic API server's. Default: a
	// new one.
	Registry *prometheus.Registry
	// Upstreams are other adapters that answer for what is not Sluice's. Default: none.
	Upstreams Upstreams
	// ExternalMetrics says whether the adapter registers itself for external.metrics.k8s.io, which it serves in any case.
	// Default ExternalMetricsAuto.
	ExternalMetrics ExternalMetrics
	// DrainDelay is how long the adapter still serves after it has said that it is not ready, so that callers move
	// away first. Default 5s; negative is none.
	DrainDelay time.Duration

	// CALifetime and CertLifetime are those of the CA and of the serving certificate; both are renewed after two
	// thirds. Defaults 10 years and 1 year.
	CALifetime, CertLifetime time.Duration
	// CertInterval is the time between two looks at the certificate's Secret and the APIServices. Default 10s:
	// for so long an APIService that was deleted and made again is without our bundle, and answers nothing.
	CertInterval time.Duration
	// CertSettle is the time between publishing a new CA and serving what it signed: what the API servers take to
	// notice. Default 2s; negative is none.
	CertSettle time.Duration

	// dialUpstream connects to an upstream; nil is the network.
	dialUpstream func(ctx context.Context, network, address string) (net.Conn, error)
	// discoverEvery is the time between two looks at what an upstream serves; zero is discoverEvery's.
	discoverEvery time.Duration
}

// Validate says what is wrong with o, as Run does first of all: for callers that start something beside it.
func (o Options) Validate() error {
	_, err := o.complete()
	return err
}

func (o Options) complete() (Options, error) {
	switch {
	case o.Config == nil:
		return o, errors.New("adapter: Config is required")
	case o.Reader == nil:
		return o, errors.New("adapter: Reader is required")
	}
	// The client's default of 5 queries per second would make a restart beside a rotation a matter of seconds.
	o.Config = rest.CopyConfig(o.Config)
	o.Config.QPS, o.Config.Burst = 50, 100
	if o.Namespace == "" {
		o.Namespace = v1alpha1.SystemNamespace
	}
	if o.Server == nil {
		o.Server = NewServerOptions()
	}
	if o.Ready == nil {
		o.Ready = func() error { return nil }
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.ExternalMetrics == "" {
		o.ExternalMetrics = ExternalMetricsAuto
	}
	o.Upstreams.Timeout = cmp.Or(o.Upstreams.Timeout, defaultUpstreamTimeout)
	o.DrainDelay = durationOr(o.DrainDelay, 5*time.Second)
	o.CALifetime = durationOr(o.CALifetime, 10*365*24*time.Hour)
	o.CertLifetime = durationOr(o.CertLifetime, 365*24*time.Hour)
	o.CertInterval = durationOr(o.CertInterval, 10*time.Second)
	o.CertSettle = durationOr(o.CertSettle, 2*time.Second)
	return o, o.validate()
}

// durationOr is d, otherwise where d is zero, and zero where d is negative.
func durationOr(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return max(0, d)
}

// Run serves until ctx ends and the requests under way are answered. It waits for a serving certificate before it
// listens. The error is nil after a proper end.
func Run(ctx context.Context, o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	metrics := newAdapterMetrics()
	if err := metrics.register(o.Registry); err != nil {
		return fmt.Errorf("register the adapter's metrics: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	// Of the server; the certificate is looked after until it has drained.
	kept, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	others, err := newUpstreams(o, metrics, logr.FromContextOrDiscard(ctx))
	if err != nil {
		return err
	}
	var serving atomic.Bool
	answering := func() bool { return serving.Load() && ctx.Err() == nil && o.Ready() == nil }
	if files := o.Server.SecureServing.ServerCert.CertKey; files.CertFile == "" && files.KeyFile == "" {
		k, err := newKeeper(o, metrics, answering)
		if err != nil {
			return err
		}
		if err := k.first(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		o.Server.SecureServing.ServerCert.GeneratedCert = k.serving
		running.Go(func() { k.run(kept) })
	}
	server, err := newServer(ctx, o, others)
	if err != nil {
		return err
	}
	running.Go(func() { others.run(kept) })
	err = server.GenericAPIServer.AddPostStartHook("sluice-serving", func(genericapiserver.PostStartHookContext) error {
		serving.Store(true)
		return nil
	})
	if err != nil {
		return fmt.Errorf("note that the server listens: %w", err)
	}
	logr.FromContextOrDiscard(ctx).Info("serving", "address", o.Server.SecureServing.Listener.Addr().String())
	if err := server.GenericAPIServer.PrepareRun().RunWithContext(ctx); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func newKeeper(o Options, metrics *adapterMetrics, answering func() bool) (*keeper, error) {
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("client for secrets: %w", err)
	}
	registrations, err := apiregistration.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("client for APIServices: %w", err)
	}
	host := Service + "." + o.Namespace + ".svc"
	return &keeper{
		secrets: client.CoreV1().Secrets(o.Namespace),
		bundles: &publisher{
			client:    registrations.ApiregistrationV1().APIServices(),
			service:   types.NamespacedName{Namespace: o.Namespace, Name: Service},
			metrics:   metrics,
			external:  o.ExternalMetrics,
			answering: answering,
			was:       map[string]finding{},
			status:    &statusWriter{client: client.CoreV1().ConfigMaps(o.Namespace)},
		},
		policy: certPolicy{
			names:  []string{host, host + ".cluster.local", "localhost"},
			caLife: o.CALifetime, leafLife: o.CertLifetime,
		},
		interval: o.CertInterval,
		settle:   o.CertSettle,
		serving:  &servingCert{},
		metrics:  metrics,
	}, nil
}
