package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	metrics "github.com/prometheus/client_golang/prometheus"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/sluice-dev/sluice/adapter"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/kafka"
	"github.com/sluice-dev/sluice/providers/prometheus"
	"github.com/sluice-dev/sluice/providers/requests"
)

// options are what the flags say.
type options struct {
	adapter   adapter.Options
	intervals providers.Intervals
	// servers that Functions may name; see the Options of prometheus and kafka
	prometheusAllow, kafkaAllow []string
}

// complete checks the flags, and says to package adapter what they say.
func (o *options) complete() error {
	var errs []error
	for _, i := range []struct {
		flag  string
		every time.Duration
	}{
		{"activator-interval", o.intervals.Activator},
		{"pod-interval", o.intervals.Pod},
		{"query-interval", o.intervals.Query},
		{"kafka-interval", o.intervals.Lag},
	} {
		if i.every < 100*time.Millisecond {
			errs = append(errs, fmt.Errorf("--%s: %s is less than 100ms", i.flag, i.every))
		}
	}
	if o.adapter.DrainDelay == 0 {
		o.adapter.DrainDelay = -1 // none, where Options has its default for zero
	}
	return errors.Join(errs...)
}

// run measures until the server has drained, so that it is not drained with values that grow stale.
func run(ctx context.Context, o options) (err error) {
	if err := o.complete(); err != nil {
		return err
	}
	if o.adapter.Config, err = ctrlconfig.GetConfig(); err != nil {
		return fmt.Errorf("find the Kubernetes API: %w", err)
	}
	secrets, err := readSecrets(o.adapter)
	if err != nil {
		return err
	}
	scraper := requests.NewScraper()
	scraper.Secrets = secrets
	if scraper.MaxConnections, err = maxConnections(); err != nil {
		return err
	}
	defer scraper.Close()
	queries, err := prometheus.New(prometheus.Options{Secrets: secrets, Allow: o.prometheusAllow})
	if err != nil {
		return fmt.Errorf("--prometheus-allow: %w", err)
	}
	defer queries.Close()
	o.adapter.Registry = metrics.NewRegistry()
	lags, err := kafka.New(kafka.Options{
		Secrets: secrets, Allow: o.kafkaAllow, Interval: o.intervals.Lag, Registerer: o.adapter.Registry,
	})
	if err != nil {
		return err
	}
	defer lags.Close()
	store := providers.NewStore(o.intervals)
	o.adapter.Reader = store
	events, err := newEvents(o.adapter)
	if err != nil {
		return err
	}
	collector, err := providers.NewCollector(providers.Options{
		Store:     store,
		Discovery: &requests.Discovery{Config: o.adapter.Config, Namespace: o.adapter.Namespace},
		Sources: map[providers.Kind]providers.Source{
			providers.Activator: scraper, providers.Pod: scraper, providers.Query: queries, providers.Lag: lags,
		},
		Notifier: events, Registerer: o.adapter.Registry,
	})
	if err != nil {
		return err
	}
	o.adapter.Ready = collector.Ready
	if err := o.adapter.Validate(); err != nil { // before anything else runs and says things
		return err
	}

	serving, stop := context.WithCancelCause(ctx)
	measuring, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { stop(collector.Run(measuring)) })
	running.Go(func() { events.Run(measuring) })
	if err := adapter.Run(serving, o.adapter); err != nil {
		return err
	}
	if cause := context.Cause(serving); ctx.Err() == nil {
		return cause
	}
	return nil
}

// newEvents names this replica by its host, which in a pod is the pod.
func newEvents(o adapter.Options) (*adapter.Events, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this replica: %w", err)
	}
	return adapter.NewEvents(o.Config, o.Reader, host, o.Registry)
}

// maxConnections is how many of the files that the process may open are for connections to pods and activators: the
// rest, a tenth, is for whoever reads, and for the API server.
func maxConnections() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return int(min(limit.Cur, math.MaxInt32)) / 10 * 9, nil
}

// readSecrets reads with a client of its own, whose rate is bounded by how long Secrets remembers and not by the
// client: one namespace's Secrets must not delay another's.
func readSecrets(o adapter.Options) (*providers.Secrets, error) {
	config := rest.CopyConfig(o.Config)
	config.QPS = -1
	client, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for secrets: %w", err)
	}
	return providers.NewSecrets(providers.SecretsOptions{Client: client, Namespace: o.Namespace}), nil
}
