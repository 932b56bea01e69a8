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
	"sync"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// maxFrame bounds one answer: 100,000 partitions are 5 MB.
	maxFrame = 32 << 20
	// maxSmall bounds one that has neither partitions nor groups in it.
	maxSmall = 64 << 10
)

// mostOf bounds the answer to a request, in bytes. Those of leaders come side by side, from as many as a bootstrap server
// has named: they have the room that what is asked of each takes, and a connection's beginning has little.
func mostOf(request protocol.Message) int {
	switch r := request.(type) {
	case *metadataRequest, *findCoordinatorRequest, *offsetFetchRequest:
		return maxFrame
	case *listOffsetsRequest:
		most := maxSmall
		for _, t := range r.Topics {
			most += 2 * (len(t.Topic) + 32*len(t.Partitions)) // of which 26 bytes are used
		}
		return min(most, maxFrame)
	default:
		return maxSmall
	}
}

// errFrame is the error for bytes that are no answer of a Kafka broker.
var errFrame = fmt.Errorf("%w: not an answer of a Kafka broker", providers.ErrInvalid)

// readFrame reads one answer of most bytes at most, with its size in front, and checks that it can be decoded: the decoder allocates whatever
// an array or a tagged field says its length is, and a bootstrap server may be anything that answers.
func readFrame(r io.Reader, most int, like protocol.Message, version int16) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(int32(binary.BigEndian.Uint32(head[:]))) //nolint:gosec // a size is signed on the wire
	if n < 4 || n > most {
		hint := ""
		if head[0] == 0x15 && head[1] == 0x03 { // an alert, of TLS 1.x
			hint = ": it speaks TLS"
		}
		return nil, fmt.Errorf("%w: a frame of %d bytes%s", errFrame, n, hint)
	}
	// Grown as bytes arrive: a size that is a lie costs who tells it as much as us.
	frame := bytes.NewBuffer(make([]byte, 0, min(n, 64<<10)+4))
	frame.Write(head[:])
	if got, err := io.CopyN(frame, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("after %d of %d bytes: %w", got, n, err)
	}
	g := &guard{rest: frame.Bytes()[8:]} // behind the size and the correlation ID
	g.message(formOf(reflect.TypeOf(like).Elem(), version))
	if g.bad != "" {
		return nil, fmt.Errorf("%w: %s", errFrame, g.bad)
	}
	return frame.Bytes(), nil
}

// form is what the bytes of a version of a message are, in their order, as its struct tags have it. The tags are read
// once: an answer has thousands of the same. Never written to after it was made.
type form struct {
	kind reflect.Kind // Struct, String, Slice, Uint8 for bytes, or Int for numbers
	size int64        // of adjoining numbers, in bytes
	// parts are a structure's fields, or the one element of an array.
	parts []*form
	// flexible is true where lengths are compact and structures end in tagged fields.
	flexible bool
}

// forms by formKey. There are as many as messages have versions that are spoken.
var forms sync.Map

type formKey struct {
	of      reflect.Type
	version int16
}

// formOf returns the form of a message.
func formOf(t reflect.Type, version int16) *form {
	key := formKey{t, version}
	if s, ok := forms.Load(key); ok {
		return s.(*form)
	}
	s, _ := forms.LoadOrStore(key, newForm(t, version, flexibleFrom(t) <= version))
	return s.(*form)
}

func newForm(t reflect.Type, version int16, flexible bool) *form {
	s := &form{kind: t.Kind(), flexible: flexible}
	switch {
	case s.kind == reflect.String:
	case s.kind == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		s.kind = reflect.Uint8
	case s.kind == reflect.Slice:
		s.parts = []*form{newForm(t.Elem(), version, flexible)}
	case s.kind == reflect.Struct:
		for f := range t.Fields() {
			if v := parseVersions(f.Tag.Get("kafka")); version < v.from || version > v.to || v.tagged {
				continue
			}
			part := newForm(f.Type, version, flexible)
			if n := len(s.parts); n > 0 && part.kind == reflect.Int && s.parts[n-1].kind == reflect.Int {
				s.parts[n-1].size += part.size
				continue
			}
			s.parts = append(s.parts, part)
		}
	default:
		s.kind, s.size = reflect.Int, int64(t.Size()) //nolint:gosec // of a type
	}
	return s
}

// guard walks a message as the decoder will, and allocates nothing.
type guard struct {
	rest []byte
	bad  string
}

// message walks one, in front of which there are tagged fields where it is flexible.
func (g *guard) message(s *form) {
	if s.flexible {
		g.tags()
	}
	g.value(s)
}

func (g *guard) value(s *form) {
	switch s.kind {
	case reflect.Struct:
		for _, part := range s.parts {
			g.value(part)
		}
		if s.flexible {
			g.tags()
		}
	case reflect.String:
		if s.flexible {
			g.skip(g.compactLength(), "a string")
		} else {
			g.skip(int64(int16(g.number(2))), "a string") //nolint:gosec // signed on the wire
		}
	case reflect.Uint8:
		g.skip(g.length(s.flexible), "bytes")
	case reflect.Slice:
		n := g.length(s.flexible)
		// Every element takes a byte at least, so that the decoder's array is at most as long as what is left.
		if n > int64(len(g.rest)) {
			g.fail("an array of %d in %d bytes", n, len(g.rest))
		}
		for i := int64(0); i < n && g.bad == ""; i++ {
			g.value(s.parts[0])
		}
	default:
		g.skip(s.size, "a number")
	}
}

// length reads that of an array or of bytes.
func (g *guard) length(flexible bool) int64 {
	if flexible {
		return g.compactLength()
	}
	return int64(int32(g.number(4))) //nolint:gosec // signed on the wire
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
