//go:build integration

package kafka

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// The numbers of APIs in the protocol.
const (
	metadataAPI    = 3
	apiVersionsAPI = 18
)

// brokersThatSpeakLess are asked in the versions that they speak.
func brokersThatSpeakLess(t *testing.T, c *Cluster, client *Client, _ *measured) {
	ctx := within(t, 2*time.Minute)
	must(t, client.CreateTopic(ctx, "versions", 2))
	must(t, client.Produce(ctx, "versions", 1, 5))
	for highest := int16(1); highest <= 12; highest++ {
		t.Run(fmt.Sprint(highest), func(t *testing.T) {
			p := newProxy(t, c.Addresses(PlaintextListener)[0], highest)
			m := source(t, c, 0)
			m.servers = p.Addr().String()
			m.wantLag(t, "by Metadata of that version", m.consumer("versioned", "versions"), 5)
			p.mu.Lock()
			defer p.mu.Unlock()
			if len(p.asked) == 0 || p.asked[0] != highest {
				t.Errorf("asked in versions %d, want %d", p.asked, highest)
			}
		})
	}
}

// proxy leads to a broker, and says that its Metadata ends at a version.
type proxy struct {
	net.Listener
	highest int16

	mu    sync.Mutex // protects following
	asked []int16    // versions of the requests for metadata
}

func newProxy(t *testing.T, broker string, highest int16) *proxy {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{Listener: ln, highest: highest}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serving.Go(func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = from.Close() }()
				to, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", broker)
				if err != nil {
					return
				}
				defer func() { _ = to.Close() }()
				for p.pass(from, to) == nil {
				}
			})
		}
	})
	return p
}

// pass passes one request on, and its answer back.
func (p *proxy) pass(from, to net.Conn) error {
	request, err := frame(from)
	if err != nil {
		return err
	}
	api, version := binary.BigEndian.Uint16(request[4:]), binary.BigEndian.Uint16(request[6:])
	if api == metadataAPI {
		p.mu.Lock()
		p.asked = append(p.asked, int16(version))
		p.mu.Unlock()
	}
	if _, err := to.Write(request); err != nil {
		return err
	}
	answer, err := frame(to)
	if err != nil {
		return err
	}
	if api == apiVersionsAPI && version == 0 { // size, correlation ID, error, number of APIs, and each with its lowest and highest
		for at := 14; at+6 <= len(answer); at += 6 {
			if binary.BigEndian.Uint16(answer[at:]) == metadataAPI {
				binary.BigEndian.PutUint16(answer[at+4:], uint16(p.highest))
			}
		}
	}
	_, err = from.Write(answer)
	return err
}

// frame reads a message with its size in front.
func frame(r io.Reader) ([]byte, error) {
	size := make([]byte, 4)
	if _, err := io.ReadFull(r, size); err != nil {
		return nil, err
	}
	all := append(size, make([]byte, binary.BigEndian.Uint32(size))...)
	_, err := io.ReadFull(r, all[4:])
	return all, err
}
