package providers

import (
	"context"
	"sync"
)

// Slots lets a number of things go on at the same time for each key, and no more, so that what hangs for one key costs
// a bounded number of goroutines and connections, and the other keys nothing. The zero value lets nothing go on; set
// Most before the first Acquire. Safe for concurrent use.
type Slots[K comparable] struct {
	// Most that go on at a time, for each key.
	Most int

	mu    sync.Mutex // protects following
	byKey map[K]*slot
}

type slot struct {
	taken chan struct{}
	users int // that hold or wait for a place
}

// Acquire waits for a place until ctx ends. Who has one calls release. An error is the cause of ctx.
func (s *Slots[K]) Acquire(ctx context.Context, key K) (release func(), err error) {
	s.mu.Lock()
	if s.byKey == nil {
		s.byKey = map[K]*slot{}
	}
	sl := s.byKey[key]
	if sl == nil {
		sl = &slot{taken: make(chan struct{}, s.Most)}
		s.byKey[key] = sl
	}
	sl.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sl.users--; sl.users == 0 {
			delete(s.byKey, key)
		}
	}
	select {
	case sl.taken <- struct{}{}:
		return func() { <-sl.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// Keys is how many keys there are for which something goes on or waits.
func (s *Slots[K]) Keys() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byKey)
}
