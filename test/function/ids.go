package main

import (
	"crypto/sha256"
	"sync"
)

// MaxIDs bounds how many ids are remembered: about 4 MiB.
const MaxIDs = 100_000

// ids counts the distinct ids of calls, or keys of records, and those that came again. The zero value is ready to use.
type ids struct {
	mu         sync.Mutex // protects following
	known      map[[16]byte]struct{}
	duplicates int
	untracked  int
}

// idReport is the body of /ids, and of /records, where a record is a call and its key is the id.
//
// It speaks of one pod. A request that was sent again to another pod is a duplicate that neither pod knows of; over
// all pods, it shows as more calls seen than requests sent.
type idReport struct {
	// Seen is the number of calls with an id.
	Seen int `json:"seen"`
	// Distinct is the number of different ids among them.
	Distinct int `json:"distinct"`
	// Duplicates is the number of calls whose id had been seen before.
	Duplicates int `json:"duplicates"`
	// Untracked is the number of calls with a new id after MaxIDs were known. Unless it is 0, there may be more
	// duplicates than Duplicates says.
	Untracked int `json:"untracked"`
}

func (s *ids) add(id string) {
	// A digest has one size, whatever the client sends as its id.
	sum := sha256.Sum256([]byte(id))
	key := [16]byte(sum[:16])

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[[16]byte]struct{}{}
	}
	if _, ok := s.known[key]; ok {
		s.duplicates++
		return
	}
	if len(s.known) >= MaxIDs {
		s.untracked++
		return
	}
	s.known[key] = struct{}{}
}

func (s *ids) report() idReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return idReport{
		Seen:     len(s.known) + s.duplicates + s.untracked,
		Distinct: len(s.known), Duplicates: s.duplicates, Untracked: s.untracked,
	}
}
