//go:build e2e

package e2e

import (
	"time"

	"github.com/sluice-dev/sluice/test/load"
)

// What zeroToThousands offers.
const (
	thousands    = 3000.0
	thousandsFor = 15 * time.Second
)

// zeroToThousands: a function that sleeps is offered 3,000 requests per second from one moment to the next. None fails. How
// long it takes until the rate is served is told: until no more than a tenth of a second's requests are unanswered, for a
// second on end.
func zeroToThousands(s *story) {
	fn := onRate(proxied("hello"), "1000")
	fn.Spec.Activation.MaxHeld = 20000
	s.asleep(fn)
	l, err := load.New(s.Context(), load.Options{
		URL:         s.clusterIP("sluice-hello"),
		Steps:       []load.Step{load.Constant(thousands, thousandsFor)},
		MaxRequests: int(thousands * thousandsFor.Seconds()),
		MaxInFlight: 30000,
		Timeout:     callLimit,
		Allow:       clusterNetworks,
	})
	if err != nil {
		s.Fatal(err)
	}
	type outcome struct {
		load.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := l.Run(s.Context())
		done <- outcome{r, err}
	}()
	var since, served time.Duration // since when few are unanswered, 0 for not now; the first time that was so for a second
	most := 0
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			now := l.Snapshot()
			most = max(most, now.InFlight)
			switch {
			case now.Rate == 0: // before the load or after it
			case now.InFlight > int(thousands/10):
				since = 0
			case since == 0:
				since = now.Elapsed
			case served == 0 && now.Elapsed-since >= time.Second:
				served = since
			}
		case o := <-done:
			s.Logf("%d requests offered at %v/s: the rate was served from %s on; at most %d unanswered at a time; p50 %s, p99 %s, max %s; "+
				"the generator was late by %s at most; %d replicas",
				o.Due, thousands, served.Round(10*time.Millisecond), most, o.Latency.P50, o.Latency.P99, o.Latency.Max, o.Late,
				*s.deployment("hello").Spec.Replicas)
			if o.err != nil || o.Failed() > 0 {
				s.Errorf("%v; %v", o.err, o.Result.Err())
			}
			if served == 0 {
				s.Errorf("the rate was not served within %s", thousandsFor)
			}
			return
		}
	}
}
