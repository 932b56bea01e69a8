package providers

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// The sizes that Sluice is made for.
const (
	benchFunctions  = 10_000
	benchActivators = 3
	benchPods       = 20_000
)

// fleet is a Store as large as it may get, at the end of a minute in which all was measured.
type fleet struct {
	store      *Store
	activators []Endpoint
	pods       []Endpoint
	readings   map[types.NamespacedName]Reading
	bytes      uint64
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what was pooled
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// newFleet makes functions that activators count, and pods that are the pods of a thousand functions.
func newFleet(functions, pods int, busy bool) *fleet {
	before := heap()
	f := &fleet{store: NewStore(Intervals{Pod: 5 * time.Second}), activators: activators(benchActivators)}
	f.store.epoch = f.store.epoch.Add(-time.Hour)
	f.store.SetActivators(f.activators)
	f.readings = map[types.NamespacedName]Reading{}
	for i := range functions {
		fn := proxied
		fn.Name.Name = fmt.Sprintf("function-%05d", i)
		f.store.SetFunction(fn, nil)
		f.readings[fn.Name] = Reading{}
	}
	owners := min(1000, pods)
	for i := range owners {
		fn := timed
		fn.Name.Name = fmt.Sprintf("by-pods-%05d", i)
		var of []Endpoint
		for j := i; j < pods; j += owners {
			e := pod(j, 0).Endpoint
			e.Function, e.Address = fn.Name, fmt.Sprintf("10.%d.%d.%d:8080", j>>16, j>>8&255, j&255)
			of = append(of, e)
		}
		f.store.SetFunction(fn, of)
		f.pods = append(f.pods, of...)
	}
	for _, fn := range f.store.functions { // as if they had been there for long
		fn.since = 0
	}
	now := time.Now()
	for s := -60; s < 0; s++ {
		at := now.Add(time.Duration(s) * time.Second)
		if busy {
			f.count()
		}
		for i := range f.activators {
			f.record(i, at.Add(time.Duration(i)*100*time.Millisecond))
		}
		if s%5 == 0 {
			for i := range f.pods {
				f.recordPod(i, at, float64(s+60))
			}
		}
	}
	f.bytes = heap() - before
	return f
}

// count lets every function have requests.
func (f *fleet) count() {
	for name, r := range f.readings {
		r.Started += 10
		r.BusySeconds += 0.5
		f.readings[name] = r
	}
}

func (f *fleet) record(i int, at time.Time) {
	_ = f.store.Record(f.activators[i].Target, at, &Measurement{Functions: f.readings}, nil)
}

func (f *fleet) recordPod(i int, at time.Time, n float64) {
	t := f.pods[i].Target
	_ = f.store.Record(t, at, &Measurement{Functions: map[types.NamespacedName]Reading{
		t.Function: {Started: 10 * n, Durations: 10 * n, DurationSeconds: n},
	}}, nil)
}

// fresh records everything as of now, so that no value is stale.
func (f *fleet) fresh() {
	for i := range f.activators {
		f.record(i, time.Now())
	}
	for i := range f.pods {
		f.recordPod(i, time.Now(), 100)
	}
}

func BenchmarkStoreMemory(b *testing.B) {
	for _, bb := range []struct {
		name            string
		functions, pods int
		busy            bool
	}{
		{"10000 functions asleep x 3 activators", benchFunctions, 0, false},
		{"10000 functions busy x 3 activators", benchFunctions, 0, true},
		{"20000 pods busy", 0, benchPods, true},
	} {
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				f := newFleet(bb.functions, bb.pods, bb.busy)
				b.ReportMetric(float64(f.bytes)/1e6, "MB")
				b.ReportMetric(float64(f.bytes)/float64(bb.functions+bb.pods), "B/target")
				runtime.KeepAlive(f)
			}
		})
	}
}

func BenchmarkStoreRecord(b *testing.B) {
	f := newFleet(benchFunctions, benchPods, true)
	at := time.Now()
	b.Run("activator, 10000 functions busy", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			f.count()
			at = at.Add(time.Second)
			b.StartTimer()
			f.record(0, at)
		}
	})
	b.Run("activator, 10000 functions at rest", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			at = at.Add(time.Second)
			f.record(0, at)
		}
	})
	b.Run("activator, unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			at = at.Add(time.Second)
			_ = f.store.Record(f.activators[0].Target, at, &Measurement{Functions: f.readings, Unchanged: true}, nil)
		}
	})
	b.Run("pod", func(b *testing.B) {
		m := &Measurement{Functions: map[types.NamespacedName]Reading{}}
		t := f.pods[0].Target
		n := 0.0
		b.ReportAllocs()
		for b.Loop() {
			at = at.Add(5 * time.Second)
			n += 10
			m.Functions[t.Function] = Reading{Started: n, Durations: n, DurationSeconds: n}
			_ = f.store.Record(t, at, m, nil)
		}
	})
}

