package scaler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Headers by which a gate tells that a connection has reached it. See the activator.
const (
	probeHeader = "Sluice-Probe"
	gateHeader  = "Sluice-Gate"
)

// Path is the data path of a function's own Service.
type Path struct {
	// Function whose gate has to answer.
	Function types.NamespacedName
	// Host is the name of the Service, for the Host header.
	Host string
	// Address is the Service's cluster IP and port.
	Address string
}

// Prover proves that a data path reaches the gate.
type Prover interface {
	// Prove returns nil once a new connection along path was answered by the gate of its function, and otherwise an
	// error that says why it gave up, or ctx's. It is called from many goroutines, for one function from one at a
	// time. It bounds itself in time and tries.
	Prove(ctx context.Context, path Path) error
}

// ServiceProver proves data paths by connections of its own: it sends `OPTIONS *`, the ping of HTTP (RFC 9110, 9.3.7),
// which most servers answer without calling a handler, until the gate is the one that answers. While pods stand beside
// the gate, kube-proxy picks one of them for each connection, and rules follow an EndpointSlice after some tenths of a
// second, so that several tries are normal.
//
// What it proves is the path of the node it runs on. Other nodes are programmed from the same watch at about the same
// time, which is what the grace after the proof is for. A Service with sessionAffinity ClientIP may lead every one of
// its tries to the same pod, and only the Service's first IP family is tried.
type ServiceProver struct {
	// Tries bounds the connections of one proof. Default 64.
	Tries int
	// Timeout bounds one proof. Default 5s.
	Timeout time.Duration
	// TryTimeout bounds one connection, from dial to answer. Default 300ms.
	TryTimeout time.Duration
}

// Pauses between tries grow from the first to the last, so that a path which is there is seen quickly, while all
// tries together last about as long as a proof may.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 80 * time.Millisecond
)

// Prove implements Prover.
func (p ServiceProver) Prove(ctx context.Context, path Path) error {
	tries, timeout, try := p.Tries, p.Timeout, p.TryTimeout
	if tries <= 0 {
		tries = 64
	}
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	if try <= 0 {
		try = 300 * time.Millisecond
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	n := 0
	for pause := firstPause; n < tries; pause = min(pause*5/4, lastPause) {
		if n > 0 && !wait(ctx, pause) {
			break
		}
		n++
		if last = ask(ctx, path, try); last == nil {
			return nil
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return fmt.Errorf("%d connections to %s in %s did not reach the gate, the last: %w",
		n, path.Address, time.Since(start).Round(100*time.Millisecond), last)
}

// wait sleeps for d; false when ctx ended before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// ask makes one connection and returns nil if the gate of the path's function answered.
func ask(ctx context.Context, path Path, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", path.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	// Written by hand, as http.Client has no way to say "OPTIONS *" on a connection that must be new.
	req := "OPTIONS * HTTP/1.1\r\nHost: " + path.Host + "\r\n" + probeHeader + ": 1\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, req); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, 16<<10)), nil)
	if err != nil {
		return fmt.Errorf("answer of %s: %w", conn.RemoteAddr(), err)
	}
	defer resp.Body.Close()
	switch gate := resp.Header.Get(gateHeader); gate {
	case path.Function.String():
		return nil
	case "":
		return fmt.Errorf("a pod answered (%s)", resp.Status)
	default:
		return fmt.Errorf("the gate of %q answered", gate)
	}
}
