package scaler

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// errPortsExhausted is returned when every gate port of the range belongs to a Function.
var errPortsExhausted = errors.New("every gate port is taken")

// portClaim is the gate port that a Function holds by its status.
type portClaim struct {
	Function types.NamespacedName
	Port     int32
	Created  time.Time
}

// older tells which of two Functions came first. Creation times have whole seconds, so names decide a tie.
func older(a types.NamespacedName, aCreated time.Time, b types.NamespacedName, bCreated time.Time) bool {
	if !aCreated.Equal(bCreated) {
		return aCreated.Before(bCreated)
	}
	return a.String() < b.String()
}

// ports hands out gate ports, each to one Function. What was handed out is on record in the Functions' statuses; ports
// itself only bridges the time until the cache shows them.
type ports struct {
	first, last int32

	mu sync.Mutex // protects following
	// handed are ports that no status in the cache shows yet.
	handed map[types.NamespacedName]int32
	// next is where the search begins: a port that became free is used again as late as possible, so that nothing
	// which is still programmed for its former owner meets the new one.
	next int32
}

func newPorts(first, last int32) *ports {
	return &ports{first: first, last: last, next: first, handed: map[types.NamespacedName]int32{}}
}

// allocate gives fn a port: the one it holds, unless that is outside of the range or an older Function holds it too,
// else a free one. claims lists the claims of all Functions in the cache; it is called under the lock, so that a port
// handed out before the call is seen either in the cache or in handed, and must not do I/O.
func (p *ports) allocate(fn portClaim, claims func() ([]portClaim, error)) (int32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all, err := claims()
	if err != nil {
		return 0, err
	}
	taken := make(map[int32]bool, len(all)+len(p.handed))
	keep := fn.Port >= p.first && fn.Port <= p.last
	for _, c := range all {
		if c.Function == fn.Function || c.Port == 0 {
			continue
		}
		taken[c.Port] = true
		if c.Port == fn.Port && older(c.Function, c.Created, fn.Function, fn.Created) {
			keep = false
		}
		if p.handed[c.Function] == c.Port {
			delete(p.handed, c.Function)
		}
	}
	if keep {
		delete(p.handed, fn.Function)
		return fn.Port, nil
	}
	if port, ok := p.handed[fn.Function]; ok && !taken[port] {
		return port, nil
	}
	for _, port := range p.handed {
		taken[port] = true
	}
	for i := range p.last - p.first + 1 {
		port := p.first + (p.next-p.first+i)%(p.last-p.first+1)
		if !taken[port] {
			p.handed[fn.Function] = port
			p.next = port + 1
			return port, nil
		}
	}
	return 0, fmt.Errorf("%w (%d-%d)", errPortsExhausted, p.first, p.last)
}

// forget gives back a port whose Function is gone.
func (p *ports) forget(fn types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.handed, fn)
}
