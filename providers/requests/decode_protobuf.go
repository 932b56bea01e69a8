package requests

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// nameField is MetricFamily.name.
	nameField protowire.Number = 1
	// maxNameAhead bounds the names that are recognized without reading the family.
	maxNameAhead = 512
)

var messagesPool = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, chunk) }}

// decodeProtobuf reads length-delimited MetricFamily messages. Those that are not wanted are not unmarshalled.
func decodeProtobuf(body io.Reader, into figures) error {
	r := messagesPool.Get().(*bufio.Reader)
	defer messagesPool.Put(r)
	r.Reset(body)
	defer r.Reset(nil)
	var message bytes.Buffer
	for {
		head, err := r.Peek(binary.MaxVarintLen64)
		if len(head) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		size, n := protowire.ConsumeVarint(head)
		switch {
		case n < 0 && err != nil && err != io.EOF:
			return err
		case n < 0:
			return invalid(fmt.Errorf("length of a family: %w", protowire.ParseError(n)))
		case size > activatorLimit:
			return invalid(errTooLarge)
		}
		_, _ = r.Discard(n) // they are buffered
		if wanted, err := familyAhead(r, int(size), into); err != nil {
			return err
		} else if !wanted {
			continue
		}
		message.Reset()
		// What is allocated grows with what is sent, not with what was announced.
		if _, err := io.CopyN(&message, r, int64(size)); err != nil {
			return truncated(err)
		}
		if err := takeFamily(message.Bytes(), into); err != nil {
			return err
		}
	}
}

// familyAhead passes over the family of this size that r stands before, unless it may be wanted. Writers put the name
// first.
func familyAhead(r *bufio.Reader, size int, into figures) (wanted bool, err error) {
	ahead, err := r.Peek(min(size, maxNameAhead))
	if err != nil && err != io.EOF {
		return false, err
	}
	number, wire, n := protowire.ConsumeTag(ahead)
	if n < 0 || number != nameField || wire != protowire.BytesType {
		return true, nil
	}
	name, m := protowire.ConsumeBytes(ahead[n:])
	if m < 0 {
		return true, nil
	}
	for _, w := range into.names() {
		if isFamilyOf(name, w) {
			return true, nil
		}
	}
	if _, err := r.Discard(size); err != nil {
		return false, truncated(err)
	}
	return false, nil
}

// truncated makes an invalid answer of an end inside a family.
func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return invalid(fmt.Errorf("%w inside a family", errTruncated))
	}
	return err
}

// familyName finds the name in a MetricFamily. Of a field that comes twice the last one counts.
func familyName(message []byte) (name []byte, err error) {
	for len(message) > 0 {
		number, wire, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, invalid(protowire.ParseError(n))
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, wire, message); n < 0 {
			return nil, invalid(protowire.ParseError(n))
		}
		if number == nameField && wire == protowire.BytesType {
			name, _ = protowire.ConsumeBytes(message)
		}
		message = message[n:]
	}
	return name, nil
}

func takeFamily(message []byte, into figures) error {
	name, err := familyName(message)
	if err != nil {
		return err
	}
	wanted := false
	for i, n := range into.names() {
		if isFamilyOf(name, n) {
			into.mention(i)
			wanted = true
		}
	}
	if !wanted {
		return nil
	}
	var family dto.MetricFamily
	if err := proto.Unmarshal(message, &family); err != nil {
		return invalid(err)
	}
	for i, n := range into.names() {
		if !isFamilyOf(name, n) {
			continue
		}
		suffix := n[len(name):]
		for _, m := range family.GetMetric() {
			value, ok := familyValue(family.GetType(), m, suffix)
			if !ok {
				continue
			}
			labels := make([]label, 0, len(m.GetLabel()))
			for _, pair := range m.GetLabel() {
				labels = append(labels, label{[]byte(pair.GetName()), []byte(pair.GetValue())})
			}
			if err := into.take(i, labels, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// familyValue is the value of the sample that the text formats write with the suffix after the family's name. Native
// histograms have a sum and a count as the others do.
func familyValue(kind dto.MetricType, m *dto.Metric, suffix string) (float64, bool) {
	switch {
	case kind == dto.MetricType_COUNTER && (suffix == "" || suffix == "_total"):
		return m.GetCounter().GetValue(), m.GetCounter() != nil
	case kind == dto.MetricType_GAUGE && suffix == "":
		return m.GetGauge().GetValue(), m.GetGauge() != nil
	case kind == dto.MetricType_UNTYPED && suffix == "":
		return m.GetUntyped().GetValue(), m.GetUntyped() != nil
	case kind == dto.MetricType_SUMMARY && suffix == "_sum":
		return m.GetSummary().GetSampleSum(), m.GetSummary() != nil
	case kind == dto.MetricType_SUMMARY && suffix == "_count":
		return float64(m.GetSummary().GetSampleCount()), m.GetSummary() != nil
	case kind == dto.MetricType_HISTOGRAM && suffix == "_sum":
		return m.GetHistogram().GetSampleSum(), m.GetHistogram() != nil
	case kind == dto.MetricType_HISTOGRAM && suffix == "_count":
		if h := m.GetHistogram(); h.GetSampleCountFloat() > 0 {
			return h.GetSampleCountFloat(), true
		}
		return float64(m.GetHistogram().GetSampleCount()), m.GetHistogram() != nil
	}
	return 0, false
}
