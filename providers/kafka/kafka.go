// Package kafka measures how far consumer groups are behind.
//
// It hides that functions share clusters: whoever asks first looks for all, in a number of requests that does not grow
// with them (a ListOffsets per leader, an OffsetFetch per coordinator), over one connection to each broker. What it gives
// out is the lag of all partitions, or why it is not known: a partition that cannot be told makes the whole unknown, and
// never smaller.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go/protocol"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// allowFlag is by what operators know Options.Allow.
const allowFlag = "--kafka-allow"

// Options of a Source.
type Options struct {
	// Secrets has the credentials that Functions name. Required.
	Secrets *providers.Secrets
	// Allow lists the servers that Functions and their Secrets may name: bootstrap servers and token endpoints, as hosts, with
	// or without a port. One that matches an entry is trusted with its address too, and with whom it names: other brokers may be
	// at any address that providers.CheckAddress lets through, or match an entry themselves. Default: all servers, but none,
	// and no broker, at another address.
	Allow []string
	// Interval is how often each target is measured. Default 2s.
	Interval time.Duration
	// MetadataInterval is how often it is looked who leads what, besides when something says that it has changed. Partitions
	// that are added, and what retention deletes, are noticed as late. Default 30s.
	MetadataInterval time.Duration
	// Registerer takes the Source's own metrics. Default: none.
	Registerer prometheus.Registerer
}

// Source answers Targets of kind Lag. It runs no goroutine between calls. Make it with New; Close it when no call is under
// way any more.
type Source struct {
	opts     Options
	allow    providers.AllowList
	requests *prometheus.CounterVec

	mu       sync.Mutex // protects following
	clusters map[identity]*cluster
	swept    time.Time
}

// identity is whatever tells one way to ask a cluster from another. Functions of different namespaces share it where
// their Secrets say the same.
type identity struct {
	servers string
	secret  providers.SecretVersion // zero for none
}

type cluster struct {
	*poller
	used time.Time
}

var _ providers.Source = (*Source)(nil)

// New validates o, and starts nothing. The error names the entry of Allow that cannot be read.
func New(o Options) (*Source, error) {
	if o.Secrets == nil {
		return nil, errors.New("kafka: Secrets is required")
	}
	if o.Interval <= 0 {
		o.Interval = 2 * time.Second
	}
	if o.MetadataInterval <= 0 {
		o.MetadataInterval = 30 * time.Second
	}
	allow, err := providers.ParseHostList(allowFlag, o.Allow)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", allowFlag, err)
	}
	s := &Source{opts: o, allow: allow, clusters: map[identity]*cluster{}, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_adapter_kafka_requests_total", Help: "Requests to Kafka brokers, by their API.",
	}, []string{"api"})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(s.requests); err != nil {
			return nil, fmt.Errorf("register kafka's metrics: %w", err)
		}
	}
	return s, nil
}

// Close drops all connections.
func (s *Source) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.clusters {
		c.close()
		delete(s.clusters, id)
	}
}

// Measure implements providers.Source: the Answers are the lag of t.Consumer and what follows from it, as of half an
// interval ago at most. The error's text holds nothing of a Secret but names of hosts.
func (s *Source) Measure(ctx context.Context, t providers.Target) (*providers.Measurement, error) {
	if t.Kind != providers.Lag {
		return nil, fmt.Errorf("kafka cannot measure a target of kind %q", t.Kind)
	}
	if err := s.permit(t.Consumer.Servers); err != nil {
		return nil, fmt.Errorf("bootstrapServers: %w", err)
	}
	subscription := subscriptionOf(&t.Consumer)
	c, err := s.cluster(ctx, t, subscription)
	if err != nil {
		return nil, fmt.Errorf("authRef: %w", err)
	}
	l, at, err := c.measure(ctx, subscription)
	if err != nil {
		return nil, err
	}
	return &providers.Measurement{At: at, Answers: l.answers(&t.Consumer), Partitions: l.each, Notices: l.notices}, nil
}

// permit is nil where Functions may name all of servers.
func (s *Source) permit(servers string) error {
	if s.allow.Empty() {
		return nil
	}
	for address := range strings.SplitSeq(servers, ",") {
		server, err := providers.ParseAddress(address)
		if err == nil {
			err = s.allow.Check(server)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answers are the metrics of c.
func (l *lag) answers(c *providers.Consumer) []providers.Answer {
	const standing = "the group has committed nothing new in the last minute, so that nobody knows how long it needs"
	seconds := providers.Answer{Metric: c.Metric(v1alpha1.KafkaLagSeconds), Unknown: standing}
	if d, ok := l.drain(); ok {
		seconds.Value, seconds.Window, seconds.Unknown = d.Seconds(), l.window, ""
	}
	rate := providers.Answer{Metric: c.Metric(v1alpha1.KafkaEndOffsetRate), Value: l.endRate, Window: l.window}
	if l.window == 0 {
		rate.Unknown = "the partitions have been looked at once only"
	}
	return []providers.Answer{
		{Metric: c.Metric(v1alpha1.KafkaLag), Value: float64(l.records)},
		seconds, rate,
		{Metric: c.Metric(v1alpha1.KafkaPartitions), Value: float64(l.partitions)},
	}
}

// cluster returns the poller for t, which knows what is remembered of its subscription.
func (s *Source) cluster(ctx context.Context, t providers.Target, of subscription) (*poller, error) {
	var secret providers.Secret
	if t.Consumer.AuthSecret != "" {
		name := types.NamespacedName{Namespace: t.Function.Namespace, Name: t.Consumer.AuthSecret}
		var err error
		if secret, err = s.opts.Secrets.Get(ctx, name); err != nil {
			return nil, err
		}
	}
	id := identity{servers: t.Consumer.Servers, secret: secret.Version}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(now)
	c := s.clusters[id]
	if c == nil {
		security, err := parseCredentials(secret.Data, s.allow)
		if err != nil {
			return nil, fmt.Errorf("secret %s/%s: %w", t.Function.Namespace, t.Consumer.AuthSecret, err)
		}
		c = &cluster{poller: newPoller(&s.opts, strings.Split(id.servers, ","), security, func(key protocol.ApiKey) {
			s.requests.WithLabelValues(key.String()).Inc()
		})}
		s.clusters[id] = c
	}
	c.used = now
	s.inheritLocked(id, c.poller, of)
	return c.poller, nil
}

// inheritLocked hands on where a group stood, when its credentials are rotated: without it, what a group without a commit
// has left to read would count from now on, and be nothing.
func (s *Source) inheritLocked(id identity, to *poller, of subscription) {
	if to.knows(of) {
		return
	}
	var last time.Time
	var from memory
	for other, c := range s.clusters {
		if other.servers != id.servers || c.poller == to {
			continue
		}
		if asked, stood, ok := c.recall(of); ok && asked.After(last) {
			last, from = asked, stood
		}
	}
	if from.positions != nil {
		to.remember(of, from)
	}
}

// sweepLocked forgets clusters that nobody has asked about for long; their connections are closed already.
func (s *Source) sweepLocked(now time.Time) {
	if now.Sub(s.swept) < idleAfter {
		return
	}
	s.swept = now
	for id, c := range s.clusters {
		if now.Sub(c.used) > max(forgetAfter, 3*s.opts.Interval) {
			c.close()
			delete(s.clusters, id)
		}
	}
}
