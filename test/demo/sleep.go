package main

import (
	"context"
	"time"
)

// sleep watches the function fall asleep.
func (d *Demo) sleep(ctx context.Context) error {
	began := time.Now()
	show := func(seen string) { d.out.linef("+%.1fs  %s", time.Since(began).Seconds(), seen) }
	return until(ctx, d.opts.Poll, show, func(ctx context.Context) (string, bool, error) {
		s, err := d.state(ctx)
		if err != nil {
			return oneLine(err), false, nil
		}
		if s.replicas == 0 && d.report.toSleep == 0 {
			d.report.toSleep = time.Since(began)
		}
		return s.String(), s.asleep(), nil
	})
}
