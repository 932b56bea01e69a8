package adapter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	endpointmetrics "k8s.io/apiserver/pkg/endpoints/metrics"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/tracing"
	tracingapi "k8s.io/component-base/tracing/api/v1"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"
	apiservermetrics "sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver/metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd/options"
	openapicore "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/core"
	openapicustommetrics "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/custommetrics"
	openapiexternalmetrics "sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/externalmetrics"
)

// tracingService is the service's name in spans.
const tracingService = "sluice-adapter"

// ServerOptions are the generic API server's options: those that the library knows, and tracing, which it leaves out.
type ServerOptions struct {
	*options.CustomMetricsAdapterServerOptions
	// Tracing names a file with a TracingConfiguration of apiserver.config.k8s.io. Default none: nothing is traced.
	Tracing *genericoptions.TracingOptions
}

// NewServerOptions are the generic API server's options with the adapter's defaults.
func NewServerOptions() *ServerOptions {
	o := &ServerOptions{options.NewCustomMetricsAdapterServerOptions(), genericoptions.NewTracingOptions()}
	o.SecureServing.BindPort = 6443
	o.SecureServing.ServerCert.CertDirectory = ""
	// At the library's 10 s nearly every read of a HorizontalPodAutoscaler, every 15 s, costs a SubjectAccessReview.
	o.Authorization.AllowCacheTTL = 5 * time.Minute
	o.EnableMetrics = false // /metrics is ours, with the library's in it
	return o
}

// AddFlags adds a flag for each option to fs.
func (o *ServerOptions) AddFlags(fs *pflag.FlagSet) {
	o.CustomMetricsAdapterServerOptions.AddFlags(fs)
	o.Tracing.AddFlags(fs)
}

// Validate says what is wrong with the options.
func (o *ServerOptions) Validate() []error {
	return append(o.CustomMetricsAdapterServerOptions.Validate(), o.Tracing.Validate()...)
}

// newServer builds the generic API server, and listens; others answer for what is not ours, and nil is nobody. From the
// end of ctx callers are asked to leave. It is what the library's own builder does, without its self-signed
// certificates, its in-cluster client and its RESTMapper, which never learns of new kinds.
func newServer(ctx context.Context, o Options, others *upstreams) (*apiserver.CustomMetricsAdapterServer, error) {
	if errs := o.Server.Validate(); len(errs) > 0 {
		return nil, utilerrors.NewAggregate(errs)
	}
	config := genericapiserver.NewRecommendedConfig(apiserver.Codecs)
	if err := applyOptions(ctx, o, config); err != nil {
		return nil, err
	}
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, openapinamer.NewDefinitionNamer(apiserver.Scheme))
	config.OpenAPIConfig.Info.Title = Service
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, openapinamer.NewDefinitionNamer(apiserver.Scheme))
	config.OpenAPIV3Config.Info.Title = Service
	config.EnableMetrics = o.Server.EnableMetrics
	config.ShutdownDelayDuration = o.DrainDelay
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return leave(ctx.Done(), genericapiserver.DefaultBuildHandlerChain(servePartitions(o.Reader, others.handler(refuseBadSelectors(api))), c))
	}
	config.AddReadyzChecks(healthz.NamedCheck("values", func(*http.Request) error { return o.Ready() }))

	complete := (&apiserver.Config{GenericConfig: &config.Config}).Complete(config.SharedInformerFactory)
	metrics := functionMetrics{o.Reader}
	// external.metrics.k8s.io is always served: who is led to it is the APIService's business.
	server, err := complete.New(Service, metrics, metrics)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	if err := installDiscovery(server.GenericAPIServer, metrics); err != nil {
		return nil, err
	}
	others.install(server.GenericAPIServer)
	installMetrics(server.GenericAPIServer, o.Registry)
	return server, nil
}

// applyOptions fills in config from the library's options.
func applyOptions(ctx context.Context, o Options, config *genericapiserver.RecommendedConfig) error {
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	config.ClientConfig = o.Config
	config.SharedInformerFactory = informers.NewSharedInformerFactory(client, 0)
	forget, err := delegateTo(o)
	if err != nil {
		return err
	}
	defer forget()
	if err := o.Server.SecureServing.ApplyToConfig(&config.Config); err != nil {
		return fmt.Errorf("secure serving: %w", err)
	}
	if err := o.Server.Authentication.ApplyTo(&config.Authentication, config.SecureServing, nil); err != nil {
		return fmt.Errorf("delegated authentication: %w", err)
	}
	if err := o.Server.Authorization.ApplyTo(&config.Authorization); err != nil {
		return fmt.Errorf("delegated authorization: %w", err)
	}
	config.Authorization.Authorizer = broadFirst(config.Authorization.Authorizer)
	if err := o.Server.Audit.ApplyTo(&config.Config); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := o.Server.Features.ApplyTo(&config.Config, client, config.SharedInformerFactory); err != nil {
		return fmt.Errorf("features: %w", err)
	}
	if err := applyTracing(ctx, o.Server.Tracing.ConfigFile, &config.Config); err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	return nil
}

