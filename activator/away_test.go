package activator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// awayAPI is an API server with one EndpointSlice and no Function, reached without a network. While it is away connections
// to it are refused.
type awayAPI struct {
	mu    sync.Mutex // protects following
	away  bool
	ready bool // the pod of the EndpointSlice
	cut   context.CancelFunc
	live  context.Context
}

// RoundTrip implements http.RoundTripper.
func (a *awayAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	res := &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}},
	}
	query := r.URL.Query()
	switch {
	case query.Get("sendInitialEvents") != "":
		res.StatusCode = http.StatusUnprocessableEntity
		res.Body = io.NopCloser(strings.NewReader(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`))
	case query.Get("watch") != "":
		// What has happened meanwhile, and then nothing until the end of the server, or of the request.
		reader, writer := io.Pipe()
		end := func(err error) func() { return func() { _ = writer.CloseWithError(err) } }
		context.AfterFunc(a.live, end(io.ErrUnexpectedEOF))
		context.AfterFunc(r.Context(), end(context.Canceled))
		res.Body = reader
		if a.ready && strings.HasSuffix(r.URL.Path, "/endpointslices") {
			event := marshal(map[string]any{"type": "MODIFIED", "object": a.sliceLocked()})
			go func() { _, _ = writer.Write(event) }()
		}
	default:
		res.Body = io.NopCloser(bytes.NewReader(a.listLocked(r.URL.Path)))
	}
	return res, nil
}

func (a *awayAPI) listLocked(path string) []byte {
	list := map[string]any{
		"kind": "FunctionList", "apiVersion": "sluice.dev/v1alpha1", "metadata": map[string]any{"resourceVersion": "1"}, "items": []any{},
	}
	if strings.HasSuffix(path, "/endpointslices") {
		list["kind"], list["apiVersion"], list["items"] = "EndpointSliceList", discoveryv1.SchemeGroupVersion.String(), []any{a.sliceLocked()}
	}
	return marshal(list)
}

func (a *awayAPI) sliceLocked() *discoveryv1.EndpointSlice {
	slice := newSlice("hello", 0, "10.0.0.1:8080", a.ready)
	slice.TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
	slice.ResourceVersion = map[bool]string{false: "1", true: "2"}[a.ready]
	return slice
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // what is given here always marshals
	}
	return b
}

// set changes the world: a server that goes cuts its watches off.
func (a *awayAPI) set(away, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away, a.ready = away, ready
	if a.cut != nil {
		a.cut()
	}
	a.live, a.cut = context.WithCancel(context.Background())
}

// However long the API server was away: soon after it is back the activator knows what has happened meanwhile. Requests are
// held for pods that it has not heard of.
func TestWatchIsBackSoonAfterTheAPIServer(t *testing.T) {
	for _, outage := range []time.Duration{5 * time.Second, time.Minute, time.Hour} {
		t.Run(outage.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &awayAPI{}
				a.set(false, false)
				table := newTable(func(int32, *function) {}, newPeers(newMetrics(), Options{}))
				fn := newTestFunction("hello")
				table.setFunction(fn)
				ctx, cancel := context.WithCancel(t.Context())
				w, err := newWatcher(ctx, &rest.Config{Host: "http://api", Transport: a}, table)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- w.run(ctx) }()
				if !w.waitSynced(ctx) {
					t.Fatal("not synced")
				}
				a.set(true, false)
				<-time.After(outage)
				a.set(false, true)
				<-time.After(2 * time.Second)
				if !table.functions[fn.Key()].pods.Load().usable() {
					t.Errorf("2 s after the API server is back from %s the pod that became ready meanwhile is not known", outage)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
