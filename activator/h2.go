package activator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// h2Client speaks HTTP/2 without TLS to pods. net/http's own pool of such connections is not used: of the requests that
// find no connection, as when a thousand are let go at once, each would dial one; and it repeats requests that a pod has
// reset with PROTOCOL_ERROR, on which the pod may have acted. Here a pod has one dial under way at most, further
// connections only where those it has are full, and a request is repeated only if the pod has certainly not seen it.
type h2Client struct {
	transport *http.Transport // only to make connections
	timeout   time.Duration   // of a dial, and then of the pod's settings
	dials     sync.WaitGroup

	mu     sync.Mutex // protects following
	open   map[*h2NetConn]struct{}
	closed bool
}

// h2NetConn is a connection that its client knows of until it is closed, and that tells when the pod's settings are in
// force. net/http does not: it lets 100 streams be reserved until they have come, and if the pod allows fewer, those that
// are too many wait for each other and never begin.
type h2NetConn struct {
	net.Conn
	client  *h2Client
	settled chan struct{} // closed when the settings are in force, or will never be

	settle sync.Once
	mu     sync.Mutex // protects following; only the reader writes them, and so it alone may read them without
	first  []byte     // what has been read of the first frame's header
	unread int        // bytes of the first frame that have not been read
}

const (
	frameHeader   = 9 // bytes
	frameSettings = 4 // type
)

// Read is called by net/http's one reader. It has acted on a frame that it had when it asks for more.
func (c *h2NetConn) Read(b []byte) (int, error) {
	if len(c.first) == frameHeader && c.unread <= 0 {
		c.settle.Do(func() { close(c.settled) })
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b)
	c.take(b[:n])
	if err != nil {
		c.settle.Do(func() { close(c.settled) })
	}
	return n, err
}

// take takes in what was read while the first frame is not complete.
func (c *h2NetConn) take(got []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if missing := frameHeader - len(c.first); missing > 0 {
		head := got[:min(missing, len(got))]
		c.first, got = append(c.first, head...), got[len(head):]
		if len(c.first) == frameHeader {
			c.unread = int(c.first[0])<<16 | int(c.first[1])<<8 | int(c.first[2])
		}
	}
	c.unread -= len(got)
}

func (c *h2NetConn) Close() error {
	c.settle.Do(func() { close(c.settled) })
	c.client.mu.Lock()
	delete(c.client.open, c)
	c.client.mu.Unlock()
	return c.Conn.Close()
}

// errNotHTTP2 says that a pod's first bytes were none of HTTP/2.
var errNotHTTP2 = errors.New("the pod does not speak HTTP/2")

// wait returns when the settings are in force, within the time of a dial.
func (c *h2NetConn) wait(timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.settled:
	case <-timer.C:
		return fmt.Errorf("no settings of HTTP/2 within %s", timeout)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(c.first) == 0:
		return errors.New("the pod closed the connection that it had accepted")
	case len(c.first) < frameHeader || c.first[3] != frameSettings:
		return errNotHTTP2
	default:
		return nil
	}
}

// podBuffer is how much of one answer is buffered for a client that does not read, and with it the window of a stream
// to a pod. The window of a connection is net/http's default, 1 GiB, so that such clients do not stop the others.
const podBuffer = 128 << 10

// maxRepeats bounds how often one request looks for a connection with room: each look waits for a dial.
const maxRepeats = 100

func newH2Client(base *http.Transport, dial func(context.Context, string, string) (net.Conn, error), timeout time.Duration) *h2Client {
	c := &h2Client{transport: base.Clone(), timeout: timeout, open: map[*h2NetConn]struct{}{}}
	c.transport.Protocols = &http.Protocols{}
	c.transport.Protocols.SetUnencryptedHTTP2(true)
	c.transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: podBuffer}
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return c.register(ctx, conn)
	}
	return c
}

// dialledKey is the context's key for where the connection that was dialled is put.
type dialledKey struct{}

// h2Conns are the HTTP/2 connections to one pod. When the pod leaves, they end by being idle.
type h2Conns struct {
	mu    sync.Mutex // protects following
	conns []*http.ClientConn
	dial  *h2Dial // under way, nil when none is
}

// h2Dial is one dial, whose result all wait for who came meanwhile.
type h2Dial struct {
	done chan struct{} // closed when it has ended, after err is set
	err  error
}

