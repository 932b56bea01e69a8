package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"
)

// ports are where the control plane listens. Those of the full cluster are the usual ones, in a network of their own.
type ports struct {
	etcd, peer, apiServer, controllers int
}

// startControlPlane brings up the control plane alone.
func startControlPlane(ctx context.Context, opts Options, l layout) (*Cluster, error) {
	if runtime.GOOS != "linux" {
		return nil, checkHost()
	}
	temp := opts.Dir == ""
	if temp {
		dir, err := os.MkdirTemp("", "sluice-control-plane-")
		if err != nil {
			return nil, fmt.Errorf("creating the state directory: %w", err)
		}
		l = newLayout(realPath(dir), l.bin)
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	unlock, err := l.lock(ctx, opts.Log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c := &Cluster{layout: l, temp: temp, log: opts.Log}
	rec, err := l.loadRecord()
	if err != nil {
		return nil, err
	}
	if len(rec.Processes) > 0 && !rec.ControlPlaneOnly {
		return nil, fmt.Errorf("%s is the state directory of a full cluster: take that down, or give the control plane another one", l.dir)
	}
	if rec.Complete && len(rec.dead()) == 0 && c.ready(ctx, rec) == nil {
		fmt.Fprintf(opts.Log, "the control plane %s is up\n", l.dir)
		return c, c.reconfigure(ctx, rec, opts)
	}
	err = c.bringUpControlPlane(ctx, opts)
	if err != nil {
		// Not ctx: it may be what ended the start.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.down(clean, opts.Log))
		return nil, err
	}
	return c, nil
}

// bringUpControlPlane starts the control plane anew, after ending what remains of an earlier one.
func (c *Cluster) bringUpControlPlane(ctx context.Context, opts Options) error {
	if err := c.down(ctx, opts.Log); err != nil {
		return err
	}
	if err := c.removeLogs(); err != nil {
		return err
	}
	if err := build(ctx, opts); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.ReadyTimeout)
	defer cancel()
	p, err := freePorts()
	if err != nil {
		return err
	}
	address := "127.0.0.1:" + strconv.Itoa(p.apiServer)
	rec := &record{Boot: bootID(), ControlPlaneOnly: true, APIServer: address}
	if err := c.makePKI(address); err != nil {
		return err
	}
	if err := c.writeConfigs(); err != nil {
		return err
	}
	begin := time.Now()
	programs := []program{
		c.etcd(p),
		// A loopback address cannot be an endpoint of Service "kubernetes" (validation refuses it), which nobody
		// uses here, so that nothing tries to write it.
		c.apiServer(p, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"),
	}
	for _, program := range programs {
		if err := c.spawn("", rec, program); err != nil {
			return err
		}
	}
	if err := c.waitAPI(ctx, rec); err != nil {
		return err
	}
	if err := c.spawn("", rec, c.controllerManager(p, opts.ControllerManagerArgs)); err != nil {
		return err
	}
	if err := c.waitReady(ctx, rec); err != nil {
		return err
	}
	fmt.Fprintf(opts.Log, "the control plane is ready after %.1f s: %s\n", time.Since(begin).Seconds(), c.Kubeconfig())
	rec.Complete = true
	return c.saveRecord(rec)
}

// freePorts finds free loopback ports. All are held until all are found, so that they differ. They are below those that the
// kernel gives to connections, so that a program that ends finds its port free when it begins again.
func freePorts() (ports, error) {
	const low, high = 10000, 15000
	var p ports
	for _, port := range []*int{&p.etcd, &p.peer, &p.apiServer, &p.controllers} {
		for range 1000 {
			free := low + rand.IntN(high-low)
			listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: free})
			if err == nil {
				defer func() { _ = listener.Close() }()
				*port = free
				break
			}
		}
		if *port == 0 {
			return ports{}, fmt.Errorf("found no free port from %d to %d", low, high-1)
		}
	}
	return p, nil
}

