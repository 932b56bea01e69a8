package providers

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var allMetricNames = []string{v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.IdleSeconds}

// TestValuesAreSaneWhateverHappens lets processes come, go, restart, fail and lie at random. No value may ever be
// negative or not finite, from the future or older than the limit, or a rate above what all processes together can do.
func TestValuesAreSaneWhateverHappens(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			inWorld(t, []Function{proxied, direct}[seed%2], func(w *world) {
				const most = 100.0 // of one process
				count := 0
				spawn := func(make func(int, time.Duration) *process) *process {
					count++
					p := make(count, time.Duration(rnd.IntN(20))*50*time.Millisecond)
					p.New, p.silent = count > 2, rnd.IntN(2) == 0
					if !p.New {
						p.old()
					}
					p.rate, p.busy = rnd.Float64()*most, rnd.Float64()*3
					return p
				}
				w.acts = []*process{spawn(activator), spawn(activator)}
				w.list()
				everyone := 2.0
				for range 150 {
					switch ps := &w.acts; rnd.IntN(9) {
					case 0:
						*ps = append(*ps, spawn(activator))
						everyone++
					case 1:
						if len(*ps) > 0 {
							*ps = (*ps)[1:]
						}
					case 2:
						if w.fn.Rule.ByPods {
							w.pods = append(w.pods, spawn(pod))
							everyone++
						}
					case 3:
						if len(w.pods) > 0 {
							w.pods = w.pods[1:]
						}
					case 4:
						for _, p := range append(w.acts, w.pods...) { // restart
							p.start, p.base = time.Now(), 0
							break
						}
					case 5:
						for _, p := range append(w.acts, w.pods...) {
							p.down = []error{nil, errors.New("timeout"), syscall.ECONNREFUSED}[rnd.IntN(3)]
							p.Ready = rnd.IntN(2) == 0
						}
					case 6:
						for _, p := range w.pods {
							p.Expected = rnd.IntN(2) == 0
						}
					case 7:
						_ = w.store.Record(w.acts0(), time.Now(), &Measurement{Functions: map[types.NamespacedName]Reading{
							hello: {Started: []float64{math.NaN(), math.Inf(1), -1}[rnd.IntN(3)]},
						}}, nil)
					}
					w.list()
					w.run(time.Duration(rnd.IntN(40)) * 50 * time.Millisecond)
					w.checkSane(most * everyone)
				}
			})
		})
	}
}

func (w *world) acts0() Target {
	if len(w.acts) == 0 {
		return Target{}
	}
	return w.acts[0].Target
}

func (w *world) checkSane(mostRate float64) {
	w.t.Helper()
	for _, metric := range allMetricNames {
		v, err := w.store.Value(hello, metric)
		if err != nil {
			continue
		}
		age := time.Since(v.At)
		switch {
		case math.IsNaN(v.Value) || math.IsInf(v.Value, 0) || v.Value < 0:
			w.t.Fatalf("%s = %v", metric, v.Value)
		case age < 0 || age > 6*time.Second:
			w.t.Fatalf("%s is %s old", metric, age)
		case v.Window < 0 || v.Window > 30*time.Second:
			w.t.Fatalf("%s has window %s", metric, v.Window)
		case metric == v1alpha1.RequestsPerSecond && v.Value > mostRate+1/v.Window.Seconds()*10:
			w.t.Fatalf("rate = %v over %s, more than %v that all together can do", v.Value, v.Window, mostRate)
		case metric == v1alpha1.IdleSeconds && v.Value > time.Since(w.store.epoch).Seconds():
			w.t.Fatalf("idle = %v since before the Store began", v.Value)
		}
	}
}

// TestConstantRateIsExactForRandomPhases is the promise behind interpolating at both edges of the window.
func TestConstantRateIsExactForRandomPhases(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		fn := direct
		fn.Window = time.Duration(5+rnd.IntN(55)) * time.Second
		inWorld(t, fn, func(w *world) {
			w.acts = []*process{activator(1, time.Duration(rnd.IntN(20))*50*time.Millisecond).old()}
			sum := 0.0
			for i := range 1 + rnd.IntN(5) {
				p := pod(i, time.Duration(rnd.IntN(40))*50*time.Millisecond).old()
				p.rate = 200 + rnd.Float64()*1000
				sum += p.rate
				w.pods = append(w.pods, p)
			}
			w.list()
			w.run(fn.Window + 10*time.Second)
			for range 20 {
				w.run(time.Duration(rnd.IntN(60)) * 50 * time.Millisecond)
				if v := w.want(v1alpha1.RequestsPerSecond, sum); v.Window != fn.Window {
					t.Fatalf("window = %s, want %s", v.Window, fn.Window)
				}
			}
		})
	}
}

func TestSeriesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s series
		const limit = 39
		for i := range 100_000 {
			s.add(point{at: tick(i), v: sums{float64(i)}}, limit)
		}
		if s.n != limit || len(s.ring) != limit || !s.trunc {
			t.Errorf("%d points in a ring of %d, want %d", s.n, len(s.ring), limit)
		}
		if got := s.increase(started, 99_970, 99_990); got != 20 {
			t.Errorf("increase = %v, want 20", got)
		}
		var level series
		for i := range 100_000 {
			level.add(point{at: tick(i), v: sums{7}}, limit)
		}
		level.add(point{at: 100_000, v: sums{8}}, limit)
		if level.n != 3 || level.trunc {
			t.Errorf("a level stretch and a step take %d points, want 3", level.n)
		}
		if got := level.increase(started, 0, 99_999); got != 0 {
			t.Errorf("increase before the step = %v", got)
		}
	})
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	store := NewStore(Intervals{})
	acts := []Endpoint{
		{Target: Target{Kind: Activator, Address: "a:1"}, Ready: true, Expected: true},
		{Target: Target{Kind: Activator, Address: "b:1"}, Ready: true, Expected: true},
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 300 {
				switch i {
				case 0:
					store.SetActivators(acts[:1+n%2])
					store.SetFunction(proxied, nil)
				case 1:
					for _, a := range acts {
						_ = store.Record(a.Target, time.Now(), &Measurement{Functions: map[types.NamespacedName]Reading{
							hello: {Started: float64(n)},
						}}, nil)
					}
				case 2:
					store.DeleteFunction(hello)
					store.Stats()
				default:
					for _, info := range store.List("default") {
						_, _ = store.Value(info.Name, v1alpha1.RequestsPerSecond)
						_, _ = store.Info(info.Name)
					}
				}
			}
		})
	}
	wg.Wait()
	store.SetFunction(proxied, nil)
	if infos := store.List("default"); len(infos) != 1 || infos[0].Name != hello {
		t.Errorf("List = %v, want hello", infos)
	}
}

// benchmarkStore holds 10,000 functions, of which each activator has counted 31 s.
func benchmarkStore(b *testing.B) *Store {
	b.Helper()
	store := NewStore(Intervals{})
	store.epoch = store.epoch.Add(-time.Minute)
	acts := make([]Endpoint, 3)
	for i := range acts {
		acts[i] = Endpoint{Target: Target{Kind: Activator, Address: fmt.Sprintf("10.0.0.%d:9090", i)}, Ready: true, Expected: true}
	}
	store.SetActivators(acts)
	m := &Measurement{Functions: map[types.NamespacedName]Reading{}}
	for i := range 10_000 {
		fn := proxied
		fn.Name.Name = fmt.Sprintf("function-%05d", i)
		fn.Rule.Proxied = true
		store.SetFunction(fn, nil)
		store.functions[fn.Name].since = 0
		m.Functions[fn.Name] = Reading{}
	}
	now := time.Now()
	for s := range 31 {
		for name, r := range m.Functions {
			r.Started += 10
			r.BusySeconds += 0.5
			m.Functions[name] = r
		}
		for i := range acts {
			_ = store.Record(acts[i].Target, now.Add(time.Duration(s-31)*time.Second+time.Duration(i)*100*time.Millisecond), m, nil)
		}
	}
	return store
}

func BenchmarkValue10kFunctions(b *testing.B) {
	store := benchmarkStore(b)
	name := types.NamespacedName{Namespace: "default", Name: "function-05000"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := store.Value(name, v1alpha1.RequestsPerSecond); err != nil && b.Elapsed() < 2*time.Second {
			b.Fatal(err)
		}
	}
}

func BenchmarkList10kFunctions(b *testing.B) {
	store := benchmarkStore(b)
	b.ReportAllocs()
	for b.Loop() {
		for _, info := range store.List("default") {
			_, _ = store.Value(info.Name, v1alpha1.RequestsPerSecond)
		}
	}
}

func BenchmarkRecord10kFunctions(b *testing.B) {
	store := benchmarkStore(b)
	m := &Measurement{Functions: map[types.NamespacedName]Reading{}}
	for name := range store.functions {
		m.Functions[name] = Reading{Started: 1e6}
	}
	target := store.activators.Load().live[0].Target
	at := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		at = at.Add(time.Second)
		_ = store.Record(target, at, m, nil)
	}
}
