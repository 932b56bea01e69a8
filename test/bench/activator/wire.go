package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// answerTimeout bounds the wait for one answer that nothing holds back.
const answerTimeout = 20 * time.Second

// link is one connection of the load. It costs next to nothing beside what is measured, which a client of net/http would
// not: it writes a request that lies ready and reads no more of an answer than it must.
type link struct {
	conn   net.Conn
	reader *bufio.Reader
	due    time.Time // of the request that is under way
}

func dial(ctx context.Context, at netip.AddrPort) (*link, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, reader: bufio.NewReaderSize(conn, 1<<10)}, nil
}

func (l *link) close() { _ = l.conn.Close() }

// send writes the request.
func (l *link) send() error {
	_, err := l.conn.Write(request)
	return err
}

// receive reads one answer to its last byte, and fails unless it is the back end's.
func (l *link) receive() error {
	line, err := l.reader.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	status := string(bytes.TrimSpace(line))
	length := -1
	for {
		if line, err = l.reader.ReadSlice('\n'); err != nil {
			return fmt.Errorf("read header: %w", err)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
		}
	}
	if length < 0 || length > l.reader.Size() {
		return fmt.Errorf("%s, with a Content-Length of %d", status, length)
	}
	got, err := l.reader.Peek(length)
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if status != "HTTP/1.1 200 OK" || string(got) != body {
		return fmt.Errorf("not the pod's answer: %s: %.200q", status, got)
	}
	_, err = l.reader.Discard(length)
	return err
}

// connect makes n connections. When it fails there are none.
func connect(ctx context.Context, at netip.AddrPort, n int) (links []*link, err error) {
	for range n {
		l, err := dial(ctx, at)
		if err != nil {
			disconnect(links)
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

func disconnect(links []*link) {
	for _, l := range links {
		l.close()
	}
}

// ended tells whether an error is only that the connection was closed.
func ended(err error) bool { return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) }
