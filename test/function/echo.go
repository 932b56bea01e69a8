package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// maxEcho bounds the body that /echo sends back.
const maxEcho = 1 << 20

// told is the body of /echo's response: the request as it came.
type told struct {
	Pod     string      `json:"pod"`
	Method  string      `json:"method"`
	Host    string      `json:"host"`
	URI     string      `json:"uri"`
	Header  http.Header `json:"header"`
	Body    string      `json:"body"`
	Trailer http.Header `json:"trailer"`
}

// echo tells what came, once all of it has, and sends trailers: X-Body-Bytes, which it has announced, and X-Unannounced.
func (f *function) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEcho))
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{Pod: f.opts.Name, Error: fmt.Sprintf("read body: %v", err)})
		return
	}
	w.Header().Set("Trailer", "X-Body-Bytes")
	writeJSON(w, http.StatusOK, told{f.opts.Name, r.Method, r.Host, r.RequestURI, r.Header, string(body), r.Trailer})
	w.Header().Set("X-Body-Bytes", strconv.Itoa(len(body)))
	w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
}
