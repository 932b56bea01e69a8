package requests

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/providers"
)

// format is how an exposition is written.
type format int

const (
	text format = iota
	openMetrics
	protobuf
)

// startTime is the gauge by which processes say when they began, in Unix seconds.
const startTime = "process_start_time_seconds"

var (
	errTooLarge  = errors.New("answer is too large")
	errLongLine  = errors.New("a line is too long")
	errTruncated = errors.New("the answer is cut off")
	errValue     = errors.New("neither a count nor an amount")
)

// invalid is an error of an answer that cannot be used.
func invalid(err error) error { return fmt.Errorf("%w: %w", providers.ErrInvalid, err) }

// label is one label of a sample. Its bytes are those of the answer, good until the next sample.
type label struct{ name, value []byte }

// figures is what is read from an exposition: samples of a few names among many. One decode calls its methods.
type figures interface {
	// names of the samples that are wanted, as the text formats write them, each once.
	names() []string
	// mention tells that the exposition speaks of the family of the i-th name, with samples or without.
	mention(i int)
	// take takes a sample of the i-th name. Its error ends the decoding.
	take(i int, labels []label, value float64) error
}

// decode reads an exposition to its end and hands on what into wants of it. An answer that breaks off is an error,
// because what is missing from it is not zero. What is not wanted is passed over unread: an application may expose a
// lot, of which one line is wanted. Errors other than those of reading wrap providers.ErrInvalid.
func decode(body io.Reader, f format, into figures) error {
	if f == protobuf {
		return decodeProtobuf(body, into)
	}
	return decodeText(body, f == openMetrics, into)
}

// contentFormat is the format that the answer's header declares. Whatever else is refused: a function whose runtime
// serves requests on every path answers a scrape too, and its answer is no count.
func contentFormat(header http.Header) (format, error) {
	contentType := header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(contentType)
	switch version := params["version"]; {
	case err != nil:
	case media == "text/plain":
		return text, nil
	case media == "application/openmetrics-text" && (version == "" || version == "0.0.1" || version == "1.0.0"):
		return openMetrics, nil
	case media == "application/vnd.google.protobuf" && params["encoding"] == "delimited" &&
		params["proto"] == "io.prometheus.client.MetricFamily":
		return protobuf, nil
	}
	return 0, fmt.Errorf("%w: content type %q is no exposition of metrics", providers.ErrInvalid, contentType)
}

// limitedReader fails past its limit, where io.LimitedReader would report a proper end.
type limitedReader struct {
	r      io.Reader
	left   int64
	failed bool // r gave an error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	l.failed = l.failed || err != nil && err != io.EOF
	if l.left -= int64(n); l.left < 0 {
		return 0, invalid(errTooLarge)
	}
	return n, err
}

var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// uncompressed calls read with the body as it was before its content coding. What it reads ends at limit, so that an
// answer which is a thousand times as large as it looks ends there too.
func uncompressed(body io.Reader, coding string, limit int64, read func(io.Reader) error) error {
	switch coding {
	case "", "identity":
		return read(&limitedReader{r: body, left: limit})
	case "gzip":
	default:
		return fmt.Errorf("%w: content encoding %q was not asked for", providers.ErrInvalid, coding)
	}
	z := gzipReaders.Get().(*gzip.Reader)
	defer gzipReaders.Put(z)
	packed := &limitedReader{r: body, left: limit} // limited too: gzip members may be empty, and go on for ever
	err := z.Reset(packed)
	if err == nil {
		err = read(&limitedReader{r: z, left: limit})
	}
	if err == nil || packed.failed || errors.Is(err, providers.ErrInvalid) {
		return err
	}
	return invalid(fmt.Errorf("uncompress: %w", err))
}

// checkValue refuses what is neither a count nor an amount.
func checkValue(name string, v float64) error {
	if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return fmt.Errorf("%w: %s is %v: %w", providers.ErrInvalid, name, v, errValue)
	}
	return nil
}

// began is the time that a process states as its start: seconds since 1970, 0 if it does not say.
type began struct {
	seconds float64
	stated  bool
}

func (b *began) take(v float64) error {
	if err := checkValue(startTime, v); err != nil {
		return err
	}
	if b.stated || v > math.MaxInt32*1000 {
		return fmt.Errorf("%w: %s is not one time", providers.ErrInvalid, startTime)
	}
	b.seconds, b.stated = v, true
	return nil
}

func (b *began) time() time.Time {
	if b.seconds == 0 {
		return time.Time{}
	}
	seconds, fraction := math.Modf(b.seconds)
	return time.Unix(int64(seconds), int64(fraction*1e9))
}
