package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// startFull attaches to the full cluster, or brings it up anew.
func startFull(ctx context.Context, opts Options, l layout) (*Cluster, error) {
	if err := checkHost(); err != nil {
		return nil, err
	}
	c := &Cluster{layout: l, netns: l.name, log: opts.Log}
	var inside bool
	if err := inNetns("", func() error { inside = insideNetns(l.name); return nil }); err != nil {
		return nil, err
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	unlock, err := l.lock(ctx, opts.Log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := l.loadRecord()
	if err != nil {
		return nil, err
	}
	if rec.ControlPlaneOnly && len(rec.Processes) > len(rec.dead()) {
		return nil, fmt.Errorf("%s is the state directory of a control plane that is up: stop that, or give the cluster another one", l.dir)
	}
	why := c.attach(ctx, rec, opts.ReadyTimeout)
	if why == nil {
		fmt.Fprintf(opts.Log, "the cluster %s is up\n", l.name)
		return c, c.reconfigure(ctx, rec, opts)
	}
	if inside {
		return nil, fmt.Errorf("the cluster %s cannot be repaired from inside its network namespace, run it from outside: %w", l.name, why)
	}
	if len(rec.Processes) > 0 {
		fmt.Fprintf(opts.Log, "replacing the cluster %s and its state: %v\n", l.name, why)
	}
	if err := c.bringUpFull(ctx, opts); err != nil {
		return nil, err // what is up stays for a look; the next Start or Down removes it
	}
	return c, nil
}

// attach reports why the recorded cluster cannot be attached to, or nil if it is up. One that is only slow to answer,
// because the machine is busy, gets the time to: to replace a cluster is to lose what is in it.
func (c *Cluster) attach(ctx context.Context, rec *record, timeout time.Duration) error {
	if len(rec.Processes) == 0 {
		return errors.New("it is not up")
	}
	if dead := rec.dead(); len(dead) > 0 {
		return fmt.Errorf("it is half dead, without %s", strings.Join(dead, ", "))
	}
	if !rec.Complete {
		return errors.New("it was not brought up completely")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.waitReady(ctx, rec)
}

// bringUpFull starts the full cluster anew, after ending what remains of an earlier one.
func (c *Cluster) bringUpFull(ctx context.Context, opts Options) error {
	if err := c.down(ctx, opts.Log); err != nil {
		return err
	}
	if err := c.removeLogs(); err != nil {
		return err
	}
	if err := installPackages(ctx, opts.Log); err != nil {
		return err
	}
	if err := build(ctx, opts); err != nil {
		return err
	}
	pause, err := c.makePauseImage(opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.ReadyTimeout)
	defer cancel()
	begin := time.Now()
	step := func(what string) { fmt.Fprintf(opts.Log, "%4.1f s  %s\n", time.Since(begin).Seconds(), what) }

	step("network namespace " + c.name)
	if err := c.makeNetwork(ctx); err != nil {
		return err
	}
	if err := c.makeCgroups(); err != nil {
		return err
	}
	const address = "127.0.0.1:6443"
	if err := c.makePKI(address); err != nil {
		return err
	}
	if err := c.writeConfigs(); err != nil {
		return err
	}
	if err := c.writeShellFiles(); err != nil {
		return err
	}
	rec := &record{Boot: bootID(), APIServer: address}
	if err := c.startPrograms(ctx, rec, opts, pause, step); err != nil {
		return err
	}
	step("ready: . " + c.path("env"))
	rec.Complete = true
	return c.saveRecord(rec)
}

// startPrograms starts everything, each as soon as what it needs is there, and waits for the cluster to be ready.
func (c *Cluster) startPrograms(ctx context.Context, rec *record, opts Options, pause string, step func(string)) error {
	start := func(programs ...program) error {
		for _, p := range programs {
			if err := c.spawn(c.netns, rec, p); err != nil {
				return err
			}
		}
		return nil
	}
	p := ports{etcd: 2379, peer: 2380, apiServer: 6443, controllers: 10257}
	step("etcd, kube-apiserver, containerd")
	err := start(
		c.etcd(p),
		// Not a loopback address: this one becomes the endpoint of Service "kubernetes", which refuses those.
		c.apiServer(p, "--bind-address=0.0.0.0", "--advertise-address="+nodeIP),
		c.containerd(),
	)
	if err != nil {
		return err
	}
	if err := c.waitContainerd(ctx, rec); err != nil {
		return err
	}
	if err := c.loadImage(ctx, pause); err != nil {
		return err
	}
	if err := c.waitAPI(ctx, rec); err != nil {
		return err
	}
	step("kube-controller-manager, kube-scheduler, kubelet, kube-proxy, coredns")
	err = start(c.kubelet(), c.controllerManager(p, opts.ControllerManagerArgs), c.kubeProxy(), c.scheduler(), c.coredns())
	if err != nil {
		return err
	}
	api, err := c.newClient(c.netns, rec.APIServer)
	if err != nil {
		return err
	}
	defer api.close()
	if err := api.applyDNS(ctx); err != nil {
		return err
	}
	return c.waitReady(ctx, rec)
}

// makeNetwork creates the network namespace: lo, a bridge without ports that carries the node's address, and a default
// route into it. The route leads nowhere, but without one the kernel refuses a connection to a Service's address before
// kube-proxy's rules get to see it.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	for _, args := range [][]string{
		{"netns", "add", c.name},
		{"-n", c.name, "link", "set", "lo", "up"},
		{"-n", c.name, "link", "add", "node0", "type", "bridge"},
		{"-n", c.name, "addr", "add", nodeIP + "/32", "dev", "node0"},
		{"-n", c.name, "link", "set", "node0", "up"},
		{"-n", c.name, "route", "add", "default", "dev", "node0", "src", nodeIP},
	} {
		cmd := exec.CommandContext(ctx, "ip", args...)
		cmd.Env = []string{"PATH=" + systemPath}
		if err := lookPath(cmd); err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("creating the network: ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return inNetns(c.name, func() error {
		if err := writeExisting("/proc/sys/net/ipv4/ip_forward", "1"); err != nil {
			return fmt.Errorf("creating the network: %w", err)
		}
		return nil
	})
}

func (l layout) containerd() program {
	return program{name: "containerd", path: l.program("containerd"), args: []string{"--config", l.state("config", "containerd.toml")}}
}

func (l layout) scheduler() program {
	config := l.state("kubeconfigs", "kube-scheduler")
	return program{name: "kube-scheduler", path: l.program("kube"), args: []string{
		"kube-scheduler",
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
	}}
}

func (l layout) kubelet() program {
	return program{name: "kubelet", path: l.program("kube"), args: []string{
		"kubelet",
		"--config=" + l.state("config", "kubelet.yaml"),
		"--kubeconfig=" + l.state("kubeconfigs", "node"),
		"--hostname-override=" + nodeName,
		"--node-ip=" + nodeIP,
		"--root-dir=" + l.kubeletDir(),
		"--cert-dir=" + filepath.Join(l.kubeletDir(), "pki"),
	}}
}

func (l layout) kubeProxy() program {
	return program{name: "kube-proxy", path: l.program("kube"), args: []string{
		"kube-proxy", "--config=" + l.state("config", "kube-proxy.yaml"),
	}}
}

func (l layout) coredns() program {
	return program{name: "coredns", path: l.program("coredns"), args: []string{"-conf", l.state("config", "Corefile")}}
}

// writeShellFiles writes what a person needs: a kubectl that finds the cluster, and a file for the shell to source.
func (l layout) writeShellFiles() error {
	if err := os.MkdirAll(l.path("bin"), 0o755); err != nil {
		return fmt.Errorf("creating %s: %w", l.path("bin"), err)
	}
	if err := writeFile(l.path("bin", "kubectl"), l.kubectlScript(), 0o755); err != nil {
		return err
	}
	return writeFile(l.path("env"), l.envFile(), 0o644)
}

// kubectlScript enters the network namespace, unless it is there already, and runs kubectl. It uses nsenter and not
// `ip netns exec` for the reason given at inNetns.
func (l layout) kubectlScript() []byte {
	return fmt.Appendf(nil, `#!/bin/sh
# kubectl for the test cluster %[1]s, from inside or outside of its network namespace.
# Whatever cluster the shell is set up for, this is for this one.
KUBECONFIG=%[2]s
export KUBECONFIG
if [ ! -e %[3]s ]; then
	echo "kubectl: the test cluster %[1]s is not up" >&2
	exit 1
fi
if [ "$(stat -Lc %%i /proc/self/ns/net)" = "$(stat -Lc %%i %[3]s)" ]; then
	exec %[4]s kubectl "$@"
fi
exec nsenter --net=%[3]s %[4]s kubectl "$@"
`, l.name, shellQuote(l.path("kubeconfig")), l.netnsPath(), shellQuote(l.program("kube")))
}

// envFile sets a shell up for the cluster.
func (l layout) envFile() []byte {
	return fmt.Appendf(nil, `# Source this file to work with the test cluster. kubectl is in PATH; other clients enter its network with
#   nsenter --net=/run/netns/$SLUICE_NETNS COMMAND
export KUBECONFIG=%s
export SLUICE_NETNS=%s
export PATH=%s:"$PATH"
`, shellQuote(l.path("kubeconfig")), l.name, shellQuote(l.path("bin")))
}

// shellQuote makes s one word for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
