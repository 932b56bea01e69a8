package scaler

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func claim(name string, port int32, age time.Duration) portClaim {
	return portClaim{
		Function: types.NamespacedName{Namespace: "default", Name: name}, Port: port, Created: midnight.Add(-age),
	}
}

func TestPortsAllocate(t *testing.T) {
	tests := []struct {
		name   string
		fn     portClaim
		claims []portClaim
		want   int32
	}{
		{"the first free one", claim("a", 0, 0), nil, 20000},
		{"not one that is taken", claim("a", 0, 0), []portClaim{claim("b", 20000, 0)}, 20001},
		{"the one it has", claim("a", 20002, 0), []portClaim{claim("a", 20002, 0), claim("b", 20000, 0)}, 20002},
		{"not one outside of the range", claim("a", 8080, 0), nil, 20000},
		{"the older keeps a port that both have", claim("a", 20001, time.Hour), []portClaim{claim("b", 20001, 0)}, 20001},
		{"the younger does not", claim("a", 20001, 0), []portClaim{claim("b", 20001, time.Hour)}, 20000},
		{"of two as old, the first by name keeps it", claim("a", 20001, 0), []portClaim{claim("b", 20001, 0)}, 20001},
		{"a Function without a port claims none", claim("a", 0, 0), []portClaim{claim("b", 0, time.Hour)}, 20000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPorts(20000, 20003)
			got, err := p.allocate(tt.fn, func() ([]portClaim, error) { return tt.claims, nil })
			if err != nil || got != tt.want {
				t.Errorf("allocate: got %d, %v, want %d", got, err, tt.want)
			}
		})
	}
}

// What was handed out is not handed out again before the cache shows it, and is reused as late as possible.
func TestPortsHandedOut(t *testing.T) {
	p := newPorts(20000, 20002)
	var claims []portClaim
	next := func(name string) int32 {
		t.Helper()
		port, err := p.allocate(claim(name, 0, 0), func() ([]portClaim, error) { return claims, nil })
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	got := []int32{next("a"), next("b"), next("a")}
	if diff := cmp.Diff([]int32{20000, 20001, 20000}, got); diff != "" {
		t.Fatalf("ports of a, b and a again (-want +got):\n%s", diff)
	}
	p.forget(types.NamespacedName{Namespace: "default", Name: "a"})
	if got := next("c"); got != 20002 {
		t.Errorf("with a's port just given back, c got %d, want the unused 20002", got)
	}
	if got := next("d"); got != 20000 {
		t.Errorf("d got %d, want the free 20000", got)
	}
	if _, err := p.allocate(claim("e", 0, 0), func() ([]portClaim, error) { return claims, nil }); !errors.Is(err, errPortsExhausted) {
		t.Errorf("with all ports taken: got %v, want errPortsExhausted", err)
	}
	// b's port shows in the cache, and b goes: only then it is free.
	claims = []portClaim{claim("b", 20001, 0)}
	if _, err := p.allocate(claim("e", 0, 0), func() ([]portClaim, error) { return claims, nil }); !errors.Is(err, errPortsExhausted) {
		t.Errorf("got %v, want errPortsExhausted", err)
	}
	claims = nil
	if got := next("e"); got != 20001 {
		t.Errorf("e got %d, want b's 20001", got)
	}
}

func TestPortsAreUniqueUnderConcurrency(t *testing.T) {
	p := newPorts(20000, 20099)
	var mu sync.Mutex
	owner := map[int32]string{}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			name := fmt.Sprint("fn-", i)
			port, err := p.allocate(claim(name, 0, 0), func() ([]portClaim, error) { return nil, nil })
			mu.Lock()
			defer mu.Unlock()
			if other, dup := owner[port]; dup || err != nil {
				t.Errorf("port %d of %s: also of %q, err %v", port, name, other, err)
			}
			owner[port] = name
		})
	}
	wg.Wait()
}
