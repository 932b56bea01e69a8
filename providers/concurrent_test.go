package providers

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// TestHalfWrittenRecordIsNotSeen reads while activators and pods are recorded. All count 1000 per second, to the
// nanosecond of each attempt, so that any value that takes a track for known further than it is written, or a source's
// time for later than its tracks, is off.
func TestHalfWrittenRecordIsNotSeen(t *testing.T) {
	const functions, pods = 300, 3
	store := NewStore(Intervals{Activator: 20 * time.Millisecond, Pod: 20 * time.Millisecond})
	acts := activators(2)
	store.SetActivators(acts)
	var names []types.NamespacedName
	var targets []Endpoint
	for i := range functions {
		fn := proxied
		if i%2 == 0 {
			fn = direct
		}
		fn.Name.Name, fn.Window = fmt.Sprintf("f%03d", i), 200*time.Millisecond
		names = append(names, fn.Name)
		var of []Endpoint
		for n := range pods {
			e := pod(n, 0).Endpoint
			e.Function = fn.Name
			of = append(of, e)
		}
		if fn.Rule.Proxied {
			of = nil
		}
		store.SetFunction(fn, of)
		targets = append(targets, of...)
	}
	begin := time.Now()
	counted := func(at time.Time) Reading { return Reading{Started: 1000 * at.Sub(begin).Seconds()} }
	var wg sync.WaitGroup
	var stop atomic.Bool
	for _, a := range acts {
		wg.Go(func() {
			for !stop.Load() {
				at := time.Now()
				m := &Measurement{Functions: map[types.NamespacedName]Reading{}}
				for _, name := range names {
					m.Functions[name] = counted(at)
				}
				_ = store.Record(a.Target, at, m, nil)
			}
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			for _, e := range targets {
				at := time.Now()
				_ = store.Record(e.Target, at, &Measurement{Functions: map[types.NamespacedName]Reading{
					e.Function: counted(at),
				}}, nil)
			}
		}
	})
	const enough = 1000 // values; the machine may have other things to do
	seen := 0
	for i := 0; time.Since(begin) < time.Second || seen < enough && time.Since(begin) < time.Minute; i++ {
		name, want := names[i%functions], 2000.0
		if i%functions%2 == 0 {
			want = 1000 * pods
		}
		v, err := store.Value(name, v1alpha1.RequestsPerSecond)
		if err != nil {
			continue // less than half an interval has been observed
		}
		if seen++; math.Abs(v.Value-want) > want*1e-6 {
			t.Errorf("rate of %s = %+v, want %v", name, v, want)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	if seen < enough {
		t.Errorf("%d values were seen, too few to say anything", seen)
	}
}

// TestEverythingAtOnce is for the race detector, and for deadlocks.
func TestEverythingAtOnce(t *testing.T) {
	store := NewStore(Intervals{})
	acts, second := activators(2), types.NamespacedName{Namespace: "default", Name: "second"}
	targets := []Endpoint{pod(1, 0).Endpoint, pod(2, 0).Endpoint, ask("depth", "a")}
	var wg sync.WaitGroup
	again := func(do func(n int)) {
		wg.Go(func() {
			for n := range 300 {
				do(n)
			}
		})
	}
	again(func(n int) { store.SetActivators(acts[:n%3%2+1]) })
	again(func(n int) {
		fn := []Function{direct, timed, proxied}[n%3]
		store.SetFunction(fn, targets[n%2:])
		fn.Name = second
		store.SetFunction(fn, nil)
	})
	again(func(n int) {
		if n%5 == 0 {
			store.DeleteFunction(hello)
		}
		store.forget()
		store.Stats()
	})
	for _, a := range acts {
		again(func(n int) {
			_ = store.Record(a.Target, time.Now(), &Measurement{Unchanged: n%2 == 0, Functions: map[types.NamespacedName]Reading{
				hello: {Started: float64(n / 2)}, second: {Started: 1},
			}}, nil)
		})
	}
	for _, e := range targets {
		again(func(n int) {
			var err error
			if n%7 == 0 {
				err = errors.New("timeout")
			}
			_ = store.Record(e.Target, time.Now(), &Measurement{Functions: map[types.NamespacedName]Reading{
				hello: {Started: float64(n), Durations: float64(n), DurationSeconds: float64(n)},
			}}, err)
		})
	}
	again(func(int) {
		for _, info := range store.List("") {
			for _, metric := range allMetricNames {
				if v, err := store.Value(info.Name, metric); err == nil && (math.IsNaN(v.Value) || v.Value < 0) {
					t.Errorf("%s of %s = %v", metric, info.Name, v.Value)
				}
			}
			_, _ = store.Info(info.Name)
			_, _ = store.Owner("default", deployments, info.Name.Name)
		}
		for _, p := range store.Pods("default") {
			_, _ = store.PodValue("default", p.Pod.Name, v1alpha1.RequestsPerSecond)
		}
	})
	wg.Wait()
	store.SetFunction(direct, targets)
	if infos, pods := store.List("default"), store.Pods("default"); len(infos) != 2 || len(pods) != 2 {
		t.Errorf("%d functions and %d pods at the end, want 2 and 2", len(infos), len(pods))
	}
}

// TestLookAtWhatWasReplaced has a value made of a function that is being replaced: the race detector tells whether the
// activators' next answer leaves alone what is looked at.
func TestLookAtWhatWasReplaced(t *testing.T) {
	store, acts := NewStore(Intervals{}), activators(1)
	store.SetActivators(acts)
	store.SetFunction(proxied, nil)
	record := func(started float64) {
		_ = store.Record(acts[0].Target, time.Now(), &Measurement{Functions: map[types.NamespacedName]Reading{hello: {Started: started}}}, nil)
	}
	record(1)
	record(2)
	looked := store.function(hello)
	store.DeleteFunction(hello)
	store.SetFunction(proxied, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, unknown := store.value(looked, v1alpha1.RequestsInFlight, store.tick(time.Now())); unknown != nil {
			t.Log(unknown)
		}
	})
	record(3)
	wg.Wait()
	f := store.function(hello)
	if len(looked.tracks) != 1 || len(f.tracks) != 1 || looked.tracks[0] == f.tracks[0] {
		t.Fatalf("the former function has the tracks %p, the one in its place %p; want one each, not the same", looked.tracks, f.tracks)
	}
	if last, now := looked.tracks[0], f.tracks[0]; last.fn != looked || last.raw.Started != 2 || now.fn != f || now.raw.Started != 3 {
		t.Errorf("the former track has counted to %v, the new one to %v; want 2 and 3, each for its own", last.raw.Started, now.raw.Started)
	}
}

// TestListsFollowEveryChange: a list that is remembered is that of the moment.
func TestListsFollowEveryChange(t *testing.T) {
	store := NewStore(Intervals{})
	for i := range 20 {
		fn := direct
		fn.Labels = map[string]string{"n": fmt.Sprint(i)}
		e := pod(i, 0).Endpoint
		store.SetFunction(fn, []Endpoint{e})
		for range 2 {
			if infos := store.List("default"); len(infos) != 1 || infos[0].Labels["n"] != fmt.Sprint(i) {
				t.Fatalf("after change %d: %+v", i, infos)
			}
			if pods := store.Pods(""); len(pods) != 1 || pods[0].Pod.Name != e.Pod.Name {
				t.Fatalf("after change %d: %+v", i, pods)
			}
		}
		if i%4 == 0 {
			store.DeleteFunction(hello)
			if len(store.List(""))+len(store.Pods("default")) != 0 {
				t.Fatal("a function that is gone is listed")
			}
		}
	}
}

// TestUnchangedIsAsGoodAsTheWhole: whether an activator says that nothing has changed must make no difference.
func TestUnchangedIsAsGoodAsTheWhole(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		a := activators(1)[0]
		w.store.SetActivators([]Endpoint{a})
		second := proxied
		second.Name.Name = "second"
		say := func(unchanged bool, functions map[types.NamespacedName]Reading) {
			t.Helper()
			pass(time.Second)
			if err := w.store.Record(a.Target, time.Now(), &Measurement{Unchanged: unchanged, Functions: functions}, nil); err != nil {
				t.Fatal(err)
			}
		}
		first := map[types.NamespacedName]Reading{hello: {Started: 100}, second.Name: {Started: 50}}
		w.list0(a)
		say(false, first)
		for range 40 {
			say(true, first)
		}
		if v := w.want(v1alpha1.RequestsPerSecond, 0); time.Since(v.At) != 0 {
			t.Errorf("the value is %s old, although the activator has said that nothing changed", time.Since(v.At))
		}
		w.store.SetFunction(second, nil) // it was counted before anybody asked
		for range 10 {
			say(true, first)
		}
		then := map[types.NamespacedName]Reading{hello: {Started: 100}, second.Name: {Started: 80, InFlight: 1}}
		say(false, then)
		if v, err := w.store.Value(second.Name, v1alpha1.RequestsPerSecond); err != nil || math.Abs(v.Value*v.Window.Seconds()-30) > 1e-6 {
			t.Errorf("rate of a function that came while nothing changed: %+v, %v; want 30 requests", v, err)
		}
		// An answer that was lost on the way to the Store: the next one is not what the tracks say.
		say(false, map[types.NamespacedName]Reading{hello: {Started: 100}, second.Name: {Started: 80}})
		pass(time.Second)
		_ = w.store.Record(a.Target, time.Now(), nil, errors.New("lost"))
		later := map[types.NamespacedName]Reading{hello: {Started: 160}, second.Name: {Started: 80}}
		say(true, later)
		w.want(v1alpha1.RequestsPerSecond, 2)
		// A call goes on without anything else changing.
		running := map[types.NamespacedName]Reading{hello: {Started: 160, InFlight: 1}, second.Name: {Started: 80}}
		say(false, running)
		for range 20 {
			say(true, running)
		}
		if idle := w.idle(); idle != 0 {
			t.Errorf("idle = %v while a call runs", idle)
		}
	})
}

