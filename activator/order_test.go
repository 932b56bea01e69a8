package activator

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// scarcePods are pods to which each only the first dial succeeds, the others hang until they are given up: so whoever waits
// for a connection to a pod has to get that one.
type scarcePods struct {
	mu     sync.Mutex       // protects following
	begin  chan struct{}    // closed when dials may succeed
	dialed map[string]bool  // by address
	seen   map[string][]int // the numbers of the requests that reached the pod, in that order
	hung   map[string]int   // dials
}

func newScarcePods() *scarcePods {
	return &scarcePods{begin: make(chan struct{}), dialed: map[string]bool{}, seen: map[string][]int{}, hung: map[string]int{}}
}

func (s *scarcePods) dial(ctx context.Context, _, address string) (net.Conn, error) {
	s.mu.Lock()
	first := !s.dialed[address]
	s.dialed[address] = true
	s.hung[address]++
	s.mu.Unlock()
	if !first {
		<-ctx.Done()
		return nil, &dialError{context.Cause(ctx)}
	}
	<-s.begin
	ours, theirs := net.Pipe()
	go s.serve(theirs, address)
	return ours, nil
}

func (s *scarcePods) serve(conn net.Conn, address string) {
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		i, _ := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
		s.mu.Lock()
		s.seen[address] = append(s.seen[address], i)
		s.mu.Unlock()
		if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
			return
		}
	}
}

// Held requests are let go at once, in whatever order their goroutines run. Those that get no connection to their pod at
// once get it by their age, whether there is one pod or several, and whenever they were let go.
func TestHeldRequestsReachTheirPodByAge(t *testing.T) {
	for name, addresses := range map[string][]string{
		"one pod":      {"10.0.0.1:80"},
		"several pods": {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 600
				pods := newScarcePods()
				p := newPlane(t, nil)
				p.proxy.pools.dial = pods.dial
				fn := p.add(newTestFunction("hello"))
				ctx, giveUp := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for i := range n {
					running.Go(func() {
						p.proxy.serve(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("/%d", i), nil), fn, &gate{fn: fn})
					})
					pass(time.Millisecond)
				}
				if held(fn) != n {
					t.Fatalf("%d are held, want %d", held(fn), n)
				}
				slice := newSlice("hello", 0, addresses[0], true)
				for _, address := range addresses[1:] { // at the same moment: else the first gets them all
					slice.Endpoints = append(slice.Endpoints, newSlice("hello", 0, address, true).Endpoints...)
				}
				p.table.setSlice(slice)
				synctest.Wait()
				close(pods.begin)
				synctest.Wait()
				served := 0
				for _, address := range addresses {
					seen := pods.seen[address]
					served += len(seen)
					// The first of them had dialled, and is any. Beside it maxDialsPerPod are dialling.
					if hung := pods.hung[address] - 1; hung != maxDialsPerPod {
						t.Errorf("%s: %d dials under way, want %d", address, hung, maxDialsPerPod)
					}
					if len(seen) < n/len(addresses)/2 || !slices.IsSorted(seen[1:]) {
						t.Errorf("%s: requests %v, want them by their age but for the first", address, seen)
					}
				}
				if want := n - maxDialsPerPod*len(addresses); served != want {
					t.Errorf("%d requests reached a pod, want %d", served, want)
				}
				giveUp()
				running.Wait()
			})
		})
	}
}
