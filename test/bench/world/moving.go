package world

import (
	"bytes"
	"strconv"
)

// Moving is an exposition in which some numbers move: all of them by the same steps, so that what they come to is known.
// It is cheap to write again, because the moving numbers have always as many digits.
type Moving struct {
	text   []byte
	places []int // of the moving numbers
}

// digits of a moving number.
const digits = 6

// MovingMin is the lowest moving number; the highest is ten times as much, less one.
const MovingMin = 100_000

// NewMoving makes the values move of the lines of text that moves picks.
func NewMoving(text []byte, moves func(line []byte) bool) *Moving {
	var m Moving
	for line := range bytes.Lines(text) {
		if space := bytes.LastIndexByte(line, ' '); moves(line) && space > 0 {
			m.text = append(m.text, line[:space+1]...)
			m.places = append(m.places, len(m.text))
			m.text = append(append(m.text, make([]byte, digits)...), '\n')
		} else {
			m.text = append(m.text, line...)
		}
	}
	return &m
}

// Len is the length of the exposition.
func (m *Moving) Len() int { return len(m.text) }

// Append writes the exposition with n, counted from MovingMin, as the moving numbers.
func (m *Moving) Append(to []byte, n int) []byte {
	var number [digits]byte
	strconv.AppendInt(number[:0], int64(MovingMin+n%(9*MovingMin)), 10)
	begin := len(to)
	to = append(to, m.text...)
	for _, place := range m.places {
		copy(to[begin+place:], number[:])
	}
	return to
}
