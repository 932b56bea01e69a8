package adapter

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The flags of AddFlags, by which errors name what is wrong.
const (
	flagUpstreamCustom   = "upstream-custom-metrics"
	flagUpstreamExternal = "upstream-external-metrics"
	flagUpstreamCA       = "upstream-ca-file"
	flagUpstreamToken    = "upstream-token-file"
	flagUpstreamInsecure = "upstream-insecure-skip-tls-verify"
	flagUpstreamTimeout  = "upstream-timeout"
	flagExternalMetrics  = "external-metrics"
)

// Upstreams are other adapters, which answer for the metrics that are not Sluice's.
type Upstreams struct {
	// CustomMetrics and ExternalMetrics name the Service of another adapter of custom.metrics.k8s.io and of
	// external.metrics.k8s.io, as NAMESPACE/SERVICE[:PORT]. Port 443 where there is none. Empty: no other adapter.
	CustomMetrics, ExternalMetrics string
	// CAFile has the certificates, in PEM, of the authorities that vouch for their serving certificates, which must be
	// for SERVICE.NAMESPACE.svc. Read again every 5 minutes. Default: the system's.
	CAFile string
	// TokenFile has the bearer token that they are asked with. Read again every minute. Default: that of
	// Options.Config, the ServiceAccount's.
	TokenFile string
	// InsecureSkipTLSVerify takes whoever answers for the other adapter. TokenFile is required with it, so that the
	// adapter's own token is never given to a stranger.
	InsecureSkipTLSVerify bool
	// Timeout bounds a forwarded read, the body included. Default 5s.
	Timeout time.Duration
}

// ExternalMetrics says whether the adapter registers itself for external.metrics.k8s.io.
type ExternalMetrics string

const (
	// ExternalMetricsAuto creates the APIService while there is none, and leaves a foreign one alone.
	ExternalMetricsAuto ExternalMetrics = "Auto"
	// ExternalMetricsOff never creates it, and deletes the one that leads to this adapter.
	ExternalMetricsOff ExternalMetrics = "Off"
)

// AddFlags adds the flags of Upstreams and ExternalMetrics, with what o has as defaults. What they say is checked by
// Run.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	if o.ExternalMetrics == "" {
		o.ExternalMetrics = ExternalMetricsAuto
	}
	if o.Upstreams.Timeout == 0 {
		o.Upstreams.Timeout = defaultUpstreamTimeout
	}
	u := &o.Upstreams
	flags.StringVar(&u.CustomMetrics, flagUpstreamCustom, u.CustomMetrics,
		"`NAMESPACE/SERVICE[:PORT]` of another adapter of custom.metrics.k8s.io, which answers for what is not Sluice's")
	flags.StringVar(&u.ExternalMetrics, flagUpstreamExternal, u.ExternalMetrics,
		"`NAMESPACE/SERVICE[:PORT]` of another adapter of external.metrics.k8s.io, which answers for what is not Sluice's")
	flags.StringVar(&u.CAFile, flagUpstreamCA, u.CAFile,
		"`file` with the authorities that vouch for the other adapters' serving certificates; the system's by default")
	flags.StringVar(&u.TokenFile, flagUpstreamToken, u.TokenFile,
		"`file` with the bearer token for the other adapters; the ServiceAccount's by default")
	flags.BoolVar(&u.InsecureSkipTLSVerify, flagUpstreamInsecure, u.InsecureSkipTLSVerify,
		"do not verify the other adapters' certificates; requires --"+flagUpstreamToken)
	flags.DurationVar(&u.Timeout, flagUpstreamTimeout, u.Timeout, "how long a forwarded read may take")
	flags.StringVar((*string)(&o.ExternalMetrics), flagExternalMetrics, string(o.ExternalMetrics),
		"`Auto` registers the adapter for external.metrics.k8s.io while nobody else is; Off does not")
}

// serviceRef is the Service of another adapter.
type serviceRef struct {
	types.NamespacedName
	port int
}

// host is the name that its certificate is for.
func (s serviceRef) host() string { return s.Name + "." + s.Namespace + ".svc" }

func (s serviceRef) address() string { return net.JoinHostPort(s.host(), strconv.Itoa(s.port)) }

// parseService reads NAMESPACE/SERVICE[:PORT].
func parseService(text string) (serviceRef, error) {
	s := serviceRef{port: 443}
	namespace, rest, ok := strings.Cut(text, "/")
	name, port, hasPort := strings.Cut(rest, ":")
	if !ok {
		return s, fmt.Errorf("%q is not NAMESPACE/SERVICE[:PORT]", text)
	}
	s.NamespacedName = types.NamespacedName{Namespace: namespace, Name: name}
	if wrong := validation.IsDNS1123Label(namespace); len(wrong) > 0 {
		return s, fmt.Errorf("%q: namespace %q: %s", text, namespace, wrong[0])
	}
	if wrong := validation.IsDNS1123Label(name); len(wrong) > 0 {
		return s, fmt.Errorf("%q: service %q: %s", text, name, wrong[0])
	}
	if hasPort {
		n, err := strconv.Atoi(port)
		if err != nil || len(validation.IsValidPortNum(n)) > 0 {
			return s, fmt.Errorf("%q: port %q is not a number from 1 to 65535", text, port)
		}
		s.port = n
	}
	return s, nil
}

// validate checks what the flags set. The errors name them.
func (o Options) validate() error {
	u := o.Upstreams
	var errs []error
	if s := o.Server.SecureServing; s.BindPort == 0 && s.Listener == nil {
		errs = append(errs, errors.New("--secure-port: 0 is no port to serve on, and nothing else is served on"))
	}
	for _, named := range []struct{ flag, text string }{
		{flagUpstreamCustom, u.CustomMetrics}, {flagUpstreamExternal, u.ExternalMetrics},
	} {
		if named.text == "" {
			continue
		}
		s, err := parseService(named.text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("--%s: %w", named.flag, err))
		case s.Namespace == o.Namespace && s.Name == Service:
			errs = append(errs, fmt.Errorf("--%s: %s is this adapter's own Service: name the other adapter's", named.flag, named.text))
		}
	}
	if u.InsecureSkipTLSVerify && u.TokenFile == "" {
		errs = append(errs, fmt.Errorf("--%s would give the ServiceAccount's token to whoever answers: name a token made "+
			"for this in --%s, or the authority of the other adapter's certificate in --%s",
			flagUpstreamInsecure, flagUpstreamToken, flagUpstreamCA))
	}
	if u.InsecureSkipTLSVerify && u.CAFile != "" {
		errs = append(errs, fmt.Errorf("--%s and --%s exclude each other", flagUpstreamInsecure, flagUpstreamCA))
	}
	for _, named := range []struct{ flag, path string }{{flagUpstreamCA, u.CAFile}, {flagUpstreamToken, u.TokenFile}} {
		if named.path == "" {
			continue
		}
		if _, err := os.ReadFile(named.path); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", named.flag, err))
		}
	}
	if u.Timeout < 0 {
		errs = append(errs, fmt.Errorf("--%s: %s is negative", flagUpstreamTimeout, u.Timeout))
	}
	switch o.ExternalMetrics {
	case ExternalMetricsAuto, ExternalMetricsOff:
	default:
		errs = append(errs, fmt.Errorf("--%s: %q is neither Auto nor Off", flagExternalMetrics, o.ExternalMetrics))
	}
	return errors.Join(errs...)
}
