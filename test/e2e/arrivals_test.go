//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// arrivals is told by the story's pods of every call that reaches one of them, by the call's id. So a call that was sent
// again, to whatever pod, is seen though the first one is gone.
type arrivals struct {
	address string

	mu   sync.Mutex          // protects following
	pods map[string][]string // those that each id came to
}

// arrivals begins to collect, until the story ends. Pods are led to it by the flag --ids-to.
func (s *story) arrivals() *arrivals {
	s.Helper()
	ln, err := (&net.ListenConfig{}).Listen(s.Context(), "tcp", net.JoinHostPort(s.nodeIP(), "0"))
	if err != nil {
		s.Fatal(err)
	}
	a := &arrivals{address: ln.Addr().String(), pods: map[string][]string{}}
	ctx, cancel := context.WithCancel(context.Background()) // the story's own ends before its clean-ups
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			collecting.Go(func() { a.collect(ctx, conn) })
		}
	})
	s.Cleanup(func() {
		cancel()
		_ = ln.Close()
		collecting.Wait()
	})
	return a
}

// collect takes what one pod tells.
func (a *arrivals) collect(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		pod, id, _ := strings.Cut(lines.Text(), " ")
		a.mu.Lock()
		a.pods[id] = append(a.pods[id], pod)
		a.mu.Unlock()
	}
}

// check fails the story unless each of the sent calls has come to exactly one pod, once, and nothing else has.
func (a *arrivals) check(s *story, sent []string) {
	s.Helper()
	// What a pod has told may still be on its way.
	eventually(s.T, 10*time.Second, "pods to tell of all calls", func(context.Context) string {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, id := range sent {
			if len(a.pods[id]) == 0 {
				return fmt.Sprintf("call %s came to no pod, of %d sent and %d that came", id, len(sent), len(a.pods))
			}
		}
		return ""
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	twice := 0
	for _, id := range slices.Sorted(maps.Keys(a.pods)) {
		if pods := a.pods[id]; len(pods) > 1 {
			if twice++; twice <= 10 {
				s.Errorf("call %s came %d times: to %s", id, len(pods), strings.Join(pods, ", "))
			}
		}
	}
	if twice > 0 {
		s.Errorf("%d calls came more than once", twice)
	}
	if len(a.pods) != len(sent) {
		s.Errorf("%d different calls came, of %d sent", len(a.pods), len(sent))
	}
}
