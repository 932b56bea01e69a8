// Package prometheus answers the queries of Functions: PromQL instant queries to servers that speak the HTTP API of
// Prometheus, such as Prometheus itself, Thanos, Mimir and VictoriaMetrics.
//
// It hides whom a query may be sent to and with which credentials, how connections are shared and bounded, and all
// that can be wrong with an answer. A server is a stranger: it may hang, flood or lie. What comes out is one finite
// number that is not negative, or an error in words that holds no credential; an answer that is empty, partial or
// ambiguous is never a number.
package prometheus

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

// perServer bounds the queries that one server is asked at the same time. It is how many a Prometheus server works on
// at a time by default; more would only wait there instead of here.
const perServer = 20

// allowFlag is by what operators know Options.Allow.
const allowFlag = "--prometheus-allow"

// Options of a Source.
type Options struct {
	// Secrets reads the Secrets that Functions name. Required.
	Secrets *providers.Secrets
	// Allow lists the servers that may be asked. An entry is a host, with or without a port, or an http or https URL,
	// whose path stands for itself and all below it. A server that matches an entry is trusted with its address too.
	// Default: all servers, but none at a loopback or link-local address, or another where clouds serve credentials.
	Allow []string
}

// Source answers Targets of kind Query. It runs no goroutine between calls. Make it with New; Close it when no call is
// under way any more.
type Source struct {
	secrets *providers.Secrets
	allow   providers.AllowList
	slots   providers.Slots[string] // by server
	clients clients
}

var _ providers.Source = (*Source)(nil)

// New validates o, and starts nothing. The error names the entry of Allow that cannot be read.
func New(o Options) (*Source, error) {
	if o.Secrets == nil {
		return nil, fmt.Errorf("prometheus: Secrets is required")
	}
	allow, err := providers.ParseAllowList(allowFlag, o.Allow)
	if err != nil {
		return nil, err
	}
	return &Source{secrets: o.Secrets, allow: allow, slots: providers.Slots[string]{Most: perServer}, clients: clients{allow: allow}}, nil
}

// Close drops the idle connections.
func (s *Source) Close() { s.clients.close() }

// Measure implements providers.Source: it asks t.Ask until ctx ends, and the Value of its Measurement is the answer.
// An error wraps providers.ErrInvalid when the server answered, and its text names neither credentials nor anything
// that was read from a Secret.
func (s *Source) Measure(ctx context.Context, t providers.Target) (*providers.Measurement, error) {
	if t.Kind != providers.Query {
		return nil, fmt.Errorf("prometheus cannot measure a target of kind %q", t.Kind)
	}
	srv, err := providers.ParseServer(t.Ask.Server)
	if err != nil {
		return nil, err
	}
	if err := s.allow.Check(srv); err != nil {
		return nil, err
	}
	c, err := s.client(ctx, t, srv)
	if err != nil {
		return nil, fmt.Errorf("authRef: %w", err)
	}
	began := time.Now()
	release, err := s.slots.Acquire(ctx, srv.Address())
	if err != nil {
		return nil, fmt.Errorf("%d queries to %s were under way all the time, so that this one could not be sent: %w",
			perServer, srv.Address(), err)
	}
	defer release()
	v, err := c.ask(ctx, srv, t.Ask, began)
	if err != nil {
		return nil, err
	}
	return &providers.Measurement{Value: v}, nil
}

// client returns the client with the credentials of t.
func (s *Source) client(ctx context.Context, t providers.Target, srv providers.Server) (*client, error) {
	if t.Ask.AuthSecret == "" {
		return s.clients.get(providers.Secret{})
	}
	name := types.NamespacedName{Namespace: t.Function.Namespace, Name: t.Ask.AuthSecret}
	secret, err := s.secrets.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := s.clients.get(secret)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	if srv.Scheme == "http" && c.creds.authorization == "" {
		return nil, fmt.Errorf("secret %s has keys for TLS only, which say nothing to a server over http; set server to an https URL", name)
	}
	return c, nil
}

// ask sends the query and reads the answer.
func (c *client) ask(ctx context.Context, srv providers.Server, ask providers.Ask, began time.Time) (float64, error) {
	x := &exchange{transport: c.transport, authorization: c.creds.authorization}
	caller, err := api.NewClient(api.Config{Address: srv.String(), Client: &http.Client{Transport: x}})
	if err != nil {
		return 0, err // parsed once already
	}
	answer, warnings, _, err := promv1.NewAPI(caller).Query(ctx, ask.Expr, time.Time{}, timeout(ctx)...)
	var v float64
	if err == nil {
		err = checkShape(x.body)
	}
	if err == nil {
		v, err = valueOf(answer, warnings, ask.EmptyIsZero)
	}
	if err != nil {
		return 0, c.explain(ctx, err, x.status, began)
	}
	return v, nil
}

// timeout tells the server when the answer is not waited for any more. Prometheus takes no fraction of a unit.
func timeout(ctx context.Context) []promv1.Option {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	left := time.Until(deadline).Truncate(time.Millisecond)
	if left >= time.Second {
		left = left.Truncate(time.Second)
	}
	if left <= 0 {
		return nil // and ctx has ended
	}
	return []promv1.Option{promv1.WithTimeout(left)}
}
