// Command adapter measures functions and serves the numbers as custom metrics; see packages providers and adapter.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/adapter"
	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func main() {
	o := options{adapter: adapter.Options{Server: adapter.NewServerOptions()}}
	o.addFlags(pflag.CommandLine)
	logs := textlogger.NewConfig()
	logs.AddFlags(flag.CommandLine)
	pflag.CommandLine.AddGoFlagSet(flag.CommandLine) // --v and controller-runtime's --kubeconfig
	pflag.Parse()

	log := textlogger.NewLogger(logs)
	klog.SetLogger(log)
	ctrllog.SetLogger(log)
	ctx, stop := signal.NotifyContext(logr.NewContext(context.Background(), log), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, o)
	stop()
	if err != nil {
		log.Error(err, "Adapter ended")
		os.Exit(1)
	}
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.adapter.Namespace, "namespace", v1alpha1.SystemNamespace, "namespace that Sluice runs in")
	flags.DurationVar(&o.intervals.Activator, "activator-interval", time.Second, "how often each activator is measured")
	flags.DurationVar(&o.intervals.Pod, "pod-interval", 2*time.Second,
		"how often each pod that counts its own requests is measured; 5s is for thousands of them")
	flags.DurationVar(&o.intervals.Query, "query-interval", 10*time.Second, "how often each query of a Function is asked")
	flags.DurationVar(&o.intervals.Lag, "kafka-interval", 2*time.Second, "how often the consumer groups of Functions are measured")
	flags.StringSliceVar(&o.prometheusAllow, "prometheus-allow", nil,
		"`servers` that Functions may query, separated by commas: hosts, with or without a port, or URLs. Without any, all "+
			"but those at loopback and link-local addresses")
	flags.StringSliceVar(&o.kafkaAllow, "kafka-allow", nil,
		"Kafka `servers` that Functions may name, separated by commas: hosts, with or without a port. Without any, all but those "+
			"at loopback and link-local addresses")
	flags.DurationVar(&o.adapter.DrainDelay, "drain-delay", 5*time.Second,
		"how long to go on serving after SIGTERM, while readiness fails")
	o.adapter.AddFlags(flags)
	o.adapter.Server.AddFlags(flags)
}
