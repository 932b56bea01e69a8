package requests

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// connections bounds how many are open, whatever the Transport.
type connections struct {
	dialer *net.Dialer
	// slots are as many as connections may be open, one taken for each; nil is no bound.
	slots func() chan struct{}
}

// slotted is a connection that has a slot.
type slotted struct {
	net.Conn
	slots  chan struct{}
	closed atomic.Bool
}

// newConnections asks most once, when the first connection is made.
func newConnections(most func() int) *connections {
	return &connections{dialer: newDialer(), slots: sync.OnceValue(func() chan struct{} {
		if n := most(); n > 0 {
			return make(chan struct{}, n)
		}
		return nil
	})}
}

// dial connects as soon as there is a slot.
func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	slots := c.slots()
	if slots == nil {
		return c.dialer.DialContext(ctx, network, address)
	}
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := c.dialer.DialContext(ctx, network, address)
	if err != nil {
		<-slots
		return nil, err
	}
	return &slotted{Conn: conn, slots: slots}, nil
}

// crowded tells that a connection should rather be closed than kept for its next turn: the last tenth is for those that
// are in use.
func (c *connections) crowded() bool {
	slots := c.slots()
	return slots != nil && len(slots) >= cap(slots)-cap(slots)/10
}

// explain adds to the error of a measurement that it may be one of too few connections.
func (c *connections) explain(err error) error {
	if slots := c.slots(); slots != nil && len(slots) == cap(slots) {
		return fmt.Errorf("%w: all %d connections are in use; raise the adapter's limit of open files", err, cap(slots))
	}
	return err
}

// Close closes the connection. It may be called more than once.
func (s *slotted) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		defer func() { <-s.slots }()
	}
	return s.Conn.Close()
}
