// Package activator is the data plane of Sluice: it routes requests to functions, counts them, holds those that find
// no ready pod, wakes the function, and forwards.
//
// A request enters by one of two doors: the gate port that belongs to one function alone (gate.go), or the shared door
// that is routed by Host (door.go). Both end in proxy.serve (forward.go), which counts the request from first byte in
// to last byte out (stats.go) and finds it a pod (reach.go) of the function's snapshot (pods.go): one without a body is
// forwarded by the shortest way (plain.go, podconn.go), the others by httputil.ReverseProxy. Where there is none, the
// request is held (hold.go) while one goroutine per function patches the workload's scale (wake.go), watches for pods that
// come of it (scout.go) and probes them (probe.go). The routing table (routes.go) is fed by two watches (watch.go). Everything that the gate answers by itself is in answers.go, and what
// Functions have answered in place of that in instead.go.
//
// Under a concurrency.limit each pod belongs to one activator (share.go), which has asked the others for it (claims.go,
// peers.go), and to which they hand requests on (handon.go).
//
// A warm request makes no API call, takes no lock but its own function's counters, and allocates no proxy.
package activator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Options of an activator. A zero value means the default; DefaultOptions spells the defaults out.
type Options struct {
	// RestConfig leads to the Kubernetes API. Required.
	RestConfig *rest.Config
	// Namespace is where Sluice runs; the activator names it in its log and watches Functions in all namespaces.
	// Default sluice-system.
	Namespace string
	// PodName is the name of the pod that this activator runs in, by which it finds itself behind the Service of the
	// activators. Where it does not, those pods of functions with a concurrency limit that are its own get no requests.
	// Default "", none.
	PodName string
	// DoorAddr is the address of the shared door, which is routed by Host. Default ":8080".
	DoorAddr string
	// DoorTLSAddr is the address at which the shared door speaks TLS, to hosts whose Functions name a certificate. Default
	// ":8443".
	DoorTLSAddr string
	// AdminAddr is the address of /metrics, /healthz and /readyz. Default ":9090".
	AdminAddr string
	// GateAddr is the host part of the gate ports; the ports come from the Functions' status. Default "", all
	// addresses.
	GateAddr string
	// MaxHeld bounds the requests held for all functions together; each function has its own bound in
	// spec.activation.maxHeld. Default 10000.
	MaxHeld int
	// DrainDelay is how long the activator goes on accepting after its context has ended, with readiness failing, so
	// that EndpointSlices and kube-proxy can move away. Default 8s.
	DrainDelay time.Duration
	// DrainTimeout bounds how long held requests and those in flight may take to finish after DrainDelay. What is
	// left is cut off. Default 60s.
	DrainTimeout time.Duration
	// PatchTimeout bounds one patch of a workload's scale. Default 5s.
	PatchTimeout time.Duration
	// DialTimeout bounds one attempt to connect to a pod. Default 2s.
	DialTimeout time.Duration
	// Traces say where the spans of requests go. Default nil: none is made, and what clients say of theirs passes as it came.
	Traces *TraceOptions
	// Listening, if set, is called once with the addresses of the shared door, in the clear and over TLS, and of the admin
	// listener when all stand, for callers that asked for port 0.
	Listening func(door, doorTLS, admin net.Addr)
}

// DefaultOptions are the defaults of every option that has one.
func DefaultOptions() Options { return Options{}.withDefaults() }

func (o Options) withDefaults() Options {
	o.Namespace = cmp.Or(o.Namespace, v1alpha1.SystemNamespace)
	o.DoorAddr = cmp.Or(o.DoorAddr, ":8080")
	o.DoorTLSAddr = cmp.Or(o.DoorTLSAddr, ":8443")
	o.AdminAddr = cmp.Or(o.AdminAddr, ":9090")
	o.MaxHeld = cmp.Or(o.MaxHeld, 10000)
	o.DrainDelay = cmp.Or(o.DrainDelay, 8*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, time.Minute)
	o.PatchTimeout = cmp.Or(o.PatchTimeout, 5*time.Second)
	o.DialTimeout = cmp.Or(o.DialTimeout, 2*time.Second)
	return o
}