// list0 names one activator and the world's function.
func (w *world) list0(a Endpoint) {
	w.store.SetActivators([]Endpoint{a})
	w.store.SetFunction(w.fn, nil)
}

// TestTargetsOfAnotherKind are left out, and asking them all the same does no harm.
func TestTargetsOfAnotherKind(t *testing.T) {
	store := NewStore(Intervals{})
	mixed := []Endpoint{activators(1)[0], pod(1, 0).Endpoint, ask("depth", "a")}
	store.SetActivators(mixed)
	store.SetFunction(direct, mixed)
	for _, e := range mixed {
		if err := store.Record(e.Target, time.Now(), &Measurement{}, nil); err != nil {
			t.Error(err)
		}
	}
	want := Stats{Functions: 1, Activators: 1, Pods: 1, Queries: 1, Series: 1}
	if got := store.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestWhatIsGoneIsForgotten bounds what the Store keeps: by time without another list, and by count.
func TestWhatIsGoneIsForgotten(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		a := activator(1, 0)
		a.rate = 10
		w.acts = []*process{a}
		for i := range 20 {
			w.pods = append(w.pods, pod(i, 0))
		}
		w.list()
		w.run(10 * time.Second)
		f := w.store.functions[hello]
		if len(f.tracks) != 1 || w.store.Stats().Series != 21 {
			t.Fatalf("%d tracks, %d series", len(f.tracks), w.store.Stats().Series)
		}
		b := activator(2, 0)
		w.acts, w.pods = []*process{b}, nil
		w.list()
		w.run(10 * time.Second)
		if n := w.store.Stats().Series; n != 22 {
			t.Errorf("%d series 10 s after their sources went, want 22", n)
		}
		w.run(time.Minute)
		w.store.forget()
		if n := w.store.Stats().Series; n != 2 {
			t.Errorf("%d series when no window reaches back to the pods, want 2", n)
		}
		w.run(5 * time.Minute)
		w.store.forget()
		if n := w.store.Stats().Series; n != 1 || len(w.store.fading) != 0 {
			t.Errorf("%d series when no window reaches back to the activator, want 1; %d functions fade", n, len(w.store.fading))
		}
		w.want(v1alpha1.RequestsPerSecond, 0)
	})
	inWorld(t, direct, func(w *world) {
		w.acts = []*process{activator(1, 0)}
		w.list()
		w.run(40 * time.Second)
		for range 3 {
			for i := range mostGone {
				p := pod(i, 0).fresh()
				p.UID, p.rate = types.UID(fmt.Sprint(time.Now(), i)), 1
				w.pods = append(w.pods, p)
			}
			w.list()
			w.run(4 * time.Second)
			w.pods = nil
			w.list()
		}
		if n := len(w.store.functions[hello].pods.gone); n > mostGone {
			t.Errorf("%d pods that are gone are kept, want at most %d", n, mostGone)
		}
		w.run(3 * time.Second)
		v, err := w.store.Value(hello, v1alpha1.RequestsPerSecond)
		if err != nil || v.Window > 8*time.Second {
			t.Errorf("value = %+v, %v: it must begin after what is forgotten went", v, err)
		}
	})
}