// etcd holds nothing that must survive the machine, so it does not wait for the disk.
func (l layout) etcd(p ports) program {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", p.etcd), fmt.Sprintf("http://127.0.0.1:%d", p.peer)
	return program{name: "etcd", path: l.program("kube"), args: []string{
		"etcd",
		"--data-dir=" + l.state("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		"--unsafe-no-fsync",
		"--log-level=warn",
	}}
}

func (l layout) apiServer(p ports, more ...string) program {
	pki := func(name string) string { return l.state("pki", name) }
	return program{name: "kube-apiserver", path: l.program("kube"), args: append([]string{
		"kube-apiserver",
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", p.etcd),
		fmt.Sprintf("--secure-port=%d", p.apiServer),
		"--tls-cert-file=" + pki("apiserver.crt"),
		"--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--service-account-key-file=" + pki("sa.key"),
		"--service-account-signing-key-file=" + pki("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		// Aggregation: how the API server proves to an extension API server on whose behalf it asks.
		"--requestheader-client-ca-file=" + pki("ca.crt"),
		"--requestheader-allowed-names=" + proxyClient,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki("proxy-client.crt"),
		"--proxy-client-key-file=" + pki("proxy-client.key"),
		// Logs and exec.
		"--kubelet-client-certificate=" + pki("kubelet-client.crt"),
		"--kubelet-client-key=" + pki("kubelet-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + serviceCIDR,
		"--allow-privileged",
		"--audit-policy-file=" + l.state("config", "audit.yaml"),
		"--audit-log-path=" + l.path("logs", "audit.log"),
		"--audit-log-mode=blocking", // readable as soon as the request is answered
	}, more...)}
}

func (l layout) controllerManager(p ports, more []string) program {
	config := l.state("kubeconfigs", "kube-controller-manager")
	return program{name: "kube-controller-manager", path: l.program("kube"), args: append([]string{
		"kube-controller-manager",
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--service-account-private-key-file=" + l.state("pki", "sa.key"),
		"--root-ca-file=" + l.state("pki", "ca.crt"),
		"--use-service-account-credentials",
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", p.controllers),
		"--cert-dir=" + l.state("pki"),
		"--leader-elect=false", // there is one, and it need not wait for a lease of a predecessor
	}, more...)}
}

// reconfigure restarts the controller manager if it runs with other extra flags than opts has.
func (c *Cluster) reconfigure(ctx context.Context, rec *record, opts Options) error {
	if opts.ControllerManagerArgs == nil {
		return nil
	}
	i := slices.IndexFunc(rec.Processes, func(p process) bool { return p.Name == "kube-controller-manager" })
	if i < 0 {
		return errors.New("reconfiguring kube-controller-manager: it is not recorded")
	}
	running := rec.Processes[i]
	common := len(c.controllerManager(ports{}, nil).args)
	if slices.Equal(running.Args[common:], opts.ControllerManagerArgs) {
		return nil
	}
	fmt.Fprintf(opts.Log, "restarting kube-controller-manager with %q\n", opts.ControllerManagerArgs)
	if err := running.end(ctx); err != nil {
		return err
	}
	// Its port and all other flags stay.
	args := append(slices.Clone(running.Args[:common]), opts.ControllerManagerArgs...)
	if err := c.spawn(c.netns, rec, program{name: running.Name, path: c.program("kube"), args: args}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.ReadyTimeout)
	defer cancel()
	return c.waitReady(ctx, rec)
}

// waitAPI waits until the API server is ready.
func (c *Cluster) waitAPI(ctx context.Context, rec *record) error {
	api, err := c.newClient(c.netns, rec.APIServer)
	if err != nil {
		return err
	}
	defer api.close()
	return c.wait(ctx, rec, "the API server", api.apiReady)
}

// waitReady waits until all of the cluster is ready, and no program has ended meanwhile.
func (c *Cluster) waitReady(ctx context.Context, rec *record) error {
	return c.wait(ctx, rec, "the cluster "+c.name, func(ctx context.Context) error { return c.ready(ctx, rec) })
}

// wait polls cond until it is nil. It gives up when a recorded program has ended, and says every progressPause why it
// still waits.
func (c *Cluster) wait(ctx context.Context, rec *record, what string, cond func(context.Context) error) error {
	line := time.Now().Add(progressPause)
	return poll(ctx, what, 50*time.Millisecond, func(ctx context.Context) error {
		if err := c.died(rec); err != nil {
			return err
		}
		err := cond(ctx)
		if err != nil && time.Now().After(line) {
			fmt.Fprintf(c.log, "waiting for %s: %v\n", what, err)
			line = time.Now().Add(progressPause)
		}
		return err
	})
}

// ready asks once whether all of the cluster is ready.
func (c *Cluster) ready(ctx context.Context, rec *record) error {
	api, err := c.newClient(c.netns, rec.APIServer)
	if err != nil {
		return err
	}
	defer api.close()
	checks := []func(context.Context) error{api.apiReady, api.controllersReady}
	if c.netns != "" {
		checks = append(checks, api.nodeReady, func(ctx context.Context) error { return dnsReady(ctx, c.netns) })
	}
	for _, check := range checks {
		if err := check(ctx); err != nil {
			return err
		}
	}
	return nil
}
