package activator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// An activator asks all others about the pods that have become its own. One that answers that it does not hold a pod to be
// its own will do so only after it has asked in turn, for it knows who asked: it answers nobody whom it does not know. So no two
// activators ever send to a pod at the same time; and requests that the former owner still has there are told, until they
// end.

const claimsPath = "/claims"

// claimsQuestion is about pods of one function.
type claimsQuestion struct {
	Function string   `json:"function"` // namespace/name
	Pods     []podRef `json:"pods"`
}

type podRef struct {
	UID     types.UID `json:"uid"`
	Address string    `json:"address"`
}

// claimsAnswer tells of each of the pods how many requests the activator has there: unsettled if the pod is its own.
type claimsAnswer struct {
	Inside []int64 `json:"inside"`
}

const (
	// askTimeout bounds one question.
	askTimeout = time.Second
	// silentAfter is how long a peer does not answer until it is taken to have no requests anywhere.
	silentAfter = 5 * time.Second
	// How long after a question the next one comes: a share of the time so far, within these bounds.
	askShare = 4
	minAsk   = 5 * time.Millisecond
	maxAsk   = 2 * time.Second
	// maxQuestion bounds a question, in bytes.
	maxQuestion = 4 << 20
)

// settle asks the other activators about the pods that are new to this one's share of fn, until they have no requests there.
// It does not wait.
func (ps *peers) settle(fn *function) {
	select {
	case fn.unsettled <- struct{}{}:
	default:
	}
	if fn.settling.CompareAndSwap(false, true) {
		ps.closing.Go(func() { ps.ask(fn) })
	}
}

// ask runs once at a time for a function.
func (ps *peers) ask(fn *function) {
	for began := time.Now(); ; {
		select {
		case <-ps.stop:
			return // before all else that may be so
		default:
		}
		if fn.queue.isDeleted() {
			return // nobody is settled any more
		}
		pods := fn.pods.Load().share.unsettled()
		if len(pods) == 0 {
			fn.settling.Store(false)
			if len(fn.pods.Load().share.unsettled()) == 0 || !fn.settling.CompareAndSwap(false, true) {
				return
			}
			began = time.Now()
			continue
		}
		select {
		case ps.asking <- struct{}{}:
		case <-ps.stop:
			return
		}
		ps.askAll(fn, pods)
		<-ps.asking
		fn.letGo()
		pause := time.NewTimer(min(max(time.Since(began)/askShare, minAsk), maxAsk))
		select {
		case <-pause.C:
		case <-fn.unsettled:
			pause.Stop()
			began = time.Now() // there is a new one, and the others need not hinder it
		case <-ps.stop:
			pause.Stop()
			return
		}
	}
}

// askAll asks each peer once.
func (ps *peers) askAll(fn *function, pods []*pod) {
	q := claimsQuestion{Function: fn.name}
	claims := make([]*claim, len(pods)) // an answer is about these, even if there are others when it comes
	for i, p := range pods {
		q.Pods = append(q.Pods, podRef{p.uid, p.address})
		claims[i] = p.claim.Load()
	}
	others := ps.load().others
	inside := make([][]int64, len(others))
	var wg sync.WaitGroup
	for i, other := range others {
		wg.Go(func() { inside[i] = ps.askPeer(other, q) })
	}
	wg.Wait()
	for i, c := range claims {
		if c == nil {
			continue // another's again
		}
		var sum int64
		for _, of := range inside {
			sum = min(sum+of[i], unsettled)
		}
		c.elsewhere.Store(sum)
	}
}

