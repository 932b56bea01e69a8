package requests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// chunk is what is read of an answer at a time; most lines of most pods fit into one.
	chunk = 32 << 10
	// maxLine bounds one line.
	maxLine = 1 << 20
	// nothingRegistered is the last line of OpenTelemetry's exporter for Node while it has no metric. It lacks its end.
	nothingRegistered = "# no registered metrics"
	// maxLabels is how many labels a sample may have to be read here. The rest is for expfmt.
	maxLabels = 24

	// What is left to expfmt is bounded, because it takes a hundred times as long for a short line, and for a line of
	// many labels the square of their number: one pod could keep a core for minutes, past any deadline.
	oddLimit     = 1 << 20  // bytes of an answer
	oddAtOnce    = 64 << 10 // bytes that are given to it at a time, for each of which it allocates a hundred
	maxOddLabels = 64       // labels of a line, counted by their equals signs
)

// lines reads a text exposition, line by line. A line that is wanted and written in the one way in which client
// libraries write it is read here, without any allocation. Every other way that the format allows is rare, and is left
// to expfmt, the parser of the Prometheus project: it decides what such a line says, or that it says nothing.
type lines struct {
	into        figures
	openMetrics bool
	wanted      []wantedName
	first       [256]bool // the bytes that wanted names begin with
	labels      []label
	odd         bytes.Buffer // lines for expfmt
	parsed      int          // bytes that were given to it before
	ended       bool         // # EOF was read
}

// wantedName is a name that lines of a wanted series begin with.
type wantedName struct {
	name   string
	series int
}

var (
	linesPool  = sync.Pool{New: func() any { return &lines{labels: make([]label, 0, maxLabels)} }}
	chunksPool = sync.Pool{New: func() any { return new([chunk]byte) }}
)

func decodeText(body io.Reader, isOpenMetrics bool, into figures) error {
	l := linesPool.Get().(*lines)
	defer linesPool.Put(l)
	l.reset(isOpenMetrics, into)
	if err := l.readAll(body); err != nil {
		return err
	}
	if isOpenMetrics && !l.ended {
		return invalid(fmt.Errorf("%w: it does not end in # EOF", errTruncated))
	}
	return l.parseOdd()
}

func (l *lines) reset(isOpenMetrics bool, into figures) {
	l.into, l.openMetrics, l.ended = into, isOpenMetrics, false
	l.wanted, l.first = l.wanted[:0], [256]bool{}
	l.odd.Reset()
	l.parsed = 0
	for i, name := range into.names() {
		l.wanted = append(l.wanted, wantedName{name, i})
		l.first[name[0]] = true
		if isOpenMetrics && !strings.HasSuffix(name, "_total") {
			// A counter of this name in the other formats.
			l.wanted = append(l.wanted, wantedName{name + "_total", i})
		}
	}
}

