package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"

	"github.com/sluice-dev/sluice/activator"
)

// traceFlags are the flags about traces. Their defaults are what OpenTelemetry's own variables say, as far as
// docs/operations.md lists them; the others of these variables are not read.
type traceFlags struct {
	endpoint, ratio string
	headers, ca     string // only by variables: the first may hold a token, the second comes with a file
	disabled        bool
}

// traceDefaults reads the variables, which env gives.
func traceDefaults(env func(string) string) (f traceFlags, err error) {
	// For traces alone before for all signals, as the specification has it.
	either := func(name string) string {
		if v := env("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
			return v
		}
		return env("OTEL_EXPORTER_OTLP_" + name)
	}
	if f.endpoint = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); f.endpoint == "" && env("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		f.endpoint = strings.TrimSuffix(env("OTEL_EXPORTER_OTLP_ENDPOINT"), "/") + "/v1/traces"
	}
	f.headers, f.ca = either("HEADERS"), either("CERTIFICATE")
	f.disabled = strings.EqualFold(env("OTEL_SDK_DISABLED"), "true") || env("OTEL_TRACES_EXPORTER") == "none"
	switch sampler := env("OTEL_TRACES_SAMPLER"); sampler {
	case "", "parentbased_always_on":
		f.ratio = "1"
	case "parentbased_always_off":
		f.ratio = "0"
	case "parentbased_traceidratio":
		if f.ratio = env("OTEL_TRACES_SAMPLER_ARG"); f.ratio == "" {
			f.ratio = "1"
		}
	default:
		return f, fmt.Errorf("OTEL_TRACES_SAMPLER %q: the activator has parentbased_always_on, parentbased_always_off and "+
			"parentbased_traceidratio", sampler)
	}
	if p := either("PROTOCOL"); f.endpoint != "" && p != "" && p != "http/protobuf" {
		return f, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL %q: the activator speaks http/protobuf alone, mostly at port 4318", p)
	}
	return f, nil
}

// options are those of the activator; nil where nothing is to be traced.
func (f traceFlags) options(ctx context.Context) (*activator.TraceOptions, error) {
	if f.endpoint == "" || f.disabled {
		return nil, nil //nolint:nilnil // nothing, and no error
	}
	ratio, err := strconv.ParseFloat(f.ratio, 64)
	if err != nil {
		return nil, fmt.Errorf("ratio of traces %q: must be a number from 0 to 1", f.ratio)
	}
	o := &activator.TraceOptions{Endpoint: f.endpoint, Ratio: ratio}
	if o.Headers, err = traceHeaders(f.headers); err != nil {
		return nil, err
	}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("authorities of the receiver of traces: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities of the receiver of traces: no certificate in %s", f.ca)
		}
		o.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this instance: %w", err)
	}
	// What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes last, and wins.
	o.Resource, err = resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("sluice-activator"), semconv.ServiceInstanceID(host)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("resource of traces: %w", err)
	}
	return o, nil
}

var errTraceHeaders = errors.New("OTEL_EXPORTER_OTLP_HEADERS must be name=value pairs with commas between them, values percent-encoded")

// traceHeaders reads headers as the variable has them. An error does not tell them, as they may hold a token.
func traceHeaders(s string) (map[string]string, error) {
	headers := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if name = strings.TrimSpace(name); !ok || err != nil || name == "" || strings.ContainsAny(name+value, "\r\n") {
			return nil, errTraceHeaders
		}
		headers[name] = value
	}
	return headers, nil
}