func BenchmarkStoreRead(b *testing.B) {
	f := newFleet(benchFunctions, benchPods, true)
	name := types.NamespacedName{Namespace: "default", Name: "function-05000"}
	byPods := types.NamespacedName{Namespace: "default", Name: "by-pods-00500"}
	podName := f.pods[benchPods/2].Pod.Name
	for _, bb := range []struct {
		name string
		read func() error
	}{
		{"Value, 3 activators", func() error {
			_, err := f.store.Value(name, v1alpha1.RequestsPerSecond)
			return err
		}},
		{"Value, 20 pods and 3 activators", func() error {
			_, err := f.store.Value(byPods, v1alpha1.RequestsInFlight)
			return err
		}},
		{"PodValue", func() error {
			_, err := f.store.PodValue("default", podName, v1alpha1.RequestsPerSecond)
			return err
		}},
		{"Info", func() error {
			_, err := f.store.Info(name)
			return err
		}},
		{"List of 11000", func() error {
			if n := len(f.store.List("")); n != benchFunctions+1000 {
				return fmt.Errorf("%d functions", n)
			}
			return nil
		}},
		{"List of 11000 with a value of each", func() error {
			for _, info := range f.store.List("default") {
				if _, err := f.store.Value(info.Name, v1alpha1.RequestsPerSecond); err != nil {
					return err
				}
			}
			return nil
		}},
		{"Pods, 20000", func() error {
			if n := len(f.store.Pods("default")); n != benchPods {
				return fmt.Errorf("%d pods", n)
			}
			return nil
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			f.fresh()
			last := time.Now()
			for b.Loop() {
				if time.Since(last) > 3*time.Second { // lest it be stale
					b.StopTimer()
					f.fresh()
					last = time.Now()
					b.StartTimer()
				}
				if err := bb.read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStoreReadWhileRecording reports how long reads take while activators with 10,000 busy functions are recorded
// without a pause, and functions change.
func BenchmarkStoreReadWhileRecording(b *testing.B) {
	f := newFleet(benchFunctions, benchPods, true)
	f.fresh()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			f.count()
			for i := range f.activators {
				f.record(i, time.Now())
			}
			fn := proxied
			fn.Name.Name = "function-05000"
			f.store.SetFunction(fn, nil)
		}
	})
	names := f.store.List("default")
	took := make([]time.Duration, 0, 1<<20)
	i := 0
	for b.Loop() {
		i++
		begin := time.Now()
		_, _ = f.store.Value(names[i%benchFunctions].Name, v1alpha1.RequestsPerSecond)
		took = append(took, time.Since(begin))
	}
	stop.Store(true)
	wg.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*999/1000].Nanoseconds()), "p99.9-ns")
	b.ReportMetric(float64(took[len(took)-1].Nanoseconds()), "max-ns")
}

// BenchmarkCollector measures 20,000 pods each 5 s by a source that answers at once: what the loops and the Store cost
// beside the asking.
func BenchmarkCollector(b *testing.B) {
	f := newFleet(0, benchPods, false)
	before := heap()
	var asked atomic.Int64
	c, err := NewCollector(Options{
		Store: f.store,
		Sources: map[Kind]Source{Pod: measureFunc(func(_ context.Context, t Target) (*Measurement, error) {
			n := float64(asked.Add(1))
			return &Measurement{Functions: map[types.NamespacedName]Reading{t.Function: {Started: n}}}, nil
		})},
		Discovery: discoveryFunc(func(ctx context.Context, sink Sink) error {
			of := map[types.NamespacedName][]Endpoint{}
			for _, e := range f.pods {
				of[e.Function] = append(of[e.Function], e)
			}
			for name, pods := range of {
				fn := timed
				fn.Name = name
				sink.SetFunction(fn, pods)
			}
			sink.Synced()
			<-ctx.Done()
			return nil
		}),
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		for asked.Load() < benchPods { // the first round
			<-time.After(10 * time.Millisecond)
		}
		b.ReportMetric(float64(heap()-before)/benchPods, "heap-B/target")
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.StackInuse)/benchPods, "stack-B/target")
		from, cpu, start := asked.Load(), cpuTime(), time.Now()
		<-time.After(10 * time.Second)
		b.ReportMetric(float64(cpuTime()-cpu)/float64(time.Since(start))*100, "%-of-a-core")
		b.ReportMetric(float64(asked.Load()-from)/time.Since(start).Seconds(), "targets/s")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

type measureFunc func(ctx context.Context, t Target) (*Measurement, error)

func (f measureFunc) Measure(ctx context.Context, t Target) (*Measurement, error) { return f(ctx, t) }

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
