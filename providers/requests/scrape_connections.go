package requests

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
)

// connections counts those that are open, whatever the Transport, so that there are never too many.
type connections struct {
	dialer *net.Dialer
	open   atomic.Int64 // or about to be
}

// counted is a connection that is counted.
type counted struct {
	net.Conn
	of     *connections
	closed atomic.Bool
}

// dial connects, unless as many connections as most are open; 0 is no bound.
func (c *connections) dial(ctx context.Context, network, address string, most int) (net.Conn, error) {
	if open := c.open.Add(1); most > 0 && open > int64(most) {
		c.open.Add(-1)
		return nil, fmt.Errorf("dial %s: %d connections are open, and no more are allowed; raise the adapter's limit of open files",
			address, most)
	}
	conn, err := c.dialer.DialContext(ctx, network, address)
	if err != nil {
		c.open.Add(-1)
		return nil, err
	}
	return &counted{Conn: conn, of: c}, nil
}

// crowded tells that a connection should rather be closed than kept for its next turn: the last tenth is for those that
// are in use.
func (c *connections) crowded(most int) bool {
	return most > 0 && c.open.Load() >= int64(most-most/10)
}

// Close closes the connection. It may be called more than once.
func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.of.open.Add(-1)
	}
	return c.Conn.Close()
}
