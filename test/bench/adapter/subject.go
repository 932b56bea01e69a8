package main

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/adapter"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/requests"
)

// subject is the adapter as cmd/adapter runs it, but for the activators: an EndpointSlice may not name loopback
// addresses, so they are told here.
func subject(ctx context.Context, kubeconfig, address string, activators []string) error {
	klog.SetLogger(logr.Discard())
	ctrllog.SetLogger(logr.Discard())
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	store := providers.NewStore(providers.Intervals{})
	scraper := requests.NewScraper()
	defer scraper.Close()
	registry := prometheus.NewRegistry()
	collector, err := providers.NewCollector(providers.Options{
		Store:      store,
		Discovery:  discovery{real: &requests.Discovery{Config: config}, activators: activators},
		Sources:    map[providers.Kind]providers.Source{providers.Activator: scraper, providers.Pod: scraper},
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := adapter.NewServerOptions()
	server.SecureServing.Listener, server.SecureServing.BindPort = listener, 0
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { cancel(collector.Run(ctx)) })
	err = adapter.Run(ctx, adapter.Options{
		Config: config, Reader: store, Ready: collector.Ready, Registry: registry, Server: server, DrainDelay: -1,
	})
	cancel(nil)
	if err != nil {
		return fmt.Errorf("adapter: %w", err)
	}
	return nil
}

// discovery is the real one, but for the activators.
type discovery struct {
	real       providers.Discovery
	activators []string
}

func (d discovery) Run(ctx context.Context, sink providers.Sink) error {
	endpoints := make([]providers.Endpoint, len(d.activators))
	for i, address := range d.activators {
		endpoints[i] = providers.Endpoint{
			Target: providers.Target{
				Kind: providers.Activator, UID: types.UID(address), Address: address, Scrape: providers.Scrape{Path: "/metrics"},
			},
			Ready: true, Expected: true,
		}
	}
	return d.real.Run(ctx, activatorSink{Sink: sink, activators: endpoints})
}

type activatorSink struct {
	providers.Sink
	activators []providers.Endpoint
}

func (s activatorSink) SetActivators([]providers.Endpoint) { s.Sink.SetActivators(s.activators) }
