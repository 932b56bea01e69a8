package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-dev/sluice/activator"
	"github.com/sluice-dev/sluice/test/bench/world"
)

// pprofAddress is where the profiled activator serves its profiles. The real one serves none.
var pprofAddress = netip.AddrPortFrom(activatorAddress, 6060)

// profiled is the activator as cmd/activator runs it, with profiles.
func profiled(ctx context.Context, kubeconfig, gate string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return serve(ctx, pprofAddress.String(), mux) })
	both.Go(func() error {
		return activator.Run(ctx, activator.Options{
			RestConfig: config, GateAddr: gate, DoorAddr: doorAddress.String(), AdminAddr: adminAddress.String(),
			DrainDelay: time.Millisecond, DrainTimeout: time.Second,
		})
	})
	return both.Wait()
}

// profile tells where the processor time of warm requests goes, in a process of its own: the figures are of the real one.
func (b *bench) profile(ctx context.Context, gate netip.AddrPort) error {
	pod, err := b.startPod(ctx)
	if err != nil {
		return err
	}
	defer pod.Stop()
	p, err := world.StartSelf(ctx, "profiled", "-kubeconfig="+b.world.Kubeconfig(), "-address="+activatorAddress.String())
	if err != nil {
		return err
	}
	defer p.Stop()
	if err := world.Eventually(ctx, 30*time.Second, "the profiled activator to be ready", func(ctx context.Context) error {
		_, err := get(ctx, "http://"+adminAddress.String()+"/readyz")
		return err
	}); err != nil {
		return err
	}
	var running errgroup.Group
	running.Go(func() error {
		_, err := hurry(ctx, gate, b.connections, b.profiling+2*time.Second)
		return err
	})
	var taken []byte
	running.Go(func() (err error) {
		taken, err = get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", pprofAddress, max(1, int(b.profiling.Seconds()))))
		return err
	})
	if err := running.Wait(); err != nil {
		return err
	}
	file := filepath.Join(b.out, "activator-cpu.pprof")
	if err := os.WriteFile(file, taken, 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-cum", "-nodecount=90", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go tool pprof -top %s: %w: %s", file, err, out)
	}
	fmt.Printf("\ngo tool pprof %s\n%s", file, out)
	return nil
}
