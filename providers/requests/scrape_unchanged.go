package requests

import (
	"sync"
	"time"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// answerKeep is how long the last answer of an activator is remembered without being asked for again.
	answerKeep = time.Minute
	// maxETag bounds an entity tag that is remembered.
	maxETag = 256
)

// answers remembers the last complete answer of each activator, so that one which says that nothing has changed need
// not say it all again: ten thousand sleeping functions cost a few bytes each second.
type answers struct {
	mu       sync.Mutex // protects following
	byTarget map[providers.Target]*answer
	swept    time.Time
}

type answer struct {
	etag        string
	measurement *providers.Measurement // never written to
	used        time.Time
}

// of returns the last answer of t, or nil.
func (a *answers) of(t providers.Target) *answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.byTarget[t]
	if found != nil {
		found.used = time.Now()
	}
	return found
}

// keep remembers t's answer, if it has an entity tag.
func (a *answers) keep(t providers.Target, etag string, m *providers.Measurement) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if etag == "" || len(etag) > maxETag {
		delete(a.byTarget, t)
	} else {
		a.byTarget[t] = &answer{etag: etag, measurement: m, used: now}
	}
	if now.Sub(a.swept) < answerKeep/4 {
		return
	}
	a.swept = now
	for t, kept := range a.byTarget {
		if now.Sub(kept.used) > answerKeep {
			delete(a.byTarget, t)
		}
	}
}
