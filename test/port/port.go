// Package port finds ports for the servers of tests.
package port

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Free returns n addresses of host, each host:port, that are free, and stay so while their server is away: the ports are below
// those that the kernel gives to connections by default, below Kubernetes' node ports, and above those of test/cluster.
func Free(ctx context.Context, host string, n int) ([]string, error) {
	const low, high = 15000, 30000
	var free []string
	for range 1000 {
		if len(free) == n {
			return free, nil
		}
		address := net.JoinHostPort(host, strconv.Itoa(low+rand.IntN(high-low)))
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			continue
		}
		defer func() { _ = ln.Close() }() // all at the end, so that none is found twice
		free = append(free, address)
	}
	return nil, fmt.Errorf("found %d free ports on %s, want %d", len(free), host, n)
}
