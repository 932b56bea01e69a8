package activator

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestIntegralsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s stats
		pass(time.Hour)               // nothing counts before the first request
		s.start()                     // A, in flight 1
		s.hold(+1)                    // A, held 1
		pass(1500 * time.Millisecond) // busy 1.5, held 1.5
		s.start()                     // B, in flight 2
		pass(time.Second)             // busy 3.5, held 2.5
		s.hold(-1)                    //
		pass(time.Nanosecond)         // busy 3.500000002
		s.finish(outcomeOK)           // A, in flight 1
		pass(2 * time.Second)         // busy 5.500000002
		s.finish(outcomeClientGone)   // B
		pass(time.Hour)
		got := s.snapshot()
		want := counts{started: 2, busy: integral{5, 500000002}, waited: integral{2, 500000000}}
		want.finished[outcomeOK], want.finished[outcomeClientGone] = 1, 1
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(counts{}, integral{})); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
	})
}

func TestIntegralDoesNotOverflow(t *testing.T) {
	var i integral
	for range 100 {
		i.add(10000, 24*time.Hour) // as one int64 of nanoseconds this would overflow on day 11
	}
	if got, want := i.seconds(), 10000*100*24*3600.0; math.Abs(got-want) > 0 {
		t.Errorf("got %f, want %f", got, want)
	}
}
