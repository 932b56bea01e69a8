package providers

import (
	"cmp"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// silentFor is how long a target that is not ready may give no answer before it is taken for gone, as one that is on a
// dead node: it stays listed until Kubernetes removes the pod, which takes minutes, and takes no new requests.
const silentFor = 30 * time.Second

// source is what is kept of one target.
type source struct {
	Target
	interval time.Duration
	fn       *function // of a Pod

	// writing lets one Record at a time write tracks.
	writing sync.Mutex // protects following
	tracks  map[types.NamespacedName]*track
	track   *track    // of a Pod, which has no other
	start   time.Time // of the process that answered last, if it says
	round   uint64    // counts the answers that were written
	// indexed is the Store's generation when the tracks were last compared with the functions that there are.
	indexed uint64
	// apart is true when the target's last Measurement may not be what the tracks say; lively, when it told of
	// requests in flight, which go on counting without another change.
	apart, lively bool

	mu    sync.Mutex // lets one at a time change the state; nothing else is locked inside
	state atomic.Pointer[state]

	// Under Store.setting:
	listed uint64 // by which list of the Store
	named  string // the name of the pod by which Store.pods has the source
	goneAt tick
}

// state is what is known of a source at a moment. It is never written to, only replaced.
type state struct {
	endpoint *Endpoint
	version  string // of what runs in the Pod; see version

	found tick // when the target was first heard of
	// vacant is true once nothing was found to run there.
	vacant bool
	// waited is true while values wait for the source; gone sources are not waited for.
	waited bool
	// wanted is when values last began to wait for the source. assumed is the same, if it was new, vacant or known
	// before: it counts as observed then, for it had no reason to count in between. Otherwise never.
	wanted, assumed tick
	refusing        bool // the latest attempt met a closed port

	sampled tick  // the latest answer; never before the first one
	err     error // of the attempts since then
	counted tick  // the counters are known from here on; never where they began at zero
	watched tick  // observed without a gap from here on; never where nothing came before

	absent  bool     // the latest answer did not have the counter
	gauged  bool     // an answer had the gauge
	answers []Answer // of a Query or a Lag

	partitions []PartitionLag // of a Lag
}

func newSource(t Target, interval time.Duration, now tick) *source {
	src := &source{Target: t, interval: interval}
	src.state.Store(&state{
		found: now, wanted: never, assumed: never, sampled: never, counted: never, watched: never,
	})
	return src
}

// change replaces the state. Whoever made a copy before is not disturbed.
func (src *source) change(do func(*state)) {
	src.mu.Lock()
	defer src.mu.Unlock()
	next := *src.state.Load()
	do(&next)
	src.state.Store(&next)
}

// list takes what discovery says of the target, and tells whether it is new. Most lists say nothing new of most targets.
func (src *source) list(e *Endpoint, now tick) bool {
	src.mu.Lock()
	defer src.mu.Unlock()
	last := src.state.Load()
	next := *last
	if !e.says(last.endpoint) {
		listed := *e
		next.endpoint, next.version = &listed, version(&listed.Pod)
	}
	next.settle(now)
	if next.endpoint != last.endpoint || next.waited != last.waited || next.vacant != last.vacant {
		src.state.Store(&next)
	}
	return next.endpoint != last.endpoint
}

// says tells whether e, of the same Target, is last.
func (e *Endpoint) says(last *Endpoint) bool {
	return last != nil && e.Ready == last.Ready && e.Expected == last.Expected && e.New == last.New && e.Pod.says(&last.Pod)
}

func (o *Object) says(last *Object) bool {
	return o.Kind == last.Kind && o.Resource == last.Resource && o.Name == last.Name && o.Exists == last.Exists &&
		maps.Equal(o.Labels, last.Labels)
}

// settle decides whether values wait for the source.
func (st *state) settle(now tick) {
	silent := now-max(st.sampled, st.found) > tick(silentFor)
	dead := !st.endpoint.Ready && (st.refusing || silent)
	st.vacant = st.vacant || dead
	waited := st.endpoint.Expected && !dead
	if waited && !st.waited {
		st.wanted = now
		if st.endpoint.New || st.vacant || st.sampled != never {
			st.assumed = now
		}
	}
	st.waited = waited
}

// seen is the time up to which the source is known; never if nothing is known of it.
func (st *state) seen() tick { return max(st.sampled, st.assumed) }

// counts tells whether it is known what the source counted in some time: it began at zero, or has answered twice.
func (st *state) counts() bool {
	return st.sampled != never && st.counted != st.sampled
}

// unknown is why a value that needs the source is not known.
func (src *source) unknown(st *state, now tick) *Unknown {
	u := &Unknown{Reason: NoData, Source: src.String(), Err: st.err}
	if seen := st.seen(); seen != never {
		u.Reason, u.Age = Stale, time.Duration(now-seen)
	} else if st.err != nil {
		u.Reason = SourceError
	}
	return u
}

// version tells pods that run the same from others, as the controllers of Deployments, StatefulSets and DaemonSets do;
// empty where none of them has made the pod, or its labels are not known.
func version(pod *Object) string {
	return cmp.Or(pod.Labels["pod-template-hash"], pod.Labels["controller-revision-hash"])
}
