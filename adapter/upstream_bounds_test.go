package adapter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/rest"
)

// TestAnAnswerThatBreaksOff ends the caller's connection, for its header was passed on already, and is a failure.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	other := newOtherAdapter(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"items":[`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	u := newTestUpstream(t, other)
	front := httptest.NewServer(u)
	defer front.Close()
	resp, err := http.Get(front.URL + othersRead)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("half an answer was passed on as a whole one")
	}
	if got := u.breaker.Counts().ConsecutiveFailures; got != 1 {
		t.Errorf("%d failures, want 1", got)
	}
	if got := len(u.slots); got != 0 {
		t.Errorf("%d reads are still under way", got)
	}
}

// TestAFloodIsBrokenOff where its length was not known before, and is no failure: who asks for less gets it.
func TestAFloodIsBrokenOff(t *testing.T) {
	other := newOtherAdapter(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for chunk := make([]byte, 1<<20); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	u := newTestUpstream(t, other)
	u.timeout = time.Minute
	front := httptest.NewServer(u)
	defer front.Close()
	resp, err := http.Get(front.URL + othersRead)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil || n > maxUpstreamBody {
		t.Errorf("%d bytes were passed on, %v; want at most %d and an error", n, err, maxUpstreamBody)
	}
	if got := u.breaker.Counts().ConsecutiveFailures; got != 0 {
		t.Errorf("%d failures, want none", got)
	}
}

func TestACallerWhoLeavesIsNoFailure(t *testing.T) {
	arrived := make(chan struct{})
	other := newOtherAdapter(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	u := newTestUpstream(t, other)
	u.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	readFrom(ctx, u)
	if got := u.breaker.Counts().ConsecutiveFailures; got != 0 {
		t.Errorf("%d failures, want none", got)
	}
	if got := testutil.ToFloat64(u.metrics.requests.WithLabelValues(u.group, "canceled")); got != 1 {
		t.Errorf("canceled = %v, want 1", got)
	}
	if got := u.failure(); got != "" {
		t.Errorf("the upstream is said to have failed: %s", got)
	}
}

// TestBreaker is the story of an upstream that hangs, and comes back.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs, asked := true, 0
		u := newTestUpstream(t, &otherAdapter{})
		u.timeout = 5 * time.Second
		u.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			if hangs {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{
				StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody,
			}, nil
		})
		read := func(wantCode, wantAsked int, says string) {
			t.Helper()
			began := time.Now()
			code, body := readFrom(t.Context(), u)
			if code != wantCode || asked != wantAsked || !strings.Contains(body, says) {
				t.Fatalf("%d after %d, %s; want %d after %d, %s", code, asked, body, wantCode, wantAsked, says)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Fatalf("the read took %s", took)
			}
		}
		gauge := func(want float64) {
			t.Helper()
			if got := testutil.ToFloat64(breakerGauge(u)); got != want {
				t.Errorf("open = %v, want %v", got, want)
			}
		}
		for i := range tripAfter {
			read(503, i+1, "it did not answer within 5s")
		}
		gauge(1)
		began := time.Now()
		for range 100 {
			read(503, tripAfter, "failed 5 times in a row: it did not answer within 5s")
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("100 reads of an upstream that is not asked took %s", took)
		}
		pass(coolDown + time.Millisecond)
		read(503, tripAfter+1, "it did not answer") // one to try
		read(503, tripAfter+1, "is not asked")      // and it failed
		pass(coolDown + time.Millisecond)
		hangs = false
		read(200, tripAfter+2, "")
		read(200, tripAfter+3, "")
		gauge(0)
	})
}

// TestAHangingUpstreamConcernsNobodyElse has more reads wait for it than are let through.
func TestAHangingUpstreamConcernsNobodyElse(t *testing.T) {
	release := make(chan struct{})
	other := newOtherAdapter(t, serves(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	r := start(t, func(o *Options) {
		other.behind(o)
		o.Upstreams.Timeout = time.Minute
	})
	client, err := rest.HTTPClientFor(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	defer close(release)
	for range maxForwarded {
		waiting.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.addr+othersRead, nil)
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	r.eventually("all wait", func() string {
		if n := len(other.reads()); n < maxForwarded {
			return fmt.Sprintf("%d reads arrived", n)
		}
		return ""
	})
	if code, body := r.try(othersRead, "good"); code != http.StatusServiceUnavailable || !strings.Contains(body, "late with 100 other reads") {
		t.Errorf("one more: %d %s", code, body)
	}
	for range 20 { // none waits for the others, which do not end
		if code, body := r.try(ownRead, "good"); code != http.StatusOK {
			t.Fatalf("own read: %d %s", code, body)
		}
	}
	for _, path := range []string{"/readyz", "/livez", "/apis/custom.metrics.k8s.io/v1beta2"} {
		if code, body := r.try(path, "good"); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

var errReset = errors.New("connection reset")

// TestConnectionErrorsCount are failures whatever their kind.
func TestConnectionErrorsCount(t *testing.T) {
	u := newTestUpstream(t, &otherAdapter{})
	u.transport = roundTrip(func(*http.Request) (*http.Response, error) { return nil, errReset })
	if code, body := readFrom(t.Context(), u); code != http.StatusServiceUnavailable || !strings.Contains(body, errReset.Error()) {
		t.Errorf("%d %s", code, body)
	}
	if got := u.breaker.Counts().ConsecutiveFailures; got != 1 {
		t.Errorf("%d failures, want 1", got)
	}
}
