package main

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestWrongCommandLines(t *testing.T) {
	for _, line := range []string{
		"", "start", "up now", "load", "image", "image -o x.tar", "image -o x.tar -name x -binary y more", "up -nothing", "down -h",
	} {
		if err := run(t.Context(), strings.Fields(line), io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("cluster %s: %v, want the usage", line, err)
		}
	}
}
