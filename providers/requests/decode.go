package requests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-dev/sluice/providers"
)

// sample is one line of an exposition.
type sample struct {
	labels []*dto.LabelPair
	value  float64
}

func (s sample) label(name string) string {
	for _, l := range s.labels {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// samples are the lines of an exposition by the name they begin with. Their values are finite and not negative, and
// so are the sums of one name.
type samples map[string][]sample

// maxLine bounds one line.
const maxLine = 1 << 20

var (
	errTruncated = errors.New("the last line is cut off")
	errValue     = errors.New("neither a count nor an amount")
)

// decode reads the lines of the named series out of a Prometheus text exposition, and passes over everything else: an
// application may expose a lot, of which one line is wanted. The name is that of the line, not of its family, so that
// the _count of a histogram can be named.
//
// The whole body is read: one that breaks off is an error, because what is missing from it is not zero. Errors other
// than those of reading wrap providers.ErrInvalid.
func decode(body io.Reader, names ...string) (samples, error) {
	wanted, err := filter(body, names)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(wanted)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	}
	result := samples{}
	for name, family := range families {
		if !slices.Contains(names, name) {
			continue
		}
		sum := 0.0
		lines := make([]sample, 0, len(family.GetMetric()))
		for _, m := range family.GetMetric() {
			v := m.GetUntyped().GetValue() // there is no TYPE line left
			if math.IsNaN(v) || v < 0 {
				return nil, fmt.Errorf("%w: %s is %v: %w", providers.ErrInvalid, name, v, errValue)
			}
			sum += v
			lines = append(lines, sample{labels: m.GetLabel(), value: v})
		}
		if math.IsInf(sum, 0) {
			return nil, fmt.Errorf("%w: %s is infinite: %w", providers.ErrInvalid, name, errValue)
		}
		result[name] = lines
	}
	return result, nil
}

// filter keeps the lines that begin with one of names, and those that name their series inside the braces.
func filter(body io.Reader, names []string) (*bytes.Buffer, error) {
	var wanted bytes.Buffer
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	lines.Split(wholeLines)
	for lines.Scan() {
		line := bytes.TrimLeft(lines.Bytes(), " \t")
		end := bytes.IndexAny(line, "{ \t\n")
		if end == 0 && line[0] == '{' || end > 0 && slices.Contains(names, string(line[:end])) {
			wanted.Write(line)
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, errTruncated), errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	case err != nil:
		return nil, err
	}
	return &wanted, nil
}

// wholeLines splits into lines with their line feed. Unlike bufio.ScanLines it does not take a rest for a line.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, errTruncated
	}
	return 0, nil, nil
}

// sum over all labels; 0 where there is no such line.
func (s samples) sum(name string) float64 {
	sum := 0.0
	for _, line := range s[name] {
		sum += line.value
	}
	return sum
}

// start is when the process began, zero if it does not say.
func (s samples) start() (time.Time, error) {
	switch lines := s[startTime]; {
	case len(lines) == 0 || lines[0].value == 0:
		return time.Time{}, nil
	case len(lines) > 1 || lines[0].value > math.MaxInt32*1000:
		return time.Time{}, fmt.Errorf("%w: %s is not one time", providers.ErrInvalid, startTime)
	default:
		seconds, fraction := math.Modf(lines[0].value)
		return time.Unix(int64(seconds), int64(fraction*1e9)), nil
	}
}