// askPeer returns what other has at each of the pods.
func (ps *peers) askPeer(other *peer, q claimsQuestion) []int64 {
	inside := make([]int64, len(q.Pods))
	if ps.silent.known(other.name) {
		ps.metrics.unconfirmed.Add(float64(len(q.Pods)))
		return inside // nobody waits again for what was waited for a moment ago
	}
	began := time.Now()
	said, err := ps.post(other, q)
	if err == nil {
		ps.silent.forget(other.name)
		return said
	}
	switch {
	case errors.Is(err, errWait):
		ps.silent.forget(other.name)
	case !other.ready && errors.Is(err, syscall.ECONNREFUSED):
		return inside // its process has ended, and its connections with it
	case ps.silent.add(other.name, began) > silentAfter:
		ps.metrics.unconfirmed.Add(float64(len(q.Pods)))
		return inside
	}
	for i := range inside {
		inside[i] = unsettled
	}
	return inside
}

// silences are of the peers that do not answer, by their names.
type silences struct {
	mu sync.Mutex // protects following
	of map[string]silence
}

type silence struct{ since, last time.Time }

// add takes in that a question of began was not answered, and returns how long none was. A silence of long before, which
// ended unheard because nobody asked, is another one.
func (s *silences) add(name string, began time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	of, ok := s.of[name]
	if !ok || began.Sub(of.last) > silentAfter {
		of.since = began
	}
	of.last = now
	if s.of == nil {
		s.of = map[string]silence{}
	}
	s.of[name] = of
	return now.Sub(of.since)
}

// known tells whether it was found a moment ago that the peer has been silent for long enough.
func (s *silences) known(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	of, ok := s.of[name]
	return ok && of.last.Sub(of.since) > silentAfter && time.Since(of.last) < askTimeout
}

func (s *silences) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, name)
}

// keep forgets all peers but those in names.
func (s *silences) keep(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.of, func(name string, _ silence) bool { return !slices.Contains(names, name) })
}

// errWait is the answer of a peer that cannot tell yet.
var errWait = errors.New("the activator cannot tell yet")

func (ps *peers) post(other *peer, q claimsQuestion) ([]int64, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+other.admin+claimsPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := ps.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var a claimsAnswer
	switch {
	case res.StatusCode == http.StatusConflict:
		return nil, errWait
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask the activator %s about claims: %s", other.name, res.Status)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, res.Body, maxQuestion)).Decode(&a); err != nil || len(a.Inside) != len(q.Pods) {
		return nil, fmt.Errorf("ask the activator %s about claims: no answer to the question: %w", other.name, err)
	}
	return a.Inside, nil
}

// answerClaims answers the question of another activator. synced is false while this one has no requests, and has not seen
// what there is.
func (t *table) answerClaims(synced func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if synced() && !t.peers.knows(r.RemoteAddr) {
			http.Error(w, "this activator does not know of that one yet", http.StatusConflict)
			return
		}
		var q claimsQuestion
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
			http.Error(w, "no question about claims", http.StatusBadRequest)
			return
		}
		a := claimsAnswer{Inside: make([]int64, len(q.Pods))}
		if synced() {
			if fn := t.function(q.Function); fn == nil || !fn.inside(q.Pods, a.Inside) {
				http.Error(w, "this activator does not know of that function's limit yet", http.StatusConflict)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	}
}

// inside sets for each of the pods how many requests this activator has there, unsettled where it holds the pod to be its
// own. It returns false where it knows of no limit.
func (fn *function) inside(of []podRef, inside []int64) bool {
	// take looks at the claims and counts under the same lock.
	fn.queue.mu.Lock()
	defer fn.queue.mu.Unlock()
	s := fn.pods.Load()
	if s.share == nil {
		return false
	}
	known := make(map[podRef]*pod, len(s.ready)+len(s.coming)+len(s.left))
	for _, list := range [...][]*pod{s.left, s.coming, s.ready} {
		for _, p := range list {
			known[podRef{p.uid, p.address}] = p
		}
	}
	for i, ref := range of {
		p := known[ref]
		switch {
		case p == nil:
		case p.claim.Load() != nil:
			inside[i] = unsettled
		default:
			inside[i] = p.inFlight.Load()
		}
	}
	return true
}
