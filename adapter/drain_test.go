package adapter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRollingFailsNoRead reads without a pause as an API server does, over one HTTP/2 connection to whichever replica
// the Service leads to, while that replica drains. The Service goes on leading to it for a while.
func TestRollingFailsNoRead(t *testing.T) {
	old := start(t, func(o *Options) { o.DrainDelay = 4 * time.Second })
	renewed := start(t, nil)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(old.api.bundle())
	roots.AppendCertsFromPEM(renewed.api.bundle())
	var endpoint atomic.Pointer[string]
	endpoint.Store(&old.addr)
	dialled := map[string]int{}
	var mu sync.Mutex // protects dialled
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: serverName},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			address := *endpoint.Load()
			mu.Lock()
			dialled[address]++
			mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	read := func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://adapter"+ownRead, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer good")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2:
			return fmt.Errorf("%s %s: %s", resp.Proto, resp.Status, body)
		}
		return nil
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	var reads, failed atomic.Int64
	stop := make(chan struct{})
	for range 8 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				reads.Add(1)
				if err := read(); err != nil {
					failed.Add(1)
					t.Errorf("read %d: %v", reads.Load(), err)
				}
			}
		})
	}
	finish := sync.OnceFunc(func() { close(stop); readers.Wait() })
	defer finish()
	more := func(n int64) {
		t.Helper()
		before := reads.Load()
		renewed.eventually(fmt.Sprintf("%d more reads", n), func() string {
			if got := reads.Load() - before; got < n {
				return fmt.Sprint(got)
			}
			return ""
		})
	}
	more(50)
	mu.Lock()
	if dialled[old.addr] != 1 {
		t.Errorf("%d connections, want one", dialled[old.addr])
	}
	mu.Unlock()
	old.cancel()
	more(8) // the endpoints are late
	endpoint.Store(&renewed.addr)
	err := <-old.done
	old.done <- err
	if err != nil {
		t.Errorf("Run = %v", err)
	}
	more(50)
	finish()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d reads, %d failed, connections %v", reads.Load(), failed.Load(), dialled)
	if dialled[renewed.addr] == 0 {
		t.Errorf("%d reads, connections %v", reads.Load(), dialled)
	}
}
