package adapter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/pflag"
	tracecollector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"k8s.io/client-go/rest"
)

const awakePath = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/functions.sluice.dev/awake/requests_per_second"

func TestAccess(t *testing.T) {
	r := start(t, nil)
	external := "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/requests_per_second?labelSelector=function%3Dawake"
	for _, path := range []string{awakePath, external, "/debug/pprof/heap"} {
		for token, want := range map[string]int{
			"": http.StatusForbidden, "bad": http.StatusUnauthorized, "poor": http.StatusForbidden, "good": http.StatusOK,
		} {
			if code, body := r.try(path, token); code != want {
				t.Errorf("%s, token %q: status %d, want %d: %s", path, token, code, want, body)
			}
		}
	}
}

// TestReviewsAreCached: reads of a caller that is known already cost the API server nothing, whether it may or not.
func TestReviewsAreCached(t *testing.T) {
	r := start(t, nil)
	counts := func() (access, tokens int) {
		r.api.mu.Lock()
		defer r.api.mu.Unlock()
		return r.api.reviews, r.api.tokenReviews
	}
	for token, code := range map[string]int{"good": http.StatusOK, "poor": http.StatusForbidden} {
		if got, body := r.try(awakePath, token); got != code {
			t.Fatalf("token %q: status %d: %s", token, got, body)
		}
		access, tokens := counts()
		if access == 0 || tokens == 0 {
			t.Fatalf("the first read of token %q cost %d reviews of access and %d of tokens, want some", token, access, tokens)
		}
		for range 20 {
			r.try(awakePath, token)
		}
		if a, n := counts(); a != access || n != tokens {
			t.Errorf("20 more reads of token %q cost %d reviews of access and %d of tokens, want none", token, a-access, n-tokens)
		}
	}
}

// TestCacheTimes: the HorizontalPodAutoscaler reads every 15 s, so what it may do is remembered longer than that; that
// somebody has been granted access shows within seconds.
func TestCacheTimes(t *testing.T) {
	o := NewServerOptions().Authorization
	if o.AllowCacheTTL.Minutes() != 5 || o.DenyCacheTTL.Seconds() != 10 {
		t.Errorf("allowed for %s, denied for %s; want 5m and 10s", o.AllowCacheTTL, o.DenyCacheTTL)
	}
}

// flags sets the server's options as the command line does.
func flags(t *testing.T, arguments ...string) func(*Options) {
	t.Helper()
	return func(o *Options) {
		set := pflag.NewFlagSet("adapter", pflag.ContinueOnError)
		o.Server.AddFlags(set)
		if err := set.Parse(arguments); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAuditFlags(t *testing.T) {
	log := filepath.Join(t.TempDir(), "audit.log")
	policy := write(t, "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n")
	r := start(t, flags(t, "--audit-policy-file="+policy, "--audit-log-path="+log))
	if code, body := r.try(awakePath, "good"); code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	r.eventually("a line of the read", func() string {
		data, err := os.ReadFile(log)
		if err != nil {
			return err.Error()
		}
		for line := range bytes.Lines(data) {
			var event struct {
				Verb, RequestURI, Level string
				User                    struct{ Username string }
				ObjectRef               struct{ Resource, Namespace, Name, Subresource string }
			}
			if json.Unmarshal(line, &event) == nil && event.RequestURI == awakePath && event.User.Username == "good" &&
				event.Verb == "get" && event.Level == "Metadata" && event.ObjectRef.Name == "awake" {
				return ""
			}
		}
		return string(data)
	})
}

func TestProfilingFlags(t *testing.T) {
	r := start(t, flags(t, "--profiling=false"))
	if code, body := r.try("/debug/pprof/heap", "good"); code != http.StatusNotFound {
		t.Errorf("without profiling: status %d: %s", code, body)
	}
	r = start(t, flags(t, "--contention-profiling"))
	for _, profile := range []string{"", "heap", "block", "goroutine?debug=1"} {
		if code, _ := r.try("/debug/pprof/"+profile, "good"); code != http.StatusOK {
			t.Errorf("profile %q: status %d", profile, code)
		}
		if code, _ := r.try("/debug/pprof/"+profile, ""); code != http.StatusForbidden {
			t.Errorf("profile %q, anonymous: status %d, want %d", profile, code, http.StatusForbidden)
		}
	}
}

// collector is an OpenTelemetry collector that remembers the names of spans by service.
type collector struct {
	tracecollector.UnimplementedTraceServiceServer
	mu    sync.Mutex // protects following
	spans map[string][]string
}

func (c *collector) Export(
	_ context.Context, r *tracecollector.ExportTraceServiceRequest,
) (*tracecollector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		service := ""
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				c.spans[service] = append(c.spans[service], span.Name)
			}
		}
	}
	return &tracecollector.ExportTraceServiceResponse{}, nil
}

func TestTracingFlag(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{spans: map[string][]string{}}
	server := grpc.NewServer()
	tracecollector.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	config := write(t, fmt.Sprintf("apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n"+
		"endpoint: %s\nsamplingRatePerMillion: 1000000\n", listener.Addr()))
	r := start(t, flags(t, "--tracing-config-file="+config))
	if code, body := r.try(awakePath, "good"); code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	r.eventually("a span of the read", func() string {
		c.mu.Lock()
		defer c.mu.Unlock()
		if slices.ContainsFunc(c.spans[tracingService], func(name string) bool {
			return strings.Contains(name, "functions.sluice.dev") || strings.Contains(name, "/apis/custom.metrics.k8s.io")
		}) {
			return ""
		}
		return fmt.Sprint(c.spans)
	})
}

func TestTracingConfigurationThatIsWrong(t *testing.T) {
	api := newAPIServer(t)
	for name, file := range map[string]string{
		"missing": filepath.Join(t.TempDir(), "missing.yaml"),
		"no YAML": write(t, "}{"),
		"rate":    write(t, "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nsamplingRatePerMillion: -1\n"),
	} {
		o, err := Options{Config: &rest.Config{Host: api.URL}, Reader: functions, Server: NewServerOptions()}.complete()
		if err != nil {
			t.Fatal(err)
		}
		flags(t, "--tracing-config-file="+file)(&o)
		o.Server.SecureServing.BindPort = 0
		if _, err := newServer(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "racing") {
			t.Errorf("%s: error %v, want one of tracing", name, err)
		}
	}
}
