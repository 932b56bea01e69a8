package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// tellTimeout bounds what a call waits for its id to be told.
const tellTimeout = 2 * time.Second

// collector is who is told the id of every call: over all pods, those that are gone included, it knows which calls came
// twice. It is told by one connection, a line for each call: the pod's name, a space, the id.
type collector struct {
	address string

	mu   sync.Mutex // protects following
	conn net.Conn   // nil before the first call
}

// tell hands the line to the kernel, which delivers it also when this process has ended meanwhile.
func (c *collector) tell(ctx context.Context, pod, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		conn, err := (&net.Dialer{Timeout: tellTimeout}).DialContext(context.WithoutCancel(ctx), "tcp", c.address)
		if err != nil {
			return fmt.Errorf("connect to the collector of ids: %w", err)
		}
		c.conn = conn
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(tellTimeout)) // an error shows in the write
	if _, err := fmt.Fprintf(c.conn, "%s %s\n", pod, id); err != nil {
		// The connection is not made anew: what of its last lines has arrived is not known.
		return fmt.Errorf("tell the collector of ids: %w", err)
	}
	return nil
}

// close ends the connection; what was told is delivered.
func (c *collector) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
}
