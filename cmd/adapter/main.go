// Command adapter measures functions and serves the numbers as custom metrics; see packages providers and adapter.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/adapter"
	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
	"github.com/sluice-dev/sluice/providers/requests"
)

func main() {
	o := adapter.Options{Server: adapter.NewServerOptions()}
	var intervals providers.Intervals
	flags := pflag.CommandLine
	flags.StringVar(&o.Namespace, "namespace", v1alpha1.SystemNamespace, "namespace that Sluice runs in")
	flags.DurationVar(&intervals.Activator, "activator-interval", time.Second, "how often each activator is measured")
	flags.DurationVar(&intervals.Pod, "pod-interval", 2*time.Second, "how often each pod that counts its own requests is measured")
	flags.DurationVar(&o.DrainDelay, "drain-delay", 5*time.Second, "how long to go on serving after SIGTERM, while readiness fails")
	o.Server.AddFlags(flags)
	logs := textlogger.NewConfig()
	logs.AddFlags(flag.CommandLine)
	flags.AddGoFlagSet(flag.CommandLine) // --v and controller-runtime's --kubeconfig
	pflag.Parse()

	log := textlogger.NewLogger(logs)
	klog.SetLogger(log)
	ctrllog.SetLogger(log)
	ctx, stop := signal.NotifyContext(logr.NewContext(context.Background(), log), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, o, intervals)
	stop()
	if err != nil {
		log.Error(err, "Adapter ended")
		os.Exit(1)
	}
}

// run measures until the server has drained, so that it is not drained with values that grow stale.
func run(ctx context.Context, o adapter.Options, intervals providers.Intervals) (err error) {
	if o.Config, err = ctrlconfig.GetConfig(); err != nil {
		return fmt.Errorf("find the Kubernetes API: %w", err)
	}
	store := providers.NewStore(intervals)
	o.Reader, o.Registry = store, prometheus.NewRegistry()
	scraper := requests.NewScraper()
	defer scraper.Close()
	collector, err := providers.NewCollector(providers.Options{
		Store:      store,
		Discovery:  &requests.Discovery{Config: o.Config, Namespace: o.Namespace},
		Sources:    map[providers.Kind]providers.Source{providers.Activator: scraper, providers.Pod: scraper},
		Registerer: o.Registry,
	})
	if err != nil {
		return err
	}
	o.Ready = collector.Ready

	serving, stop := context.WithCancelCause(ctx)
	measuring, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { stop(collector.Run(measuring)) })
	if err := adapter.Run(serving, o); err != nil {
		return err
	}
	if cause := context.Cause(serving); ctx.Err() == nil {
		return cause
	}
	return nil
}
