// Command activator is the data plane of Sluice; see package activator.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/activator"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "activator:", err)
		os.Exit(1)
	}
}

// run reads the flags; --kubeconfig is controller-runtime's own.
func run() error {
	traces, err := traceDefaults(os.Getenv)
	if err != nil {
		return err
	}
	o := activator.DefaultOptions()
	o.PodName, _ = os.Hostname() // which is a pod's name unless its spec says otherwise
	flag.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace that Sluice runs in")
	flag.StringVar(&o.PodName, "pod-name", o.PodName, "name of the pod that it runs in, for functions whose concurrency has a limit")
	flag.StringVar(&o.DoorAddr, "door-addr", o.DoorAddr, "address of the shared door, routed by Host")
	flag.StringVar(&o.DoorTLSAddr, "door-tls-addr", o.DoorTLSAddr, "address of the shared door for TLS, routed by server name")
	flag.StringVar(&o.AdminAddr, "admin-addr", o.AdminAddr, "address of /metrics, /healthz and /readyz")
	flag.StringVar(&o.GateAddr, "gate-addr", o.GateAddr, "host part of the functions' gate ports; empty for all addresses")
	flag.IntVar(&o.MaxHeld, "max-held", o.MaxHeld, "requests held for all functions together")
	flag.DurationVar(&o.DrainDelay, "drain-delay", o.DrainDelay, "how long to go on accepting after SIGTERM, while readiness fails")
	flag.DurationVar(&o.DrainTimeout, "drain-timeout", o.DrainTimeout, "how long requests may take to finish after that")
	flag.DurationVar(&o.PatchTimeout, "patch-timeout", o.PatchTimeout, "bound of one patch of a workload's scale")
	flag.DurationVar(&o.DialTimeout, "dial-timeout", o.DialTimeout, "bound of one attempt to connect to a pod")
	flag.StringVar(&traces.endpoint, "trace-endpoint", traces.endpoint,
		"URL to which spans of requests are sent by OTLP, such as http://collector:4318/v1/traces; empty for no traces")
	flag.StringVar(&traces.ratio, "trace-ratio", traces.ratio, "part of the traces that begin here, from 0 to 1; others follow their parent")
	logs := textlogger.NewConfig()
	logs.AddFlags(flag.CommandLine)
	flag.Parse()

	log := textlogger.NewLogger(logs)
	klog.SetLogger(log)
	ctrllog.SetLogger(log)

	cfg, err := ctrlconfig.GetConfig()
	if err != nil {
		return fmt.Errorf("find the Kubernetes API: %w", err)
	}
	o.RestConfig = cfg
	ctx, stop := signal.NotifyContext(logr.NewContext(context.Background(), log), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if o.Traces, err = traces.options(ctx); err != nil {
		return err
	}
	return activator.Run(ctx, o)
}
