package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/sluice-dev/sluice/providers"
)

// maxFrame bounds one answer: 100,000 partitions are 5 MB.
const maxFrame = 32 << 20

// errFrame is the error for bytes that are no answer of a Kafka broker.
var errFrame = fmt.Errorf("%w: not an answer of a Kafka broker", providers.ErrInvalid)

// readFrame reads one answer, with its size in front, and checks that it can be decoded: the decoder allocates whatever
// an array or a tagged field says its length is, and a bootstrap server may be anything that answers.
func readFrame(r io.Reader, like protocol.Message, version int16) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int32(binary.BigEndian.Uint32(head[:])) //nolint:gosec // a size is signed on the wire
	if n < 4 || n > maxFrame {
		hint := ""
		if head[0] == 0x15 && head[1] == 0x03 { // an alert, of TLS 1.x
			hint = ": it speaks TLS"
		}
		return nil, fmt.Errorf("%w: a frame of %d bytes%s", errFrame, n, hint)
	}
	// Grown as bytes arrive: a size that is a lie costs who tells it as much as us.
	frame := bytes.NewBuffer(make([]byte, 0, min(int(n), 64<<10)+4))
	frame.Write(head[:])
	if got, err := io.CopyN(frame, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("after %d of %d bytes: %w", got, n, err)
	}
	g := &guard{rest: frame.Bytes()[8:], version: version} // behind the size and the correlation ID
	t := reflect.TypeOf(like).Elem()
	g.flexible = flexibleFrom(t) <= version
	if g.flexible {
		g.tags()
	}
	g.structure(t)
	if g.bad != "" {
		return nil, fmt.Errorf("%w: %s", errFrame, g.bad)
	}
	return frame.Bytes(), nil
}

// guard walks a message as the decoder will, by the same struct tags, and allocates nothing.
type guard struct {
	rest     []byte
	version  int16
	flexible bool
	bad      string
}

// structure walks the fields of t.
func (g *guard) structure(t reflect.Type) {
	for f := range t.Fields() {
		if v := parseVersions(f.Tag.Get("kafka")); g.version < v.from || g.version > v.to || v.tagged {
			continue
		}
		g.value(f.Type)
	}
	if g.flexible {
		g.tags()
	}
}

func (g *guard) value(t reflect.Type) {
	switch t.Kind() {
	case reflect.Struct:
		g.structure(t)
	case reflect.String:
		if g.flexible {
			g.skip(g.compactLength(), "a string")
		} else {
			g.skip(int64(int16(g.number(2))), "a string") //nolint:gosec // signed on the wire
		}
	case reflect.Slice:
		n := int64(int32(g.number32())) //nolint:gosec // signed on the wire
		if t.Elem().Kind() == reflect.Uint8 {
			g.skip(n, "bytes")
			return
		}
		// Every element takes a byte at least, so that the decoder's array is at most as long as what is left.
		if n > int64(len(g.rest)) {
			g.fail("an array of %d in %d bytes", n, len(g.rest))
		}
		for i := int64(0); i < n && g.bad == ""; i++ {
			g.value(t.Elem())
		}
	default:
		g.skip(int64(t.Size()), "a number") //nolint:gosec // of a type
	}
}

// number32 reads the length of an array or of bytes.
func (g *guard) number32() uint64 {
	if g.flexible {
		return uint64(g.compactLength()) //nolint:gosec // signed again by the caller
	}
	return g.number(4)
}

// tags walks tagged fields, of which none is read here.
func (g *guard) tags() {
	for n := g.varint(); n > 0 && g.bad == ""; n-- {
		g.varint()
		g.skip(int64(min(g.varint(), maxFrame+1)), "a tagged field") //nolint:gosec // bounded
	}
}

// compactLength reads a length that is 1 more than it says; -1 for null.
func (g *guard) compactLength() int64 { return int64(min(g.varint(), maxFrame+1)) - 1 } //nolint:gosec // bounded

func (g *guard) varint() uint64 {
	v, n := binary.Uvarint(g.rest)
	if n <= 0 {
		g.fail("no length in %d bytes", len(g.rest))
		return 0
	}
	g.rest = g.rest[n:]
	return v
}

func (g *guard) number(size int) uint64 {
	if len(g.rest) < size {
		g.fail("a number of %d bytes in %d", size, len(g.rest))
		return 0
	}
	var b [8]byte
	copy(b[8-size:], g.rest)
	g.rest = g.rest[size:]
	return binary.BigEndian.Uint64(b[:])
}

func (g *guard) skip(n int64, what string) {
	if n <= 0 { // null is -1
		return
	}
	if n > int64(len(g.rest)) {
		g.fail("%s of %d bytes in %d", what, n, len(g.rest))
		return
	}
	g.rest = g.rest[n:]
}

func (g *guard) fail(format string, args ...any) {
	if g.bad == "" {
		g.bad = fmt.Sprintf(format, args...)
	}
	g.rest = nil
}

// versions in which a field is there, by its tag: "min=v1,max=v5,nullable". A field with several ranges is not used here.
type versions struct {
	from, to int16
	tagged   bool
}

func parseVersions(tag string) versions {
	v := versions{from: -1, to: -1}
	for part := range strings.SplitSeq(tag, ",") {
		name, value, _ := strings.Cut(part, "=")
		n, err := strconv.ParseInt(strings.TrimPrefix(value, "v"), 10, 16)
		switch {
		case name == "tag":
			v.tagged = true
		case err != nil:
		case name == "min":
			v.from = int16(n)
		case name == "max":
			v.to = int16(n)
		}
	}
	return v
}

// flexibleFrom is the first version of a message with tagged fields.
func flexibleFrom(t reflect.Type) int16 {
	for f := range t.Fields() {
		if v := parseVersions(f.Tag.Get("kafka")); v.tagged {
			return v.from
		}
	}
	return 1<<15 - 1
}
