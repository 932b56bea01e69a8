package providers

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func ask(metric, expr string) Endpoint {
	return Endpoint{Target: Target{
		Kind: Query, Function: hello, Ask: Ask{Metric: metric, Server: "http://prometheus:9090", Expr: expr},
	}, Expected: true}
}

func (w *world) answer(e Endpoint, v float64, err error) error {
	return w.store.Record(e.Target, time.Now(), &Measurement{Value: v}, err)
}

func TestQuery(t *testing.T) {
	inWorld(t, proxied, func(w *world) {
		depth, other := ask("queue_depth", "a"), ask("other", "b")
		a := activator(1, 0)
		a.rate = 10
		w.acts, w.asks = []*process{a}, []Endpoint{depth, other}
		w.list()
		w.run(20 * time.Second)
		if u := w.wantUnknown("queue_depth", NoData); !strings.Contains(u.Error(), "query queue_depth at http://prometheus:9090") {
			t.Errorf("error %q does not name the query", u.Error())
		}
		w.want(v1alpha1.RequestsPerSecond, 10) // whoever does not ask for the query does not wait for it

		_ = w.answer(depth, 0, errors.New("no such host"))
		if u := w.wantUnknown("queue_depth", SourceError); !strings.Contains(u.Error(), "no such host") {
			t.Errorf("error %q does not say why", u.Error())
		}
		pass(time.Second)
		if err := w.answer(depth, 42, nil); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		w.run(7 * time.Second)
		if v := w.want("queue_depth", 42); !v.At.Equal(at) || v.Window != 0 {
			t.Errorf("value = %+v, want the time of the answer, and no window", v)
		}
		w.wantUnknown("other", NoData)

		// A dead server ages its own metric alone, by the interval of queries.
		_ = w.answer(depth, 0, errors.New("connection reset"))
		w.run(22 * time.Second)
		w.want("queue_depth", 42)
		w.run(2 * time.Second)
		u := w.wantUnknown("queue_depth", Stale)
		if u.Age < 30*time.Second || !strings.Contains(u.Error(), "connection reset") {
			t.Errorf("error %q with age %s, want age and cause", u.Error(), u.Age)
		}
		w.want(v1alpha1.RequestsPerSecond, 10)
		if idle := w.idle(); idle != 0 {
			t.Errorf("idle = %v", idle)
		}
		// Nor does a dead activator age the query.
		_ = w.answer(depth, 7, nil)
		a.down = errors.New("timeout")
		w.run(10 * time.Second)
		w.wantUnknown(v1alpha1.RequestsPerSecond, Stale)
		w.want("queue_depth", 7)
		// Nor does a change of who counts.
		w.fn = direct
		w.list()
		w.want("queue_depth", 7)
		// Another expression is another query.
		w.asks = []Endpoint{ask("queue_depth", "a + 1")}
		w.list()
		w.wantUnknown("queue_depth", NoData)
		w.wantUnknown("other", NoMetric)
	})
}

func TestQueryAnswersThatAreNoValue(t *testing.T) {
	for _, v := range []float64{-1, math.NaN(), math.Inf(1), math.Inf(-1), -math.SmallestNonzeroFloat64} {
		inWorld(t, proxied, func(w *world) {
			w.asks = []Endpoint{ask("queue_depth", "a")}
			w.list()
			pass(time.Second)
			if err := w.answer(w.asks[0], v, nil); !errors.Is(err, ErrInvalid) {
				t.Errorf("Record of %v = %v, want %v", v, err, ErrInvalid)
			}
			if u := w.wantUnknown("queue_depth", SourceError); !errors.Is(&u, ErrInvalid) {
				t.Errorf("%v: %v", v, u.Error())
			}
		})
	}
	inWorld(t, proxied, func(w *world) {
		w.asks = []Endpoint{ask("queue_depth", "a")}
		w.list()
		pass(time.Second)
		_ = w.answer(w.asks[0], math.MaxFloat64, nil)
		w.want("queue_depth", math.MaxFloat64)
		pass(time.Second)
		_ = w.store.Record(w.asks[0].Target, time.Now(), nil, nil)
		w.want("queue_depth", math.MaxFloat64)
	})
}

func TestMetricsOfAFunction(t *testing.T) {
	inWorld(t, timed, func(w *world) {
		w.asks = []Endpoint{ask("queue_depth", "a"), ask("age", "b")}
		w.list()
		info, err := w.store.Info(hello)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			v1alpha1.RequestsPerSecond, v1alpha1.RequestsInFlight, v1alpha1.RequestDurationSeconds, v1alpha1.IdleSeconds,
			"queue_depth", "age",
		}
		if diff := cmp.Diff(want, info.Metrics); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		u := w.wantUnknown("nonsense", NoMetric)
		for _, want := range append(want, `"nonsense"`) {
			if !strings.Contains(u.Error(), want) {
				t.Errorf("error %q does not name %s", u.Error(), want)
			}
		}
		w.asks = nil
		w.list()
		if info, _ := w.store.Info(hello); len(info.Metrics) != 4 {
			t.Errorf("metrics = %v after the queries went: they are shared with other functions", info.Metrics)
		}
		if st := w.store.Stats(); st.Queries != 0 {
			t.Errorf("%d queries", st.Queries)
		}
	})
}
