package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stage is one thing that the demo shows.
type stage struct {
	// name by which an error tells where the demo ended.
	name string
	// title says what is to be seen.
	title string
	// within bounds run. It is called when the stage begins, as an earlier one may have to find it out.
	within func() time.Duration
	// run returns nil once the stage has been observed, and a *notObserved if its context ended before.
	run func(ctx context.Context) error
}

func fixed(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// notObserved is the error of a stage that ran out of time.
type notObserved struct {
	seen string // what was seen instead
}

func (e *notObserved) Error() string { return "last seen: " + e.seen }

// StageError names the stage at which the demo ended.
type StageError struct {
	Stage  string
	Within time.Duration
	Err    error
}

func (e *StageError) Error() string {
	if missed, ok := errors.AsType[*notObserved](e.Err); ok {
		return fmt.Sprintf("demo: stage %q was not observed within %s: %v", e.Stage, seconds(e.Within), missed)
	}
	return fmt.Sprintf("demo: stage %q: %v", e.Stage, e.Err)
}

// Unwrap returns what went wrong in the stage.
func (e *StageError) Unwrap() error { return e.Err }

// runStages runs stages in order and ends at the first that fails, with a *StageError.
func runStages(ctx context.Context, out terminal, stages []stage) error {
	for i, s := range stages {
		out.heading(i+1, len(stages), s)
		began, within := time.Now(), s.within()
		bounded, cancel := context.WithTimeout(ctx, within)
		err := s.run(bounded)
		cancel()
		if err != nil && ctx.Err() != nil {
			// The user's Ctrl-C, and not a stage that took too long.
			err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		if err != nil {
			out.failed(time.Since(began))
			return &StageError{Stage: s.name, Within: within, Err: err}
		}
		out.done(time.Since(began))
	}
	return nil
}

// look is one look at the cluster: what was seen in words, and whether that is what the stage waits for. An error
// ends the stage; a failed read is no error but something seen, since the next may succeed.
type look func(ctx context.Context) (seen string, ok bool, err error)

// until looks once at once and then at every interval, and calls changed with whatever was seen that differs from what
// was seen before. It returns nil when a look was ok, and *notObserved when ctx ends first.
func until(ctx context.Context, interval time.Duration, changed func(seen string), l look) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last := "nothing"
	for {
		seen, ok, err := l(ctx)
		if err != nil {
			return err
		}
		// A look that the end of ctx has cut short saw only that; the one before is what there is to tell.
		if (ok || ctx.Err() == nil) && seen != last {
			last = seen
			changed(seen)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return &notObserved{seen: last}
		case <-ticker.C:
			// When both are ready, the end goes first: there is no time for another look.
			if ctx.Err() != nil {
				return &notObserved{seen: last}
			}
		}
	}
}

// seconds writes d as people say it of deadlines: 90s, 0.5s.
func seconds(d time.Duration) string { return fmt.Sprintf("%gs", d.Seconds()) }
