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
	// Fields of MetricFamily.
	nameField, typeField, metricField protowire.Number = 1, 3, 4
	// maxMetric bounds one metric with its labels, in bytes. Of native histograms with all their buckets and exemplars
	// it is some twenty times as much.
	maxMetric = 256 << 10
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

// fields calls take with each field of a message: its number, its type, and its value as it is written.
func fields(message []byte, take func(number protowire.Number, wire protowire.Type, value []byte) error) error {
	for len(message) > 0 {
		number, wire, n := protowire.ConsumeTag(message)
		if n < 0 {
			return invalid(protowire.ParseError(n))
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, wire, message); n < 0 {
			return invalid(protowire.ParseError(n))
		}
		if err := take(number, wire, message[:n]); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

// familyHead finds the name and the type of a MetricFamily. Of a field that comes twice the last one counts.
func familyHead(message []byte) (name []byte, kind dto.MetricType, err error) {
	err = fields(message, func(number protowire.Number, wire protowire.Type, value []byte) error {
		switch {
		case number == nameField && wire == protowire.BytesType:
			name, _ = protowire.ConsumeBytes(value)
		case number == typeField && wire == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			if _, known := dto.MetricType_name[int32(v)]; known {
				kind = dto.MetricType(v)
			}
		}
		return nil
	})
	return name, kind, err
}

// takeFamily unmarshals one metric after the other: an empty one takes two bytes of the message, and sixty times as much
// in memory.
func takeFamily(message []byte, into figures) error {
	name, kind, err := familyHead(message)
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
	var m dto.Metric
	metrics := 0
	return fields(message, func(number protowire.Number, wire protowire.Type, value []byte) error {
		if number != metricField || wire != protowire.BytesType {
			return nil
		}
		if metrics++; metrics > maxSeries {
			return invalid(fmt.Errorf("%w: it has more than %d metrics of %.200q", errTooLarge, maxSeries, name))
		}
		one, _ := protowire.ConsumeBytes(value)
		if len(one) > maxMetric {
			return invalid(fmt.Errorf("%w: one metric of %.200q has more than %d KiB", errTooLarge, name, maxMetric>>10))
		}
		if err := proto.Unmarshal(one, &m); err != nil {
			return invalid(err)
		}
		return takeMetric(name, kind, &m, into)
	})
}

// takeMetric hands on what is wanted of a metric of the family.
func takeMetric(family []byte, kind dto.MetricType, m *dto.Metric, into figures) error {
	var labels []label
	for i, n := range into.names() {
		if !isFamilyOf(family, n) {
			continue
		}
		value, ok := familyValue(kind, m, n[len(family):])
		if !ok {
			continue
		}
		if labels == nil {
			for _, pair := range m.GetLabel() {
				labels = append(labels, label{[]byte(pair.GetName()), []byte(pair.GetValue())})
			}
		}
		if err := into.take(i, labels, value); err != nil {
			return err
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
