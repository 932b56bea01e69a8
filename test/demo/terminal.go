package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// terminal writes what happens, line by line, so that it reads the same in a terminal, a file and a CI log. Errors of
// writing are left out: there is nowhere to tell them.
type terminal struct {
	w      io.Writer
	colour bool
}

const (
	bold  = "1"
	green = "32"
	red   = "31"
)

const indent = "      "

func (t terminal) paint(style, s string) string {
	if !t.colour {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func (t terminal) title(s string) { fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, s)) }

func (t terminal) heading(i, n int, s stage) {
	fmt.Fprintf(t.w, "\n%s %s\n", t.paint(bold, fmt.Sprintf("[%d/%d] %s:", i, n, s.name)), s.title)
}

// line writes s, indented; the lines of s stay lines.
func (t terminal) line(s string) {
	for l := range strings.Lines(s) {
		fmt.Fprintf(t.w, "%s%s\n", indent, strings.TrimRight(l, "\n"))
	}
}

func (t terminal) linef(format string, args ...any) { t.line(fmt.Sprintf(format, args...)) }

func (t terminal) done(took time.Duration) {
	t.linef("%s after %s", t.paint(green, "observed"), short(took))
}

func (t terminal) failed(took time.Duration) {
	t.linef("%s after %s", t.paint(red, "FAILED"), short(took))
}

// short writes d with as many digits as tell something.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
}
