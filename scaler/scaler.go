package scaler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/api/watches"
)

// name of the scaler: its Lease, its field manager, and who reports its Events.
const name = "sluice-scaler"

// Options of the scaler.
type Options struct {
	// RestConfig leads to the API server. Required. Its QPS and Burst default to 50 and 100.
	RestConfig *rest.Config
	// Namespace that Sluice runs in: of the activators' Service and of the Lease. Default sluice-system.
	Namespace string
	// MetricsAddress serves /metrics. Default ":8080"; "0" turns it off.
	MetricsAddress string
	// HealthAddress serves /healthz and /readyz. Default ":8081"; "0" turns it off.
	HealthAddress string
	// NoLeaderElection is for a scaler that is sure to be the only one.
	NoLeaderElection bool
	// PollInterval is how often metrics of functions that are awake are read: 100ms to 5s. Default 1s.
	PollInterval time.Duration
	// Grace is the time between the proof that the data path reaches the gate and the scale to zero. Default 1s.
	Grace time.Duration
	// FirstPort and LastPort bound the gate ports. Default 20000 and 29999.
	FirstPort, LastPort int32
	// Prover proves data paths. Default a ServiceProver.
	Prover Prover
}

// complete fills in defaults and checks the rest.
func (o Options) complete() (Options, error) {
	if o.RestConfig == nil {
		return o, errors.New("scaler options: RestConfig is required")
	}
	o.RestConfig = rest.CopyConfig(o.RestConfig)
	if o.RestConfig.QPS == 0 {
		o.RestConfig.QPS, o.RestConfig.Burst = 50, 100
	}
	o.Namespace = or(o.Namespace, v1alpha1.SystemNamespace)
	o.MetricsAddress = or(o.MetricsAddress, ":8080")
	o.HealthAddress = or(o.HealthAddress, ":8081")
	o.PollInterval = or(o.PollInterval, time.Second)
	o.Grace = or(o.Grace, time.Second)
	o.FirstPort, o.LastPort = or(o.FirstPort, 20000), or(o.LastPort, 29999)
	if o.Prover == nil {
		o.Prover = ServiceProver{}
	}
	switch {
	case o.FirstPort < 1024 || o.LastPort > 65535 || o.FirstPort > o.LastPort:
		return o, fmt.Errorf("scaler options: gate ports %d-%d are not a range within 1024-65535", o.FirstPort, o.LastPort)
	case o.PollInterval < 100*time.Millisecond || o.PollInterval > maxAge/2:
		// What was not read for maxAge is unknown, and no function would ever sleep.
		return o, fmt.Errorf("scaler options: PollInterval %s is not between 100ms and %s", o.PollInterval, maxAge/2)
	case o.Grace < 0:
		return o, fmt.Errorf("scaler options: Grace %s is negative", o.Grace)
	}
	return o, nil
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// Run runs the scaler until ctx ends, or an error if it can not start or loses its Lease. All of its goroutines have
// ended when it returns. The logger is taken from ctx.
func Run(ctx context.Context, options Options) error {
	o, err := options.complete()
	if err != nil {
		return err
	}
	telemetry := newTelemetry()
	unregister, err := telemetry.register()
	if err != nil {
		return fmt.Errorf("scaler metrics: %w", err)
	}
	defer unregister()
	mgr, err := newManager(ctx, o)
	if err != nil {
		return err
	}
	// A read that takes as long as the next poll is due is of no more use.
	api, err := newMetricsAPI(o.RestConfig, o.PollInterval*9/10)
	if err != nil {
		return err
	}
	bell := &doorbell{}
	poller := newPoller(api, o.PollInterval, bell.ring, telemetry)
	proofs := newProofs(o.Prover, func(fn types.NamespacedName, proven bool) {
		telemetry.proofs.WithLabelValues(map[bool]string{true: "proven", false: "unproven"}[proven]).Inc()
		bell.ring(fn)
	})
	r := &Reconciler{
		Client:    client.WithFieldOwner(mgr.GetClient(), name),
		namespace: o.Namespace,
		rules:     rules{Grace: o.Grace},
		recorder:  mgr.GetEventRecorder(name),
		poller:    poller,
		proofs:    proofs,
		ports:     newPorts(o.FirstPort, o.LastPort),
		ring:      bell.ring,
		metrics:   telemetry,
	}
	if err := r.setUp(ctx, mgr, bell); err != nil {
		return fmt.Errorf("scaler: %w", err)
	}
	// Both run on the leader only, which is what a RunnableFunc does unless it says otherwise.
	for _, start := range []manager.RunnableFunc{poller.Start, proofs.Start} {
		if err := mgr.Add(withLogger(ctx, start)); err != nil {
			return fmt.Errorf("scaler: %w", err)
		}
	}
	if err := errors.Join(
		mgr.AddHealthzCheck("poller", func(*http.Request) error { return poller.healthy() }),
		mgr.AddReadyzCheck("ping", healthz.Ping),
	); err != nil {
		return fmt.Errorf("scaler: %w", err)
	}
	return mgr.Start(ctx)
}

// withLogger hands the logger of ctx to a runnable, whose own context has none.
func withLogger(ctx context.Context, start manager.RunnableFunc) manager.RunnableFunc {
	log := logr.FromContextOrDiscard(ctx)
	return func(ctx context.Context) error { return start(logr.NewContext(ctx, log)) }
}

func newManager(ctx context.Context, o Options) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("scheme: %w", err)
	}
	byObject := map[client.Object]cache.ByObject{}
	for _, kind := range workloadKinds() {
		byObject[kind] = cache.ByObject{Transform: stripWorkload}
	}
	mgr, err := ctrl.NewManager(o.RestConfig, manager.Options{
		Scheme: scheme,
		Logger: logr.FromContextOrDiscard(ctx),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         byObject,
		},
		NewCache: func(cfg *rest.Config, co cache.Options) (cache.Cache, error) {
			cfg = watches.Config(ctx, cfg)
			var err error
			if co.HTTPClient, err = rest.HTTPClientFor(cfg); err != nil {
				return nil, err
			}
			return cache.New(cfg, co)
		},
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.HealthAddress,
		LeaderElection:                !o.NoLeaderElection,
		LeaderElectionID:              name,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
		// Names of controllers are unique in a process otherwise, and a test may run two scalers in one.
		Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	return mgr, nil
}
