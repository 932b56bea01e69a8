package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"golang.org/x/net/websocket"
)

// maxEvents bounds the events, or messages, of one call.
const maxEvents = 100_000

// webSocket sends back each message, text as text and bytes as bytes, until the client leaves. Any origin may ask.
func (f *function) webSocket(w http.ResponseWriter, r *http.Request) {
	websocket.Server{Handler: func(ws *websocket.Conn) {
		var message frame
		for frames.Receive(ws, &message) == nil && frames.Send(ws, &message) == nil { //nolint:revive // all is in the condition
		}
	}}.ServeHTTP(w, r)
}

// frame is a message with its type.
type frame struct {
	kind byte
	data []byte
}

var frames = websocket.Codec{
	Marshal: func(v any) ([]byte, byte, error) {
		f := v.(*frame)
		return f.data, f.kind, nil
	},
	Unmarshal: func(data []byte, kind byte, v any) error {
		*v.(*frame) = frame{kind, data}
		return nil
	},
}

// events sends ?count server-sent events (3), with ?delay between them, or with ?on=next each when it is let go; the data of
// each is the pod's name.
func (f *function) events(w http.ResponseWriter, r *http.Request) {
	delay, status, err := f.parameters(r)
	count := 3
	if v := r.URL.Query().Get("count"); v != "" && err == nil {
		if count, err = strconv.Atoi(v); err != nil || count < 0 || count > maxEvents {
			err = fmt.Errorf("count %q: give a number between 0 and %d", v, maxEvents)
		}
	}
	if err == nil && !f.ready() {
		err = errors.New("not ready: the start delay is not over")
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{Pod: f.opts.Name, Error: err.Error()})
		return
	}
	pause := func(ctx context.Context) error { return sleep(ctx, delay) }
	if r.URL.Query().Get("on") == "next" {
		pause = f.awaitNext
	}
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	for i := range count {
		if i > 0 && pause(r.Context()) != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", i, f.opts.Name); err != nil {
			return
		}
		if rc.Flush() != nil {
			return
		}
	}
}

// awaitNext waits for letGo.
func (f *function) awaitNext(ctx context.Context) error {
	select {
	case <-f.next:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// letGo answers when a stream of events with ?on=next has taken it for its next one.
func (f *function) letGo(_ http.ResponseWriter, r *http.Request) {
	select {
	case f.next <- struct{}{}:
	case <-r.Context().Done():
	}
}
