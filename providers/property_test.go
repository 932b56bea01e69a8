package providers

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var allMetricNames = []string{
	v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds, "depth",
}

// TestValuesAreSaneWhateverHappens lets processes come, go, restart, fail and lie at random. No value may ever be
// negative or not finite, from the future or older than the limit, or a rate above what all processes together can do.
func TestValuesAreSaneWhateverHappens(t *testing.T) {
	for seed := range uint64(90) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			inWorld(t, []Function{proxied, direct, timed}[seed%3], func(w *world) {
				const most = 100.0 // of one process
				count := 0
				spawn := func(make func(int, time.Duration) *process) *process {
					count++
					p := make(count, time.Duration(rnd.IntN(20))*50*time.Millisecond)
					p.New, p.silent = count > 2, rnd.IntN(2) == 0
					if !p.New {
						p.old()
					}
					p.rate, p.busy, p.lasts = rnd.Float64()*most, rnd.Float64()*3, rnd.Float64()*2
					return p
				}
				w.acts = []*process{spawn(activator), spawn(activator)}
				w.asks = []Endpoint{ask("depth", "a")}
				w.list()
				everyone := 2.0
				for range 150 {
					switch ps := &w.acts; rnd.IntN(12) {
					case 8:
						for _, p := range w.pods {
							p.noCount, p.noGauge = rnd.IntN(2) == 0, rnd.IntN(2) == 0
						}
					case 9:
						_ = w.answer(w.asks[0], []float64{math.NaN(), math.Inf(1), -1, 0, 3}[rnd.IntN(5)], nil)
					case 10:
						for _, p := range append(w.acts, w.pods...) { // its machine's clock is set
							p.clocked = time.Duration(rnd.IntN(7200)-3600) * time.Second
							break
						}
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
							hello: {Started: []float64{math.NaN(), math.Inf(1), -1, math.MaxFloat64}[rnd.IntN(4)]},
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
	check := func(of, metric string, v Value, oldest time.Duration) {
		w.t.Helper()
		age := time.Since(v.At)
		switch {
		case math.IsNaN(v.Value) || math.IsInf(v.Value, 0) || v.Value < 0:
			w.t.Fatalf("%s%s = %v", of, metric, v.Value)
		case age < 0 || age > oldest:
			w.t.Fatalf("%s%s is %s old", of, metric, age)
		case v.Window < 0 || v.Window > 30*time.Second:
			w.t.Fatalf("%s%s has window %s", of, metric, v.Window)
		case metric == v1alpha1.RequestsPerSecond && v.Value > mostRate+1/v.Window.Seconds()*10:
			w.t.Fatalf("%srate = %v over %s, more than %v that all together can do", of, v.Value, v.Window, mostRate)
		case metric == v1alpha1.RequestDurationSeconds && v.Value > 2.001:
			w.t.Fatalf("%smean duration = %v, no request took as long", of, v.Value)
		case metric == v1alpha1.IdleSeconds && v.Value > time.Since(w.store.epoch).Seconds():
			w.t.Fatalf("%sidle = %v since before the Store began", of, v.Value)
		}
	}
	for _, metric := range allMetricNames {
		oldest := 6 * time.Second
		if metric == "depth" {
			oldest = 30 * time.Second
		}
		if v, err := w.store.Value(hello, metric); err == nil {
			check("", metric, v, oldest)
		}
		for _, p := range w.pods {
			if v, err := w.store.PodValue("default", p.Pod.Name, metric); err == nil {
				check(p.Pod.Name+" ", metric, v, oldest)
			}
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
