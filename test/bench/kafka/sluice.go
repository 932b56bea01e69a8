package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
	"github.com/sluice-dev/sluice/test/bench/kafka/subject"
)

// sluice is what cmd/adapter has for lags, wired as there, with a Function for each group. Only who tells of Functions is
// another one, and nobody reads the metrics API.
type sluice struct {
	subject.Options
	store    *providers.Store
	registry *prometheus.Registry
	recorder subject.Recorder

	mu       sync.Mutex // protects following
	requests map[string]int
}

// serveSluice measures until ctx ends.
func serveSluice(ctx context.Context, o subject.Options) error {
	s := &sluice{
		Options: o, store: providers.NewStore(providers.Intervals{Lag: o.Interval}), registry: prometheus.NewRegistry(),
		recorder: subject.Recorder{Turns: o.Interval}, requests: map[string]int{},
	}
	lags, err := kafka.New(kafka.Options{
		Secrets:  providers.NewSecrets(providers.SecretsOptions{}), // nobody names one
		Allow:    []string{"127.0.0.1"},
		Interval: o.Interval, Registerer: s.registry,
	})
	if err != nil {
		return err
	}
	defer lags.Close()
	collector, err := providers.NewCollector(providers.Options{
		Store: s.store, Discovery: s, Sources: map[providers.Kind]providers.Source{providers.Lag: timed{lags, &s.recorder}},
		Registerer: s.registry,
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { stop(collector.Run(ctx)) })
	err = subject.Serve(ctx, o.Address, s)
	stop(err)
	return err
}

// timed is a Source that keeps how long it takes.
type timed struct {
	providers.Source
	recorder *subject.Recorder
}

// Measure implements providers.Source.
func (t timed) Measure(ctx context.Context, target providers.Target) (m *providers.Measurement, err error) {
	t.recorder.Poll(func() error {
		m, err = t.Source.Measure(ctx, target)
		return err
	})
	return m, err
}

func (s *sluice) function(i int) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("function-%04d", i)}
}

// Run implements providers.Discovery: there are as many Functions as groups, and stay so.
func (s *sluice) Run(ctx context.Context, sink providers.Sink) error {
	sink.SetActivators(nil)
	for i := range s.Groups {
		name := s.function(i)
		sink.SetFunction(providers.Function{Name: name}, []providers.Endpoint{{
			Target: providers.Target{Kind: providers.Lag, Function: name, Consumer: providers.Consumer{
				Servers: s.Servers, Group: subject.Group(i), Topics: subject.Topic(s.TopicOf(i)),
				Reset: v1alpha1.KafkaLatest, Isolation: v1alpha1.KafkaReadUncommitted,
			}},
			Ready: true, Expected: true,
		}})
	}
	sink.Synced()
	<-ctx.Done()
	return nil
}

// Lags implements subject.Subject, by what the metrics API would serve.
func (s *sluice) Lags() []subject.Answer {
	all := make([]subject.Answer, s.Groups)
	for i := range all {
		v, err := s.store.Value(s.function(i), v1alpha1.KafkaLag)
		if err != nil {
			all[i].Unknown = err.Error()
			continue
		}
		all[i].Lag = int64(v.Value)
	}
	return all
}

// Seen implements subject.Subject.
func (s *sluice) Seen() subject.Seen {
	seen := s.recorder.Seen()
	seen.Requests = map[string]int{}
	families, err := s.registry.Gather()
	if err != nil {
		seen.Error = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range families {
		if f.GetName() != "sluice_adapter_kafka_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			api, n := m.GetLabel()[0].GetValue(), int(m.GetCounter().GetValue())
			seen.Requests[api] = n - s.requests[api]
			s.requests[api] = n
		}
	}
	return seen
}
