package activator

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// functionFigures exposes the counts of all functions. Each function's numbers are of one moment, so held never
// exceeds in flight; a function without a request so far has no series.
//
// It makes the families itself and is no prometheus.Collector: a registry checks each of 50,000 series at each scrape
// for what cannot be wrong here, which takes ten times as long as all the rest.
type functionFigures struct {
	table *table // nil before the activator has one
	seed  maphash.Seed
	nonce string // of this process: what another one counted is not comparable
}

func newFunctionFigures() functionFigures {
	return functionFigures{seed: maphash.MakeSeed(), nonce: rand.Text()}
}

// functionCounts are the counts of one function, which has had requests.
type functionCounts struct {
	name types.NamespacedName
	counts
}

// each calls visit with the counts of each function that has had requests, in no order.
func (f *functionFigures) each(visit func(functionCounts)) {
	if f.table == nil {
		return
	}
	for _, fn := range f.table.all() {
		if c := (functionCounts{fn.key, fn.stats.snapshot()}); c.started > 0 {
			visit(c)
		}
	}
}

// tag is an entity tag of all counts as of now: two are equal only if no count has changed. That includes the integrals
// over time, so that while anything is in flight no two tags are equal.
func (f *functionFigures) tag() string {
	functions, sum := 0, uint64(0) // the sum of hashes, because the order is not always the same
	f.each(func(c functionCounts) {
		functions++
		sum += maphash.Comparable(f.seed, c)
	})
	return fmt.Sprintf(`W/"%s-%d-%x"`, f.nonce, functions, sum)
}

// figureFamilies are the families that functions have one series each of.
var figureFamilies = []struct {
	name, help string
	kind       dto.MetricType
	value      func(*counts) float64
}{
	{v1alpha1.ActivatorStarted, "Requests by their first byte in.", dto.MetricType_COUNTER, func(c *counts) float64 { return float64(c.started) }},
	{
		v1alpha1.ActivatorInFlight, "Requests between first byte in and last byte out, held ones included.",
		dto.MetricType_GAUGE, func(c *counts) float64 { return float64(c.inFlight) },
	},
	{v1alpha1.ActivatorHeld, "Requests that wait for a pod.", dto.MetricType_GAUGE, func(c *counts) float64 { return float64(c.held) }},
	{v1alpha1.ActivatorBusySeconds, "Time integral of the requests in flight.", dto.MetricType_COUNTER, func(c *counts) float64 { return c.busy.seconds() }},
	{v1alpha1.ActivatorHeldSeconds, "Time integral of the requests held.", dto.MetricType_COUNTER, func(c *counts) float64 { return c.waited.seconds() }},
}

// families are in the order of functions.
func (f *functionFigures) families() []*dto.MetricFamily {
	var all []functionCounts
	f.each(func(c functionCounts) { all = append(all, c) })
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b functionCounts) int {
		return cmp.Or(cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name))
	})
	labels := make([][]*dto.LabelPair, len(all)) // the families share them
	for i := range all {
		labels[i] = []*dto.LabelPair{
			{Name: new(v1alpha1.LabelFunction), Value: &all[i].name.Name},
			{Name: new(v1alpha1.LabelNamespace), Value: &all[i].name.Namespace},
		}
	}
	families := make([]*dto.MetricFamily, 0, len(figureFamilies)+1)
	for _, of := range figureFamilies {
		family := &dto.MetricFamily{Name: &of.name, Help: &of.help, Type: &of.kind, Metric: make([]*dto.Metric, len(all))}
		for i := range all {
			family.Metric[i] = metric(of.kind, labels[i], of.value(&all[i].counts))
		}
		families = append(families, family)
	}
	finished := &dto.MetricFamily{
		Name: new(v1alpha1.ActivatorFinished), Help: new("Requests by their last byte out."), Type: dto.MetricType_COUNTER.Enum(),
	}
	for i := range all {
		for o, count := range all[i].finished {
			if count > 0 {
				with := append(slices.Clone(labels[i]), &dto.LabelPair{Name: new(v1alpha1.LabelOutcome), Value: &outcomeNames[o]})
				finished.Metric = append(finished.Metric, metric(dto.MetricType_COUNTER, with, float64(count)))
			}
		}
	}
	if len(finished.Metric) > 0 {
		families = append(families, finished)
	}
	return families
}

func metric(kind dto.MetricType, labels []*dto.LabelPair, value float64) *dto.Metric {
	if kind == dto.MetricType_GAUGE {
		return &dto.Metric{Label: labels, Gauge: &dto.Gauge{Value: &value}}
	}
	return &dto.Metric{Label: labels, Counter: &dto.Counter{Value: &value}}
}
