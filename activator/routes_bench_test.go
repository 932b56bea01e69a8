package activator

import (
	"fmt"
	"math"
	"runtime"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// routed is a function with a host, a gate port and podsOfEach ready pods, as setFunction and setSlice take it in.
func routed(i int) (*v1alpha1.Function, *discoveryv1.EndpointSlice) {
	name := fmt.Sprintf("function-%05d", i)
	obj := newTestFunction(name, hosts(name+".example.com"), gatePort(int32(20000+i)))
	slice := newSlice(name, 0, "10.0.0.1:8080", true)
	slice.Endpoints = nil
	for p := range podsOfEach {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", i>>8&255, i&255, p+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	return obj, slice
}

const podsOfEach = 3

func newRoutedTable(functions int) (*table, []*discoveryv1.EndpointSlice) {
	t := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
	var slices []*discoveryv1.EndpointSlice
	for i := range functions {
		obj, slice := routed(i)
		t.setFunction(obj)
		t.setSlice(slice)
		slices = append(slices, slice)
	}
	return t, slices
}

// flap is slice with its last pod ready, or not.
func flap(slice *discoveryv1.EndpointSlice, ready bool) *discoveryv1.EndpointSlice {
	s := slice.DeepCopy()
	s.Endpoints[podsOfEach-1].Conditions.Ready = &ready
	return s
}

// TestASliceCostsItsFunctionOnly: what an EndpointSlice's event allocates does not depend on how many functions there are.
func TestASliceCostsItsFunctionOnly(t *testing.T) {
	cost := func(functions int) float64 {
		table, slices := newRoutedTable(functions)
		on, off := flap(slices[0], true), flap(slices[0], false)
		return testing.AllocsPerRun(100, func() {
			table.setSlice(off)
			table.setSlice(on)
		})
	}
	few, many := cost(2), cost(2000)
	if math.Abs(few-many) > 1 {
		t.Errorf("an event of a slice costs %v allocations among 2 functions and %v among 2,000", few, many)
	}
}

// BenchmarkTable is the routing table among 10 and among 10,000 functions of three pods each: what an event of a slice, a
// change of a Function and a look at a host cost, and how much memory the table has for each function, the watch's own
// objects aside.
func BenchmarkTable(b *testing.B) {
	for _, functions := range []int{10, 10_000} {
		var before, after runtime.MemStats
		objs, slices := make([]*v1alpha1.Function, functions), make([]*discoveryv1.EndpointSlice, functions)
		for i := range functions {
			objs[i], slices[i] = routed(i)
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		table := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
		for i := range functions {
			table.setFunction(objs[i])
			table.setSlice(slices[i])
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		each := float64(after.HeapAlloc-before.HeapAlloc) / float64(functions)
		name := func(what string) string { return fmt.Sprintf("%s/functions=%d", what, functions) }
		b.Run(name("slice"), func(b *testing.B) {
			b.ReportAllocs()
			on, off := flap(slices[0], true), flap(slices[0], false)
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					table.setSlice(off)
				} else {
					table.setSlice(on)
				}
			}
			b.ReportMetric(each, "B/function")
		})
		b.Run(name("function"), func(b *testing.B) {
			b.ReportAllocs()
			other := objs[0].DeepCopy()
			other.Generation++
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					table.setFunction(other)
				} else {
					table.setFunction(objs[0])
				}
			}
		})
		b.Run(name("host"), func(b *testing.B) {
			b.ReportAllocs()
			host := objs[0].Status.Gate.Hosts[0]
			for b.Loop() {
				if table.ownerOf(host) == nil {
					b.Fatal("no owner")
				}
			}
		})
		runtime.KeepAlive(table)
	}
}
