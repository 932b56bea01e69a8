// Command scaler puts idle functions to sleep, tends their HorizontalPodAutoscalers, and keeps the gate in the path
// while they have no pod. See package scaler.
package main

import (
	"context"
	"flag"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/scaler"
)

func main() {
	var o scaler.Options
	// Flags of the standard library: controller-runtime adds --kubeconfig to them.
	flag.StringVar(&o.Namespace, "namespace", v1alpha1.SystemNamespace, "namespace that Sluice runs in")
	flag.StringVar(&o.MetricsAddress, "metrics-address", ":8080", "address of /metrics, 0 for none")
	flag.StringVar(&o.HealthAddress, "health-address", ":8081", "address of /healthz and /readyz, 0 for none")
	flag.DurationVar(&o.PollInterval, "poll-interval", 0, "how often metrics of functions that are awake are read, 100ms to 5s (default 1s)")
	flag.DurationVar(&o.Grace, "grace", 0, "time between the proof of the data path and the scale to zero (default 1s)")
	leaderElect := flag.Bool("leader-elect", true, "elect a leader by the Lease sluice-scaler")
	first := flag.Int("first-port", 20000, "first gate port")
	last := flag.Int("last-port", 29999, "last gate port")
	logging := textlogger.NewConfig()
	logging.AddFlags(flag.CommandLine)
	flag.Parse()
	o.NoLeaderElection, o.FirstPort, o.LastPort = !*leaderElect, int32(*first), int32(*last)

	log := textlogger.NewLogger(logging)
	ctrl.SetLogger(log)
	klog.SetLogger(log) // client-go's
	if err := run(logr.NewContext(ctrl.SetupSignalHandler(), log), o); err != nil {
		log.Error(err, "Scaler ended")
		os.Exit(1)
	}
}

func run(ctx context.Context, o scaler.Options) (err error) {
	if o.RestConfig, err = config.GetConfig(); err != nil {
		return err
	}
	return scaler.Run(ctx, o)
}
