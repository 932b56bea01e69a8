package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/bench/world"
)

// capture is what a function in Go that uses client_golang exposes; see test/runtimes.
const capture = "../../providers/requests/testdata/generic-go/busy.txt.packed"

// metrics is how the pods count.
var metrics = v1alpha1.PodMetrics{Preset: v1alpha1.Generic}

const (
	// counter of requests in the capture, and perSecond by how much each of its series grows.
	counter     = "http_requests_total{"
	perSecond   = 10
	contentType = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
)

// podAnswer is a pod's answer whose counters move, with the header, and the requests per second that it tells of.
func podAnswer() (answer *world.Moving, rate float64, err error) {
	packed, err := os.Open(capture)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = packed.Close() }()
	reader, err := gzip.NewReader(packed)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", capture, err)
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", capture, err)
	}
	moves := func(line []byte) bool {
		for _, name := range []string{counter, "http_request_duration_seconds_count{", "http_request_duration_seconds_sum{"} {
			if bytes.HasPrefix(line, []byte(name)) {
				return true
			}
		}
		return false
	}
	length := world.NewMoving(body, moves).Len()
	header := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, length)
	series := bytes.Count(body, []byte("\n"+counter))
	return world.NewMoving(append([]byte(header), body...), moves), float64(series * perSecond), nil
}

// servePods is as cheap as pods can be: whatever is asked, the answer lies ready. It reads requests without a body, one
// at a time.
func servePods(ctx context.Context, address string) error {
	answer, _, err := podAnswer()
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	began := time.Now()
	buffers := sync.Pool{New: func() any { return new(make([]byte, 0, answer.Len())) }}
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("pods: %w", err)
		}
		go func() {
			defer conn.Close()
			request := make([]byte, 0, 1<<10)
			for {
				n, err := conn.Read(request[len(request):cap(request)])
				if request = request[:len(request)+n]; err != nil || len(request) == cap(request) {
					return
				}
				if !bytes.HasSuffix(request, []byte("\r\n\r\n")) {
					continue
				}
				last := bytes.Contains(request, []byte("\r\nConnection: close\r\n"))
				request = request[:0]
				buffer := buffers.Get().(*[]byte)
				*buffer = answer.Append((*buffer)[:0], int(time.Since(began).Seconds()*perSecond))
				_, err = conn.Write(*buffer)
				buffers.Put(buffer)
				if err != nil || last {
					return
				}
			}
		}()
	}
}
