package providers

import "time"

// goesOn is how long a missing pod is taken to go on.
const goesOn = time.Minute

// leave says which pods a value is made without; see Rule.
type leave int

const (
	none   leave = iota
	late         // those that are not known, or not any more
	failed       // and those of which the latest attempt failed
)

// out tells whether src, whose state is st, is missing.
func (l leave) out(src *source, st *state, now tick) bool {
	if l == none || src.Kind != Pod || !st.waited {
		return false
	}
	if l == failed && st.err != nil {
		return true
	}
	// One that is new is known from its appearance on, answered or not.
	if st.seen() == never || st.sampled != never && !st.counts() {
		return true
	}
	return time.Duration(now-st.seen()) > staleAfter(src.interval)
}

// mayMiss is how many of n pods may be missing: a fifth, and of three and more always one.
func mayMiss(n int) int {
	if n < 3 {
		return 0
	}
	return max(1, n/5)
}

// lenience is which pods may be left out for now: as many as may be missing, and none where one has been missing for
// too long.
func (l *look) lenience() leave {
	n, nLate, nFailed := 0, 0, 0
	for _, src := range l.f.pods.live {
		st := src.state.Load()
		if !st.waited {
			continue
		}
		n++
		switch {
		case late.out(src, st, l.now):
			nLate++
			if l.now-st.appeared() > tick(goesOn) {
				return none
			}
		case failed.out(src, st, l.now):
			nFailed++
		}
	}
	switch {
	case nLate+nFailed == 0 || nLate > mayMiss(n):
		return none
	case nLate+nFailed <= mayMiss(n):
		return failed
	default:
		return late
	}
}

// appeared is when the source last answered, or appeared if it has not.
func (st *state) appeared() tick { return max(st.sampled, st.wanted) }

// podSum is the increase of the pods' counter inside the window, with what the missing ones are taken to have added.
func (l *look) podSum(observed time.Duration) float64 {
	sum, n, missing := 0.0, 0, 0
	for _, src := range l.f.pods.live {
		st := src.state.Load()
		if l.leave.out(src, st, l.now) {
			missing++
			continue
		}
		sum += src.increase(l.pod, l.from, l.at)
		if st.waited {
			n++
		}
	}
	others := 0.0
	if n > 0 {
		others = sum / float64(n) / observed.Seconds()
	}
	if missing > 0 {
		for _, src := range l.f.pods.live {
			if st := src.state.Load(); l.leave.out(src, st, l.now) {
				sum += l.missed(src, st, others)
			}
		}
	}
	for _, src := range l.f.pods.gone {
		sum += src.increase(l.pod, l.from, l.at)
	}
	return sum
}

// missed is what a missing pod has counted inside the window as far as it is known, and for the rest as much as it had
// when it was last seen, or as the others, whichever is more.
func (l *look) missed(src *source, st *state, others float64) float64 {
	if !st.counts() { // nothing is known but, perhaps, when it appeared
		return others * time.Duration(l.at-min(l.at, max(l.from, st.assumed))).Seconds()
	}
	first := min(max(l.from, st.counted), l.at) // known from here
	last := min(max(st.seen(), first), l.at)    // to here
	rest := time.Duration((l.at - last) + (first - l.from)).Seconds()
	return src.increase(l.pod, first, last) + rest*max(others, src.meanAtLast(l.pod, st, l.f.since, l.window))
}

// meanAtLast is the mean that the source had when it was last seen.
func (src *source) meanAtLast(c counter, st *state, since tick, window time.Duration) float64 {
	if src.track == nil || src.track.n == 0 {
		return 0
	}
	from := max(st.sampled-tick(window), since, st.counted, src.track.point(0).at)
	if took := time.Duration(st.sampled - from); took > 0 && took >= src.interval/2 {
		return src.increase(c, from, st.sampled) / took.Seconds()
	}
	return 0
}

// increase of a pod's counter; durations stand in for a gauge that it has not shown, as while two versions of a function
// run side by side. The function's mu is held.
func (src *source) increase(c counter, from, to tick) float64 {
	if src.track == nil {
		return 0
	}
	if c == busy && !src.state.Load().gauged {
		c = lasted
	}
	return src.track.increase(c, from, to)
}
