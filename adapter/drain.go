package adapter

import "net/http"

// leave asks callers to come back on another connection, with every answer that is given after draining is closed: by
// Connection: close over HTTP/1.1, of which net/http makes GOAWAY over HTTP/2.
//
// An API server keeps one HTTP/2 connection to the adapter, and would stay on it until the very end, when the generic
// API server refuses what comes in between its last look and its own GOAWAY with 503. What is in flight when GOAWAY is
// sent is still answered, and what the server has not taken by then is sent again by the client elsewhere.
func leave(draining <-chan struct{}, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-draining:
			w.Header().Set("Connection", "close")
		default:
		}
		next.ServeHTTP(w, r)
	})
}