// applyTracing exports spans as file says, if there is one. It is what TracingOptions.ApplyTo does, which would call
// this process "apiserver": the name of the API server in front of it, of which a trace has spans too.
func applyTracing(ctx context.Context, file string, config *genericapiserver.Config) error {
	if file == "" {
		return nil
	}
	tracingConfig, err := genericoptions.ReadTracingConfiguration(file)
	if err != nil {
		return err
	}
	if errs := tracingapi.ValidateTracingConfiguration(tracingConfig, utilfeature.DefaultFeatureGate, nil); len(errs) > 0 {
		return fmt.Errorf("%s: %w", file, errs.ToAggregate())
	}
	names := resource.WithAttributes(
		attribute.String("service.name", tracingService), attribute.String("service.instance.id", config.APIServerID))
	config.TracerProvider, err = tracing.NewProvider(ctx, tracingConfig, nil, []resource.Option{names})
	return err
}

// delegateTo makes authentication and authorization ask the API server of o.Config. The library takes that from a
// file or from the cluster it runs in; outside of a cluster it is given a file, for as long as it reads it.
func delegateTo(o Options) (forget func(), err error) {
	forget = func() {}
	authentication, authorization := &o.Server.Authentication.RemoteKubeConfigFile, &o.Server.Authorization.RemoteKubeConfigFile
	if _, err := rest.InClusterConfig(); err == nil || *authentication != "" && *authorization != "" {
		return forget, nil
	}
	file, err := os.CreateTemp("", "sluice-adapter-*.kubeconfig")
	if err != nil {
		return forget, fmt.Errorf("kubeconfig for delegated authentication: %w", err)
	}
	given := [...]string{*authentication, *authorization}
	forget = func() {
		*authentication, *authorization = given[0], given[1]
		_ = os.Remove(file.Name())
	}
	if err := errors.Join(file.Close(), clientcmd.WriteToFile(kubeconfig(o.Config), file.Name())); err != nil {
		forget()
		return nil, fmt.Errorf("kubeconfig for delegated authentication: %w", err)
	}
	for _, name := range [...]*string{authentication, authorization} {
		if *name == "" {
			*name = file.Name()
		}
	}
	return forget, nil
}

// kubeconfig says in a file's form what c says.
func kubeconfig(c *rest.Config) clientcmdapi.Config {
	const name = "api-server"
	cluster, user, current := clientcmdapi.NewCluster(), clientcmdapi.NewAuthInfo(), clientcmdapi.NewContext()
	cluster.Server = c.Host + c.APIPath
	cluster.TLSServerName = c.ServerName
	cluster.InsecureSkipTLSVerify = c.Insecure
	cluster.CertificateAuthority, cluster.CertificateAuthorityData = c.CAFile, c.CAData
	user.ClientCertificate, user.ClientCertificateData = c.CertFile, c.CertData
	user.ClientKey, user.ClientKeyData = c.KeyFile, c.KeyData
	user.Token, user.TokenFile = c.BearerToken, c.BearerTokenFile
	user.Username, user.Password = c.Username, c.Password
	user.Exec = c.ExecProvider
	current.Cluster, current.AuthInfo = name, name
	config := clientcmdapi.NewConfig()
	config.Clusters[name], config.AuthInfos[name], config.Contexts[name] = cluster, user, current
	config.CurrentContext = name
	return *config
}

// definitions are the OpenAPI definitions of what is served.
func definitions(ref openapicommon.ReferenceCallback) map[string]openapicommon.OpenAPIDefinition {
	all := openapicore.GetOpenAPIDefinitions(ref)
	maps.Copy(all, openapicustommetrics.GetOpenAPIDefinitions(ref))
	maps.Copy(all, openapiexternalmetrics.GetOpenAPIDefinitions(ref))
	return all
}

// refuseBadSelectors answers 400 to a metricLabelSelector that cannot be read, which the library takes for an
// internal error.
func refuseBadSelectors(next http.Handler) http.Handler {
	const parameter = "metricLabelSelector"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.RawQuery, parameter) { // as most: their query is parsed once, by the library
			next.ServeHTTP(w, r)
			return
		}
		if s := r.URL.Query().Get(parameter); s != "" {
			if _, err := labels.Parse(s); err != nil {
				err = apierrors.NewBadRequest(fmt.Sprintf("%s %q: %v", parameter, s, err))
				responsewriters.ErrorNegotiated(err, apiserver.Codecs, custommetrics.SchemeGroupVersion, w, r)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// installMetrics serves the library's metrics and registry's on /metrics.
func installMetrics(s *genericapiserver.GenericAPIServer, registry *prometheus.Registry) {
	endpointmetrics.Register()
	// Registered once per process; it stays registered when Run is called again.
	_ = apiservermetrics.RegisterMetrics(legacyregistry.Register)
	both := prometheus.Gatherers{legacyregistry.DefaultGatherer, registry}
	s.Handler.NonGoRestfulMux.Handle("/metrics", promhttp.HandlerFor(both, promhttp.HandlerOpts{}))
}