func (o Options) validate() error {
	if o.RestConfig == nil {
		return errors.New("options of the activator: RestConfig is required")
	}
	if o.MaxHeld < 0 {
		return fmt.Errorf("options of the activator: MaxHeld %d must not be negative", o.MaxHeld)
	}
	for name, d := range map[string]time.Duration{
		"DrainDelay": o.DrainDelay, "DrainTimeout": o.DrainTimeout, "PatchTimeout": o.PatchTimeout, "DialTimeout": o.DialTimeout,
	} {
		if d < 0 {
			return fmt.Errorf("options of the activator: %s %s must not be negative", name, d)
		}
	}
	if o.Traces != nil {
		return o.Traces.validate()
	}
	return nil
}

// errStopping is the cause with which requests are cut off when the drain has taken DrainTimeout.
var errStopping = errors.New("the activator is stopping")

// hardStop bounds what still has to end once requests have been cut off: answering them, and the admin server.
const hardStop = 2 * time.Second

// Run serves until ctx ends, then drains, and returns when every goroutine of its own has ended. It logs to the
// logr.Logger in ctx. The error is nil after a stop that ctx asked for, also when requests had to be cut off.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	a, err := newActivator(ctx, o)
	if err != nil {
		return err
	}
	defer a.close(ctx)
	return a.run(ctx)
}

// activator ties the parts together for the length of one Run.
type activator struct {
	opts    Options
	log     logr.Logger
	metrics *metrics
	table   *table
	proxy   *proxy
	gates   *gates
	watcher *watcher
	scale   *scaleClient
	pods    *podClient
	secrets *secretClient
	admin   *http.Server
	certs   *certs
	doorLn  net.Listener
	tlsLn   net.Listener
	adminLn net.Listener
	ready   atomic.Bool
	synced  atomic.Bool // the table knows what there is
}

func newActivator(ctx context.Context, o Options) (*activator, error) {
	a := &activator{opts: o, log: logr.FromContextOrDiscard(ctx), metrics: newMetrics()}
	var err error
	if a.scale, err = newScaleClient(o.RestConfig); err != nil {
		return nil, err
	}
	a.proxy = newProxy(a.log, a.metrics, a.scale, o)
	if o.Traces != nil {
		a.proxy.traces = newTracing(ctx, a.log, a.metrics, o.Traces, spanDelay)
	}
	if a.pods, err = newPodClient(o.RestConfig); err != nil {
		a.close(ctx)
		return nil, err
	}
	a.proxy.podReader = a.pods
	a.gates = newGates(a.log, a.metrics, o.GateAddr, a.proxy)
	a.table = newTable(a.gates.assign, a.proxy.peers)
	a.metrics.functions.table = a.table
	if a.secrets, err = newSecretClient(o.RestConfig); err != nil {
		a.close(ctx)
		return nil, err
	}
	a.certs = newCerts(a.log, a.metrics, a.secrets, a.table, o.Namespace)
	if a.watcher, err = newWatcher(ctx, o.RestConfig, a.table); err != nil {
		a.close(ctx)
		return nil, err
	}
	var lc net.ListenConfig
	if a.doorLn, err = lc.Listen(ctx, "tcp", o.DoorAddr); err != nil {
		a.close(ctx)
		return nil, fmt.Errorf("open the shared door: %w", err)
	}
	if a.tlsLn, err = lc.Listen(ctx, "tcp", o.DoorTLSAddr); err != nil {
		a.close(ctx)
		return nil, fmt.Errorf("open the shared door for TLS: %w", err)
	}
	if a.adminLn, err = lc.Listen(ctx, "tcp", o.AdminAddr); err != nil {
		a.close(ctx)
		return nil, fmt.Errorf("open the admin address: %w", err)
	}
	return a, nil
}

// close releases what outlives run; listeners that were served are closed already, and closing them again is harmless.
func (a *activator) close(ctx context.Context) {
	for _, ln := range []net.Listener{a.doorLn, a.tlsLn, a.adminLn} {
		if ln != nil {
			_ = ln.Close()
		}
	}
	a.proxy.close()
	if a.proxy.traces != nil {
		a.proxy.traces.close(ctx)
	}
	a.scale.close()
	if a.pods != nil {
		a.pods.close()
	}
	if a.secrets != nil {
		a.secrets.close()
	}
	if a.watcher != nil {
		a.watcher.close()
	}
}

