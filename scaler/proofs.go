package scaler

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
)

// parallelProofs bounds the proofs under way; more wait for a place.
const parallelProofs = 32

// proofs runs proofs beside the reconciler, so that a slow one delays no other function, and remembers their results.
type proofs struct {
	prover Prover
	// done is called after each proof, from its goroutine.
	done func(fn types.NamespacedName, proven bool)
	jobs chan proofJob

	mu sync.Mutex // protects following
	// results by function; one that is under way has neither time nor error.
	results map[types.NamespacedName]proofResult
}

type proofJob struct {
	path    Path
	attempt time.Time
}

// proofResult belongs to the attempt to sleep that began when the gate joined at that time.
type proofResult struct {
	attempt  time.Time
	provenAt time.Time
	err      string
}

func newProofs(prover Prover, done func(fn types.NamespacedName, proven bool)) *proofs {
	return &proofs{
		prover: prover, done: done,
		jobs:    make(chan proofJob, 1024),
		results: map[types.NamespacedName]proofResult{},
	}
}

// ask starts a proof for an attempt, once. It never blocks: with too many waiting, the caller has to ask again, which
// it does, as the decision asks until it sees a result.
func (p *proofs) ask(path Path, attempt time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.results[path.Function]; ok && r.attempt.Equal(attempt) {
		return
	}
	select {
	case p.jobs <- proofJob{path: path, attempt: attempt}:
		p.results[path.Function] = proofResult{attempt: attempt}
	default:
	}
}

// result of an attempt's proof: when it succeeded, or why not; neither while it is under way.
func (p *proofs) result(fn types.NamespacedName, attempt time.Time) (provenAt time.Time, err string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.results[fn]
	if attempt.IsZero() || !r.attempt.Equal(attempt) {
		return time.Time{}, ""
	}
	return r.provenAt, r.err
}

// forget drops what is known of a function.
func (p *proofs) forget(fn types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.results, fn)
}

// Start runs proofs until ctx ends, and returns when the last is over. It is a manager.Runnable of the leader.
func (p *proofs) Start(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(parallelProofs)
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case job := <-p.jobs:
			g.Go(func() error {
				p.run(ctx, job)
				return nil
			})
		}
	}
}

func (p *proofs) run(ctx context.Context, job proofJob) {
	err := p.prover.Prove(ctx, job.path)
	p.mu.Lock()
	// A newer attempt, or none at all, has no use for this result.
	if r, ok := p.results[job.path.Function]; ok && r.attempt.Equal(job.attempt) {
		if err != nil {
			r.err = err.Error()
		} else {
			r.provenAt = time.Now()
		}
		p.results[job.path.Function] = r
	}
	p.mu.Unlock()
	p.done(job.path.Function, err == nil)
}
