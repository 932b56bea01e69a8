package requests

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

// podFigures are those of one pod: sums over all labels.
type podFigures struct {
	scrape providers.Names
	// path of the scrape itself: a series of this path counts scrapes, which are no traffic. Or empty.
	path string

	wanted []string
	sums   []podSum // of wanted
	began  began
	seen   []sampleID
	// unmeasured are the sums that are NaN, as that of a summary without observations is, and empty the counts that
	// are 0. Each of the first must have its second.
	unmeasured, empty []sampleID
}

// podSum is what was read of one name.
type podSum struct {
	value              float64
	mentioned, sampled bool
	ofDurations        bool // the name is that of the sum of a distribution
}

// sampleID tells the sample of a name from others, whatever the order of its labels.
type sampleID struct {
	name   int
	labels uint64
}

// labelSeed is that of all hashes of labels. They are compared within one answer only.
var labelSeed = maphash.MakeSeed()

const startIndex = 0

// maxSeries bounds the series of a pod that are added up, and the metrics of a family in protobuf. An answer that is not
// made to be costly is too large before.
const maxSeries = 100_000

func newPodFigures(s providers.Scrape) *podFigures {
	p := &podFigures{scrape: s.Names(), wanted: append(make([]string, 0, 8), startTime)}
	if path, _, _ := strings.Cut(s.Path, "?"); len(path) > 1 { // "/" may be what the function itself serves
		p.path = path
	}
	want := func(s providers.Series) {
		if !slices.Contains(p.wanted, s.Name) { // a histogram's count may be that of requests too
			p.wanted = append(p.wanted, s.Name)
		}
	}
	for _, s := range p.scrape.Requests {
		want(s)
	}
	for _, s := range p.scrape.InFlight {
		want(s)
	}
	for _, d := range p.scrape.Duration {
		want(d.Sum)
		want(d.Count)
	}
	p.sums = make([]podSum, len(p.wanted))
	for _, d := range p.scrape.Duration {
		p.of(d.Sum).ofDurations = true
	}
	return p
}

func (p *podFigures) of(s providers.Series) *podSum { return &p.sums[slices.Index(p.wanted, s.Name)] }

func (p *podFigures) names() []string { return p.wanted }

func (p *podFigures) mention(i int) { p.sums[i].mentioned = true }

func (p *podFigures) take(i int, labels []label, v float64) error {
	if i == startIndex {
		return p.began.take(v)
	}
	id := sampleID{i, hashLabels(labels)}
	if len(p.seen) == maxSeries {
		return invalid(fmt.Errorf("%w: it has more than %d series of %s", errTooLarge, maxSeries, p.wanted[i]))
	}
	p.seen = append(p.seen, id)
	sum := &p.sums[i]
	sum.sampled = true
	switch {
	case p.excepted(labels):
		return nil
	case v == 0:
		p.empty = append(p.empty, id)
	case math.IsNaN(v) && sum.ofDurations:
		p.unmeasured = append(p.unmeasured, id)
		return nil
	}
	if err := checkValue(p.wanted[i], v); err != nil {
		return checkValue(describe(p.wanted[i], labels), v)
	}
	sum.value += v
	return nil
}

// excepted tells whether the series is not of requests to the function.
func (p *podFigures) excepted(labels []label) bool {
	for _, l := range labels {
		if len(l.value) > 1 && l.value[0] == '/' &&
			(string(l.value) == p.path || slices.Contains(p.scrape.ExceptPaths, string(l.value))) {
			return true
		}
		for _, e := range p.scrape.Except {
			if string(l.name) == e.Name && string(l.value) == e.Value {
				return true
			}
		}
	}
	return false
}

// reading is made of all that was taken.
func (p *podFigures) reading() (providers.Reading, error) {
	var r providers.Reading
	if err := p.checkOnce(); err != nil {
		return r, err
	}
	started, counted := p.first(p.scrape.Requests)
	r.Started, r.Absent = started, !counted
	gauge, shown := p.first(p.scrape.InFlight)
	r.InFlight, r.NoGauge = gauge, !shown && len(p.scrape.InFlight) > 0
	for _, d := range p.scrape.Duration {
		sum, count := p.of(d.Sum), p.of(d.Count)
		if !sum.sampled || !count.sampled {
			continue
		}
		if err := p.checkMeasured(d); err != nil {
			return r, err
		}
		r.DurationSeconds, r.Durations = sum.value*d.Sum.Scale, count.value*d.Count.Scale
		break
	}
	for i, sum := range p.sums { // each sample was finite
		if math.IsInf(sum.value, 0) {
			return r, fmt.Errorf("%w: %s is infinite: %w", providers.ErrInvalid, p.wanted[i], errValue)
		}
	}
	return r, nil
}

// first is the first of candidates that has a sample. known is true if one has, or might have: a family without samples
// has counted nothing.
func (p *podFigures) first(candidates []providers.Series) (value float64, known bool) {
	for _, c := range candidates {
		sum := p.of(c)
		if sum.sampled {
			return sum.value * c.Scale, true
		}
		known = known || sum.mentioned
	}
	return 0, known
}

// checkOnce refuses an answer that has a sample twice, for nobody can tell which of them is right.
func (p *podFigures) checkOnce() error {
	slices.SortFunc(p.seen, sampleID.compare)
	for i := 1; i < len(p.seen); i++ {
		if p.seen[i] == p.seen[i-1] {
			return fmt.Errorf("%w: a series of %s is there twice", providers.ErrInvalid, p.wanted[p.seen[i].name])
		}
	}
	return nil
}

// checkMeasured refuses a sum that is NaN although something was observed.
func (p *podFigures) checkMeasured(d providers.Distribution) error {
	sum, count := slices.Index(p.wanted, d.Sum.Name), slices.Index(p.wanted, d.Count.Name)
	slices.SortFunc(p.empty, sampleID.compare)
	for _, id := range p.unmeasured {
		if id.name != sum {
			continue
		}
		if _, found := slices.BinarySearchFunc(p.empty, sampleID{count, id.labels}, sampleID.compare); !found {
			return checkValue(d.Sum.Name, math.NaN())
		}
	}
	return nil
}

func (s sampleID) compare(t sampleID) int {
	return cmp.Or(cmp.Compare(s.name, t.name), cmp.Compare(s.labels, t.labels))
}

func hashLabels(labels []label) uint64 {
	var sum uint64
	for _, l := range labels {
		// A product, so that name and value cannot be exchanged between labels.
		sum += (maphash.Bytes(labelSeed, l.name) | 1) * maphash.Bytes(labelSeed, l.value)
	}
	return sum
}

// describe names a sample for people, in at most some 200 characters.
func describe(name string, labels []label) string {
	if len(labels) == 0 {
		return name
	}
	var s strings.Builder
	s.WriteString(name + "{")
	for i, l := range labels {
		if i > 0 {
			s.WriteByte(',')
		}
		if s.Len() > 200 {
			s.WriteString("...")
			break
		}
		fmt.Fprintf(&s, "%s=%.40q", l.name, l.value)
	}
	s.WriteByte('}')
	return s.String()
}

// decodePod reads a pod's exposition: the sums over all labels of what t names. A counter that is not there yet has
// counted nothing.
func decodePod(body io.Reader, f format, t providers.Target) (*providers.Measurement, error) {
	p := newPodFigures(t.Scrape)
	if err := decode(body, f, p); err != nil {
		return nil, err
	}
	r, err := p.reading()
	if err != nil {
		return nil, err
	}
	return &providers.Measurement{
		Start: p.began.time(), Functions: map[types.NamespacedName]providers.Reading{t.Function: r},
	}, nil
}