// readAll reads body to its end, line by line. A rest without a line feed is not a line: it may be half of one.
func (l *lines) readAll(body io.Reader) error {
	pooled := chunksPool.Get().(*[chunk]byte)
	defer chunksPool.Put(pooled)
	buf, n := pooled[:], 0 // buf[:n] is read and begins a line
	for {
		if n >= maxLine {
			return invalid(errLongLine)
		}
		if n == len(buf) {
			buf = append(make([]byte, 0, 4*len(buf)), buf...)[:4*len(buf)]
		}
		read, err := body.Read(buf[n:])
		whole := bytes.LastIndexByte(buf[n:n+read], '\n') + 1
		if whole > 0 {
			whole += n
		}
		n += read
		if err := l.feed(buf[:whole]); err != nil {
			return err
		}
		n = copy(buf, buf[whole:n])
		switch {
		case err == io.EOF && n > 0 && l.openMetrics && !l.ended && string(buf[:n]) == "# EOF":
			l.ended = true
			return nil
		case err == io.EOF && string(buf[:n]) == nothingRegistered:
			return nil
		case err == io.EOF && n > 0:
			return invalid(fmt.Errorf("%w inside a line", errTruncated))
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// feed takes whole lines.
func (l *lines) feed(data []byte) error {
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		line := data[:end]
		data = data[end+1:]
		if l.ended {
			return invalid(errors.New("something follows # EOF"))
		}
		for len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			line = line[1:]
		}
		if len(line) == 0 {
			continue
		}
		switch c := line[0]; {
		case l.first[c]:
			if err := l.sample(line); err != nil {
				return err
			}
		case c == '#':
			l.comment(line)
		case c == '{' && l.quotesWanted(line):
			if err := l.leave(line, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// sample takes a line that may be one of a wanted series.
func (l *lines) sample(line []byte) error {
	for _, w := range l.wanted {
		n := len(w.name)
		if len(line) <= n || line[n] != '{' && line[n] != ' ' && line[n] != '\t' || string(line[:n]) != w.name {
			continue
		}
		value, ok := l.canonical(line, n)
		if !ok {
			return l.leave(line, n)
		}
		return l.into.take(w.series, l.labels, value)
	}
	return nil
}

// canonical reads the labels, into l.labels, and the value of a line whose name has the length n. ok is false where
// the line is not simple, which does not make it wrong.
func (l *lines) canonical(line []byte, n int) (value float64, ok bool) {
	l.labels = l.labels[:0]
	rest := line[n:]
	if rest[0] == '{' {
		if rest, ok = l.simpleLabels(rest[1:]); !ok {
			return 0, false
		}
	}
	if len(rest) == 0 || rest[0] != ' ' {
		return 0, false
	}
	rest = rest[1:]
	end := 0
	for end < len(rest) && isNumeric(rest[end]) {
		end++
	}
	// The conversion does not allocate: ParseFloat keeps no string.
	value, err := strconv.ParseFloat(string(rest[:end]), 64)
	return value, err == nil && l.simpleTail(rest[end:])
}

// simpleLabels reads name="value" pairs up to the closing brace, and returns what follows it.
func (l *lines) simpleLabels(rest []byte) (after []byte, ok bool) {
	for len(rest) > 0 && rest[0] != '}' {
		eq := bytes.IndexByte(rest, '=')
		if eq <= 0 || eq+1 >= len(rest) || rest[eq+1] != '"' || len(l.labels) == maxLabels {
			return nil, false
		}
		name := rest[:eq]
		rest = rest[eq+2:]
		quote := 0
		for ; quote < len(rest) && rest[quote] != '"'; quote++ {
			if c := rest[quote]; c == '\\' || c >= 0x80 {
				return nil, false
			}
		}
		if quote == len(rest) || !l.newLabel(name) {
			return nil, false
		}
		l.labels = append(l.labels, label{name, rest[:quote]})
		if rest = rest[quote+1:]; len(rest) > 0 && rest[0] == ',' {
			rest = rest[1:] // also after the last one, as some write it
		} else if len(rest) > 0 && rest[0] != '}' {
			return nil, false
		}
	}
	if len(rest) == 0 {
		return nil, false
	}
	return rest[1:], true
}

// newLabel tells whether name is a simple label name, which the line has not had yet.
func (l *lines) newLabel(name []byte) bool {
	for i, c := range name {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	for _, other := range l.labels {
		if bytes.Equal(other.name, name) {
			return false
		}
	}
	return string(name) != model.MetricNameLabel
}

// simpleTail tells whether what follows a value is nothing, or a timestamp, or in OpenMetrics an exemplar.
func (l *lines) simpleTail(rest []byte) bool {
	if len(rest) == 0 {
		return true
	}
	if rest[0] != ' ' {
		return false
	}
	rest = rest[1:]
	if l.openMetrics {
		end := 0
		for end < len(rest) && isNumeric(rest[end]) {
			end++
		}
		if end == len(rest) {
			return end > 0
		}
		if end > 0 && rest[end] == ' ' {
			end++
		}
		return bytes.HasPrefix(rest[end:], []byte("# {"))
	}
	if len(rest) > 0 && rest[0] == '-' {
		rest = rest[1:]
	}
	for _, c := range rest {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(rest) > 0 && len(rest) < 19
}

func isNumeric(c byte) bool {
	return '0' <= c && c <= '9' || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E'
}

// comment takes note of the TYPE and HELP of wanted families, and of the end of OpenMetrics.
func (l *lines) comment(line []byte) {
	if l.openMetrics && string(line) == "# EOF" {
		l.ended = true
		return
	}
	rest := bytes.TrimLeft(line[1:], " \t")
	if !bytes.HasPrefix(rest, []byte("TYPE")) && !bytes.HasPrefix(rest, []byte("HELP")) {
		return
	}
	name := bytes.TrimLeft(rest[4:], " \t")
	if len(name) == len(rest)-4 {
		return
	}
	if end := bytes.IndexAny(name, " \t"); end >= 0 {
		name = name[:end]
	}
	if len(name) > 1 && name[0] == '"' && name[len(name)-1] == '"' {
		name = name[1 : len(name)-1]
	}
	for _, w := range l.wanted {
		if isFamilyOf(name, w.name) {
			l.into.mention(w.series)
		}
	}
}

// isFamilyOf tells whether samples of the name belong to the family.
func isFamilyOf(family []byte, name string) bool {
	if len(name) < len(family) || name[:len(family)] != string(family) {
		return false
	}
	switch name[len(family):] {
	case "", "_total", "_count", "_sum":
		return true
	}
	return false
}

// quotesWanted tells whether a line that begins with a brace may be one of a wanted series, whose name is then inside
// the braces and in quotes, perhaps with escapes.
func (l *lines) quotesWanted(line []byte) bool {
	if bytes.IndexByte(line, '\\') >= 0 {
		return true
	}
	for _, w := range l.wanted {
		for rest := line; ; {
			i := bytes.Index(rest, []byte(w.name))
			if i < 0 {
				break
			}
			if end := i + len(w.name); i > 0 && rest[i-1] == '"' && end < len(rest) && rest[end] == '"' {
				return true
			}
			rest = rest[i+1:]
		}
	}
	return false
}

// leave keeps a line, whose name has the length n, for expfmt. Of one of OpenMetrics it keeps what the other format
// has too: the name, the labels and the value, which are written alike in both.
func (l *lines) leave(line []byte, n int) error {
	if l.openMetrics {
		line = withoutTail(line, n)
	}
	switch {
	case bytes.Count(line, []byte("=")) > maxOddLabels:
		return invalid(fmt.Errorf("a line has more than %d labels: %.200q", maxOddLabels, line))
	case l.parsed+l.odd.Len()+len(line) > oddLimit:
		return invalid(fmt.Errorf("%w: more than %d KiB of lines that are not as client libraries write them, such as %.200q",
			errTooLarge, oddLimit>>10, line))
	}
	l.odd.Write(line)
	l.odd.WriteByte('\n')
	if l.odd.Len() < oddAtOnce {
		return nil
	}
	return l.parseOdd()
}

// withoutTail cuts off the timestamp and the exemplar.
func withoutTail(line []byte, n int) []byte {
	i := n
	if i < len(line) && line[i] == '{' {
		for quoted := false; i < len(line) && (quoted || line[i] != '}'); i++ {
			switch {
			case line[i] == '"':
				quoted = !quoted
			case line[i] == '\\' && quoted:
				i++
			}
		}
		i++
	}
	for i < len(line) && line[i] == ' ' {
		i++
	}
	for i < len(line) && line[i] != ' ' {
		i++
	}
	return line[:min(i, len(line))]
}

// parseOdd gives the lines that were left so far to expfmt. Without their TYPE they are untyped, and each is a series of
// the name that it has.
func (l *lines) parseOdd() error {
	if l.odd.Len() == 0 {
		return nil
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(l.odd.Bytes()))
	if err != nil {
		return invalid(l.oddError(err))
	}
	for name, family := range families {
		i := slices.IndexFunc(l.wanted, func(w wantedName) bool { return w.name == name })
		if i < 0 {
			continue
		}
		for _, m := range family.GetMetric() {
			l.labels = l.labels[:0]
			for _, pair := range m.GetLabel() {
				l.labels = append(l.labels, label{[]byte(pair.GetName()), []byte(pair.GetValue())})
			}
			if err := l.into.take(l.wanted[i].series, l.labels, m.GetUntyped().GetValue()); err != nil {
				return err
			}
		}
	}
	l.parsed += l.odd.Len()
	l.odd.Reset()
	return nil
}

// oddError quotes the line, whose number is not that of the answer's line.
func (l *lines) oddError(err error) error {
	var wrong expfmt.ParseError
	if !errors.As(err, &wrong) {
		return err
	}
	number := 0
	for line := range bytes.Lines(l.odd.Bytes()) {
		if number++; number == wrong.Line {
			return fmt.Errorf("%s in the line %.200q", wrong.Msg, bytes.TrimSuffix(line, []byte("\n")))
		}
	}
	return err
}
