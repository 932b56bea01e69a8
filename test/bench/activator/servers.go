package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// network is the range of the pods' addresses and of everything else here.
const network = "10.250.0.0/16"

// Where everything listens.
var (
	activatorAddress = netip.MustParseAddr("10.250.0.1") // gate ports
	doorAddress      = netip.AddrPortFrom(activatorAddress, 8080)
	adminAddress     = netip.AddrPortFrom(activatorAddress, 9090)
	proxyAddress     = netip.MustParseAddrPort("10.250.0.2:8080")
	relayAddress     = netip.MustParseAddrPort("10.250.0.3:8080")
	podAddress       = netip.MustParseAddrPort("10.250.1.1:8080")
	muteAddress      = netip.MustParseAddrPort("10.250.1.2:8080")
)

const (
	firstGate = 20000
	mostWakes = 2000 // of five times so many functions each has a port, up to 29999
	// body is what the back end answers: little, so that the proxy's own cost is the largest part of a request's.
	body = "hello from the pod that has been asked\n"
)

// request is what the load asks, at whatever it is sent to.
var request = []byte("GET /function HTTP/1.1\r\nHost: function.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")

// arrivals is what a back end has seen.
type arrivals struct {
	// Requests that have come.
	Requests int64
	// Last is when the last of them came, in nanoseconds since 1970.
	Last int64
}

// backend is a pod: it answers every request at once. GET /arrivals is no request but tells of them.
func backend(ctx context.Context, address string) error {
	var requests, last atomic.Int64
	return serve(ctx, address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/arrivals" {
			_ = json.NewEncoder(w).Encode(arrivals{Requests: requests.Load(), Last: last.Load()})
			return
		}
		requests.Add(1)
		last.Store(time.Now().UnixNano())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = io.WriteString(w, body)
	}))
}

// mute is a pod that takes connections and never says a word, until stop.
func mute(ctx context.Context, at netip.AddrPort) (stop func() (taken int), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	taken := 0
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			taken++
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(io.Discard, conn) // until the prober gives up
			})
		}
	})
	return func() int {
		_ = listener.Close()
		running.Wait()
		return taken
	}, nil
}

// proxy is the least that net/http/httputil needs to be one, and the connections it needs to be quick.
func proxy(ctx context.Context, address, target string) error {
	to := &url.URL{Scheme: "http", Host: target}
	return serve(ctx, address, &httputil.ReverseProxy{
		Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
		// Without it every request allocates 32 KiB, and the floor would be a low one.
		BufferPool: &buffers{sync.Pool{New: func() any { return new(make([]byte, 32<<10)) }}},
	})
}

// relay passes bytes on, both ways, and does not look at them: nothing that stands between a client and a pod does less.
func relay(ctx context.Context, address, target string) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		client, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		pod, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		if err != nil {
			_ = client.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{client, pod}, {pod, client}} {
			go func() {
				defer way[0].Close()
				defer way[1].Close()
				buffer := make([]byte, 4<<10)
				for {
					n, err := way[0].Read(buffer)
					if err != nil {
						return
					}
					if _, err := way[1].Write(buffer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}
}

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte { return *b.pool.Get().(*[]byte) }

func (b *buffers) Put(buffer []byte) { b.pool.Put(&buffer) }

func serve(ctx context.Context, address string, handler http.Handler) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// bench is a run of the benchmark.
type bench struct {
	options
	world *world.World
	made  int // functions so far
}

// startPod starts a back end.
func (b *bench) startPod(ctx context.Context) (*world.Process, error) {
	return start(ctx, "backend", podAddress)
}

// startProxy starts the minimal proxy in front of the back end.
func (b *bench) startProxy(ctx context.Context) (*world.Process, error) {
	return start(ctx, "proxy", proxyAddress, "-target="+podAddress.String())
}

// startRelay starts the relay in front of the back end.
func (b *bench) startRelay(ctx context.Context) (*world.Process, error) {
	return start(ctx, "relay", relayAddress, "-target="+podAddress.String())
}

func start(ctx context.Context, role string, at netip.AddrPort, args ...string) (*world.Process, error) {
	p, err := world.StartSelf(ctx, role, append([]string{"-address=" + at.String()}, args...)...)
	if err != nil {
		return nil, err
	}
	if err := standing(ctx, role, at); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// standing waits until somebody listens.
func standing(ctx context.Context, what string, at netip.AddrPort) error {
	return world.Eventually(ctx, 30*time.Second, what, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// startActivator starts the activator, as manifests/base does but for the addresses, and waits until it is ready.
func (b *bench) startActivator(ctx context.Context) (*world.Process, error) {
	log, err := os.OpenFile(filepath.Join(b.out, "activator.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.CommandContext(ctx, b.activator, "--kubeconfig="+b.world.Kubeconfig(),
		"--door-addr="+doorAddress.String(), "--door-tls-addr=127.0.0.1:0", "--admin-addr="+adminAddress.String(), "--gate-addr="+activatorAddress.String(),
		"--max-held="+strconv.Itoa(max(b.held, 10000)), "--drain-delay=1ms", "--drain-timeout=1s")
	cmd.Stdout, cmd.Stderr = log, log
	p, err := world.Start("activator", cmd)
	if err != nil {
		return nil, err
	}
	if err := world.Eventually(ctx, 30*time.Second, "the activator to be ready", func(ctx context.Context) error {
		_, err := get(ctx, "http://"+adminAddress.String()+"/readyz")
		return err
	}); err != nil {
		p.Stop()
		return nil, fmt.Errorf("%w; its log is %s", err, log.Name())
	}
	return p, nil
}

// newFunctions makes n functions without pods, and returns their names and gate ports in order.
func (b *bench) newFunctions(ctx context.Context, n int) (names []string, gates []netip.AddrPort, err error) {
	for range n {
		name, port := world.FunctionName(b.made), firstGate+b.made
		if err := b.world.Gated(ctx, name, int32(port), int32(max(b.held, 1000))); err != nil {
			return nil, nil, err
		}
		b.made++
		names, gates = append(names, name), append(gates, netip.AddrPortFrom(activatorAddress, uint16(port)))
	}
	return names, gates, nil
}

// seen asks the back end what has reached it.
func seen(ctx context.Context) (a arrivals, err error) {
	answer, err := get(ctx, "http://"+podAddress.String()+"/arrivals")
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(answer, &a)
}

// get reads url in a connection of its own.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.300s", url, resp.Status, answer)
	}
	return answer, nil
}
