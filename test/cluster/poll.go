package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// poll calls cond until it returns nil, pausing in between, and gives up when ctx ends or cond returns a fatal error.
// The error says what was waited for and why the last attempt failed.
func poll(ctx context.Context, what string, pause time.Duration, cond func(context.Context) error) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		if f, ok := errors.AsType[fatal](err); ok {
			return fmt.Errorf("waiting for %s: %w", what, f.error)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (last: %w)", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// fatal is an error that waiting longer cannot mend.
type fatal struct{ error }
