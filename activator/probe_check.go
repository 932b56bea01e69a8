package activator

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// How much of a probe's answer is read.
const (
	maxProbeAnswer = 128 << 10 // bytes of all
	maxProbeBody   = 10 << 10  // of the body; the kubelet reads as much
)

// errNotConnected marks a check that found nobody listening; others failed in what was answered.
var errNotConnected = errors.New("no connection")

// run runs the check once. dialTimeout bounds the connecting, c.timeout the whole. conn, if not nil, is the connection
// that was used, and can be used again for HTTP/1.
func (c *check) run(ctx context.Context, dialTimeout time.Duration) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	dialled, err := dialProbe(ctx, c.address, dialTimeout)
	if err != nil {
		return nil, err
	}
	conn = dialled
	// The connection is closed as soon as nobody waits for the answer any more. That may be while this returns, so conn
	// itself, which a return sets, is not what is closed.
	stop := context.AfterFunc(ctx, func() { _ = dialled.Close() })
	reusable := false
	switch c.kind {
	case checkTCP:
		reusable = true
	case checkHTTP:
		reusable, err = c.http(ctx, conn, dialTimeout)
	case checkGRPC:
		err = c.grpc(ctx, conn)
	}
	if !stop() {
		return nil, fmt.Errorf("container %s: %w", c.container, context.Cause(ctx))
	}
	if err != nil || !reusable {
		_ = conn.Close()
		conn = nil
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.container, err)
	}
	return conn, nil
}

func dialProbe(ctx context.Context, address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: dialKeepAlive}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotConnected, err)
	}
	return conn, nil
}

// maxRedirects is how many redirects of an HTTP probe are followed, as by the kubelet.
const maxRedirects = 10

// http asks as the kubelet does: a status of 200 to 399 is a success, a redirect on the same host is followed, and
// certificates are not looked at. reusable tells whether conn has been read to the end of the answer and stays open.
func (c *check) http(ctx context.Context, conn net.Conn, dialTimeout time.Duration) (reusable bool, err error) {
	res, reusable, err := c.exchange(ctx, conn, c.url) //nolint:bodyclose // it is read and closed by exchange
	at := c.url
	for followed := 0; err == nil; followed++ {
		next := redirect(res, at)
		if next == nil {
			break
		}
		if followed == maxRedirects {
			return false, fmt.Errorf("%s redirected %d times", c.url, maxRedirects)
		}
		at, reusable = next, false
		res, err = c.follow(ctx, at, dialTimeout) //nolint:bodyclose // as above
	}
	if err != nil {
		return false, err
	}
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return false, fmt.Errorf("%s answered %s", at, res.Status)
	}
	return reusable, nil
}

// follow asks at another URL of the same host.
func (c *check) follow(ctx context.Context, u *url.URL, dialTimeout time.Duration) (*http.Response, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := dialProbe(ctx, net.JoinHostPort(u.Hostname(), port), dialTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	res, _, err := c.exchange(ctx, conn, u)
	return res, err
}

// redirect is where res asks to go on; nil when that is nowhere, or on another host, which the kubelet does not follow.
func redirect(res *http.Response, from *url.URL) *url.URL {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil
	}
	location := res.Header.Get("Location")
	if location == "" {
		return nil
	}
	to, err := from.Parse(location)
	if err != nil || to.Hostname() != from.Hostname() || to.Scheme != "http" && to.Scheme != "https" {
		return nil
	}
	return to
}

// exchange sends one request for u on conn and reads the answer, whose body is closed when it returns.
func (c *check) exchange(ctx context.Context, conn net.Conn, u *url.URL) (res *http.Response, reusable bool, err error) {
	plain := u.Scheme != "https"
	if !plain {
		// As the kubelet does: whom the certificate is for has nothing to do with being ready.
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // see above
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, false, err
	}
	req.Header = c.header.Clone()
	req.Host = req.Header.Get("Host")
	req.Close = !plain
	if err := req.Write(conn); err != nil {
		return nil, false, err
	}
	br := bufio.NewReader(io.LimitReader(conn, maxProbeAnswer))
	for {
		res, err = http.ReadResponse(br, req) //nolint:bodyclose // closed below
		if err != nil {
			return nil, false, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxProbeBody+1))
	whole := err == nil && n <= maxProbeBody
	return res, plain && whole && !res.Close && br.Buffered() == 0, nil
}

// grpc asks grpc.health.v1.Health/Check, of which SERVING is the success. One call of a fixed message needs no gRPC
// library.
func (c *check) grpc(ctx context.Context, conn net.Conn) error {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{
		Protocols:              &protocols,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer tr.CloseIdleConnections()
	message := protowire.AppendTag(nil, 1, protowire.BytesType)
	message = protowire.AppendString(message, c.service)
	body := &probeBody{data: append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.address+"/grpc.health.v1.Health/Check", body)
	if err != nil {
		return err
	}
	req.Header = http.Header{
		"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {probeUserAgent}, headerProbe: {probeAhead},
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxProbeBody))
	if err != nil {
		return err
	}
	status := res.Trailer.Get("Grpc-Status")
	if status == "" {
		status = res.Header.Get("Grpc-Status") // an answer of trailers alone
	}
	if res.StatusCode != http.StatusOK || status != "0" {
		return fmt.Errorf("health check answered HTTP status %d, gRPC status %q", res.StatusCode, status)
	}
	if serving := healthStatus(answer); serving != 1 {
		return fmt.Errorf("health check answered serving status %d", serving)
	}
	return nil
}

// probeBody is a body of unknown length, as gRPC's are.
type probeBody struct{ data []byte }

func (b *probeBody) Read(buf []byte) (int, error) {
	if len(b.data) == 0 {
		return 0, io.EOF
	}
	n := copy(buf, b.data)
	b.data = b.data[n:]
	return n, nil
}

// healthStatus is the field status of a HealthCheckResponse, 1 for SERVING, in a gRPC frame; 0 (UNKNOWN) where it has
// none, -1 for what is no such message.
func healthStatus(frame []byte) int64 {
	const prefix = 5 // one byte that says whether it is compressed, four of length
	if len(frame) < prefix || frame[0] != 0 || uint64(binary.BigEndian.Uint32(frame[1:])) != uint64(len(frame)-prefix) {
		return -1
	}
	status := int64(0)
	for b := frame[prefix:]; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return -1
		}
		b = b[n:]
		if num == 1 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 || v > 1<<31 {
				return -1
			}
			status, b = int64(v), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return -1
		}
		b = b[n:]
	}
	return status
}
