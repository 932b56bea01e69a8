package main

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/activator"
)

func envOf(m map[string]string) func(string) string {
	return func(name string) string { return m[name] }
}

func TestTracesAreOffByDefault(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, // of whoever else reads it
		{"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
		{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
	} {
		f, err := traceDefaults(envOf(env))
		if err != nil {
			t.Errorf("%v: %v", env, err)
		}
		if o, err := f.options(t.Context()); o != nil || err != nil {
			t.Errorf("%v: got %+v, %v, want no traces", env, o, err)
		}
	}
}

func TestTracesByOpenTelemetrysVariables(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want activator.TraceOptions
	}{
		{
			"of all signals",
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318/", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20a%3Db, x-tenant=1"},
			activator.TraceOptions{Endpoint: "https://c:4318/v1/traces", Ratio: 1, Headers: map[string]string{"authorization": "Bearer a=b", "x-tenant": "1"}},
		},
		{
			"of traces, which come first",
			map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/in",
				"OTEL_EXPORTER_OTLP_HEADERS": "a=1", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2",
				"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
			},
			activator.TraceOptions{Endpoint: "http://t/in", Ratio: 1, Headers: map[string]string{"b": "2"}},
		},
		{
			"a part",
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
			activator.TraceOptions{Endpoint: "http://c/v1/traces", Ratio: .25, Headers: map[string]string{}},
		},
		{
			"only what has begun",
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_SAMPLER": "parentbased_always_off"},
			activator.TraceOptions{Endpoint: "http://c/v1/traces", Headers: map[string]string{}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := traceDefaults(envOf(tt.env))
			if err != nil {
				t.Fatal(err)
			}
			got, err := f.options(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(got.Resource.String(), "service.name=sluice-activator") {
				t.Errorf("resource %s", got.Resource)
			}
			got.Resource = nil
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTracesThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER"},
		{map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"},
		{map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "OTEL_EXPORTER_OTLP_HEADERS"},
		{map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=secret%0d%0ab: c"}, "OTEL_EXPORTER_OTLP_HEADERS"},
		{map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"}, "from 0 to 1"},
		{map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent"}, "authorities"},
	} {
		tt.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://c:4318"
		f, err := traceDefaults(envOf(tt.env))
		if err == nil {
			_, err = f.options(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v: got %v, want an error that names %s, and no header", tt.env, err, tt.want)
		}
	}
}

func TestAuthoritiesOfTheReceiver(t *testing.T) {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := traceFlags{endpoint: srv.URL, ratio: "1", ca: file}.options(t.Context())
	if err != nil || o.TLS == nil || o.TLS.RootCAs == nil {
		t.Errorf("got %+v, %v, want the authorities of the file", o, err)
	}
}