// TestFunctionsInALoopLeaveNothing: what is made and deleted, as by a platform that has a function for each job, is not
// kept anywhere once no window reaches back to it.
func TestFunctionsInALoopLeaveNothing(t *testing.T) {
	inWorld(t, direct, func(w *world) {
		a := activators(1)[0]
		w.store.SetActivators([]Endpoint{a})
		for i := range 500 {
			fn := []Function{direct, proxied, timed}[i%3]
			fn.Name = types.NamespacedName{Namespace: fmt.Sprint("job-", i), Name: "hello"}
			fn.Workload, fn.Service = Object{Resource: deployments, Name: "hello"}, Object{Resource: services, Name: "hello"}
			e, q := pod(i, 0).Endpoint, ask("depth", "a")
			e.Function, q.Function = fn.Name, fn.Name
			w.store.SetFunction(fn, []Endpoint{e, q})
			for range 3 {
				pass(time.Second)
				for _, target := range []Target{a.Target, e.Target, q.Target} {
					m := &Measurement{Functions: map[types.NamespacedName]Reading{fn.Name: {Started: float64(i)}}}
					if err := w.store.Record(target, time.Now(), m, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.store.List(fn.Name.Namespace)
			w.store.Pods("")
			w.store.DeleteFunction(fn.Name)
		}
		pass(time.Second)
		if err := w.store.Record(a.Target, time.Now(), &Measurement{}, nil); err != nil {
			t.Fatal(err)
		}
		s := w.store
		left := map[string]int{
			"functions": len(s.functions), "targets": len(s.targets) - 1, "namespaces": len(s.namespaces) - 1, "owners": len(s.owners),
			"pods": len(s.pods), "fading": len(s.fading), "tracks": len(s.targets[a.Target].tracks), "listed": len(s.namespaces[""].functions),
		}
		for what, n := range left {
			if n != 0 {
				t.Errorf("%d %s are left", n, what)
			}
		}
	})
}