func (a *activator) run(ctx context.Context) error {
	if a.opts.Listening != nil {
		a.opts.Listening(a.doorLn.Addr(), a.tlsLn.Addr(), a.adminLn.Addr())
	}
	// Only the wish to stop comes from ctx. What a drain needs goes on: requests in flight, and the watch by which held
	// ones learn of pods.
	base := context.WithoutCancel(ctx)
	serveCtx, cutOff := context.WithCancelCause(base)
	defer cutOff(nil)
	watchCtx, stopWatching := context.WithCancel(base)
	defer stopWatching()
	gatesCtx, stopGates := context.WithCancel(base)
	defer stopGates()

	group, gctx := errgroup.WithContext(ctx)
	handOns := newHandOns(serveCtx, a.log, a.table, a.proxy)
	a.admin = newAdminServer(a.log, a.metrics, &a.ready, handOns.register(a.synced.Load))
	group.Go(func() error { return serve(a.admin, a.adminLn) })
	group.Go(func() error { return a.watcher.run(watchCtx) })
	group.Go(func() error {
		a.scale.keepOpen(watchCtx, keepOpenInterval)
		return nil
	})

	door := newServer(serveCtx, a.log, newDoor(a.table, a.proxy))
	doorTLS := newTLSServer(serveCtx, a.log, door.Handler, a.certs)
	var gates sync.WaitGroup
	serving := false
	if a.watcher.waitSynced(gctx) {
		a.synced.Store(true)
		group.Go(func() error { return serve(handOns.server, handOns) })
		group.Go(func() error { return serve(door, a.doorLn) })
		group.Go(func() error { return serve(doorTLS, a.tlsLn) })
		gates.Go(func() { a.certs.run(gatesCtx) })
		gates.Go(func() { a.gates.run(gatesCtx, serveCtx) })
		if serving = a.gates.waitStanding(gctx); serving {
			a.ready.Store(true)
			a.log.Info("serving", "door", a.doorLn.Addr().String(), "admin", a.adminLn.Addr().String(), "systemNamespace", a.opts.Namespace)
			<-gctx.Done()
		}
	}

	a.ready.Store(false)
	a.proxy.draining.Store(true)
	if serving {
		a.log.Info("draining", "delay", a.opts.DrainDelay, "timeout", a.opts.DrainTimeout)
		<-time.After(a.opts.DrainDelay)
	}
	stopGates()
	gates.Wait()
	a.finish(base, []*http.Server{door, doorTLS, handOns.server}, cutOff)
	stopWatching()
	adminCtx, cancel := context.WithTimeout(base, hardStop)
	defer cancel()
	if a.admin.Shutdown(adminCtx) != nil {
		_ = a.admin.Close()
	}
	return group.Wait()
}

// finish stops accepting and waits for requests that are held or in flight, DrainTimeout at most; then it cuts off
// the rest. Afterwards no handler and no waker runs.
func (a *activator) finish(ctx context.Context, doors []*http.Server, cutOff context.CancelCauseFunc) {
	shutdown := func(timeout time.Duration) bool {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		var wg sync.WaitGroup
		var gatesErr error
		doorErrs := make([]error, len(doors))
		for i, door := range doors {
			wg.Go(func() { doorErrs[i] = door.Shutdown(ctx) })
		}
		wg.Go(func() { gatesErr = a.gates.shutdown(ctx) })
		wg.Wait()
		// Shutdown does not know of connections that were upgraded; the proxy's own count does.
		return errors.Join(errors.Join(doorErrs...), gatesErr, a.proxy.waitInactive(ctx)) == nil
	}
	if !shutdown(a.opts.DrainTimeout) {
		a.log.Info("cutting off requests that outlast the drain", "requests", a.proxy.active.Load())
		cutOff(errStopping)
		shutdown(hardStop)
		for _, door := range doors {
			_ = door.Close()
		}
		a.gates.close()
	}
	cutOff(nil)
	for _, fn := range a.table.all() {
		fn.queue.want(time.Time{}) // who was given a placeholder comes back to another activator
	}
	a.proxy.wakers.Wait()
}

// waitInactive waits until no request is in serve. It is for the drain, when no new ones can come: it looks, so that
// the warm path pays for one atomic counter and no more.
func (p *proxy) waitInactive(ctx context.Context) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for p.active.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// serve runs srv on ln until it is shut down.
func serve(srv *http.Server, ln net.Listener) error {
	listen := srv.Serve
	if srv.TLSConfig != nil {
		listen = func(ln net.Listener) error { return srv.ServeTLS(ln, "", "") }
	}
	if err := listen(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}