// roundTrip sends req to pod. The error is a dialError where no connection could be made, and nothing was sent.
func (c *h2Client) roundTrip(req *http.Request, pod *pod) (*http.Response, error) {
	lent, _ := req.Body.(*attemptBody)
	for try := 0; ; try++ {
		conn, err := c.reserve(req.Context(), pod, &try)
		if err != nil {
			return nil, err
		}
		if lent != nil {
			// Of one attempt: net/http closes it, and waits for a read that is under way before it returns.
			once := &attemptBody{body: lent.body, ex: lent.ex, once: true, gone: req.Context().Done()}
			req.Body = once
			if lent.ex.body != nil {
				lent.ex.body = once
			}
		}
		res, err := conn.RoundTrip(req)
		if err == nil {
			return res, nil
		}
		untouched := lent == nil || !req.Body.(*attemptBody).wasRead()
		if !untouched || try >= maxRepeats || req.Context().Err() != nil || !unprocessed(err) {
			return nil, err
		}
	}
}

// reserve returns a connection to pod with room for one more stream, and makes one where there is none.
func (c *h2Client) reserve(ctx context.Context, pod *pod, try *int) (*http.ClientConn, error) {
	for ; ; *try++ {
		conn, dial := pod.h2.reserve()
		if conn != nil {
			return conn, nil
		}
		if *try >= maxRepeats {
			return nil, fmt.Errorf("pod %s took %d connections and no request", pod.address, *try)
		}
		if dial == nil {
			var mine bool
			if dial, mine = pod.h2.beginDial(); mine {
				c.dials.Go(func() { c.connect(context.WithoutCancel(ctx), pod, dial) })
			}
		}
		select {
		case <-dial.done:
			if dial.err != nil {
				return nil, dial.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// connect is one dial. It belongs to no request: the one that caused it may end before.
func (c *h2Client) connect(ctx context.Context, pod *pod, dial *h2Dial) {
	var dialled *h2NetConn
	conn, err := c.transport.NewClientConn(context.WithValue(ctx, dialledKey{}, &dialled), "http", pod.address)
	if err == nil {
		if err = dialled.wait(c.timeout); err == nil && conn.Available() == 0 && conn.Err() == nil {
			err = errors.New("the pod allows no stream")
		}
		if err != nil {
			_ = conn.Close()
		}
	}
	if err != nil && !errors.Is(err, errNotHTTP2) {
		err = &dialError{err} // nothing of a request was sent
	}
	h := &pod.h2
	h.mu.Lock()
	if err == nil {
		h.conns = append(h.conns, conn)
	}
	h.dial, dial.err = nil, err
	h.mu.Unlock()
	close(dial.done)
}

func (c *h2Client) register(ctx context.Context, conn net.Conn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	known := &h2NetConn{Conn: conn, client: c, settled: make(chan struct{})}
	c.open[known] = struct{}{}
	*ctx.Value(dialledKey{}).(**h2NetConn) = known
	return known, nil
}

// close closes all connections, and waits for dials. No request may be under way.
func (c *h2Client) close() {
	c.mu.Lock()
	c.closed = true
	open := slices.Collect(maps.Keys(c.open))
	c.mu.Unlock()
	for _, conn := range open {
		_ = conn.Close()
	}
	c.dials.Wait()
}

// reserve returns a connection that has kept a place for one stream, else the dial that is under way, else nothing.
func (h *h2Conns) reserve() (*http.ClientConn, *h2Dial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.conns[:0]
	var found *http.ClientConn
	for i, conn := range h.conns {
		if found = conn; conn.Reserve() == nil {
			kept = append(kept, h.conns[i:]...)
			break
		}
		if found = nil; conn.Err() == nil {
			kept = append(kept, conn) // full, or going away when its streams have ended
		}
	}
	clear(h.conns[len(kept):])
	h.conns = kept
	return found, h.dial
}

// beginDial begins a dial unless one is under way. mine tells whether the caller has to do it.
func (h *h2Conns) beginDial() (dial *h2Dial, mine bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dial != nil {
		return h.dial, false
	}
	h.dial = &h2Dial{done: make(chan struct{})}
	return h.dial, true
}

// net/http names these errors by their texts alone; TestWhatAnH2PodHasNotSeen holds them.
const (
	textUnusable  = "http2: client conn not usable"                               // found closed or going away before a byte was sent
	textNeverUsed = "http2: client conn could not be established"                 // that, and no request before it
	textGoAway    = "http2: Transport received Server's graceful shutdown GOAWAY" // and the stream is beyond the last that the pod took
)

// unprocessed tells whether err says that the pod has certainly not acted on the request (RFC 9113, 8.7).
func unprocessed(err error) bool {
	if text := err.Error(); text == textUnusable || text == textNeverUsed || text == textGoAway {
		return true
	}
	const refusedStream = 7
	var reset streamError
	return errors.As(err, &reset) && reset.Code == refusedStream
}

// streamError has the form of net/http's own, which errors.As copies into any such struct.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string {
	return fmt.Sprintf("stream %d was reset with code %d", e.StreamID, e.Code)
}
