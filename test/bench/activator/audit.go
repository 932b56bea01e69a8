package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// write is an accepted or refused write to the API, as the API server has logged it.
type write struct {
	Stage, Verb, UserAgent   string
	ObjectRef                struct{ Resource, Subresource, Namespace, Name string }
	ResponseStatus           struct{ Code int }
	RequestReceivedTimestamp time.Time // came to the API server
	StageTimestamp           time.Time // answered
}

// wakes tells whether w has set a scale.
func (w write) wakes() bool {
	return w.ObjectRef.Resource == "deployments" && w.ObjectRef.Subresource == "scale" && w.Verb == "patch" && w.ResponseStatus.Code == 200
}

// foreign tells whether somebody else than this program has sent w; where no controllers run, that is the activator.
func (w write) foreign() bool { return !strings.HasPrefix(w.UserAgent, filepath.Base(os.Args[0])+"/") }

// audit reads the API server's log from where it ended when the audit was made.
type audit struct {
	path string
	from int64
}

func newAudit(path string) (*audit, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return &audit{path: path, from: info.Size()}, nil
}

// read returns the writes since the last read.
func (a *audit) read() ([]write, error) {
	file, err := os.Open(a.path)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.Seek(a.from, io.SeekStart); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	var writes []write
	reader := bufio.NewReaderSize(file, 1<<20)
	for {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF { // what is half written is for the next time
			return writes, nil
		}
		if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		a.from += int64(len(line))
		var w write
		if err := json.Unmarshal(line, &w); err != nil {
			return nil, fmt.Errorf("audit log: %.200q: %w", line, err)
		}
		if w.Stage == "ResponseComplete" {
			writes = append(writes, w)
		}
	}
}
