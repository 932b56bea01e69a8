package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	group = "/apis/custom.metrics.k8s.io/v1beta2"
	// block is how many reads of one server come before those of the other: few enough that both see the same machine.
	block = 50
	// settling is how long the adapter has to be ready, and to see every activator a few times.
	settling = 2 * time.Minute
)

// server is one of those that are read.
type server struct {
	*process
	url    string
	client *http.Client
	token  string
}

// measure is the whole benchmark.
func measure(ctx context.Context, o options) error {
	w, err := newWorld(ctx, o.state)
	if err != nil {
		return err
	}
	defer func() { _ = w.stop(ctx) }()
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "functions\twhat\tadapter p50\tfloor p50\tratio\tadapter p99\tfloor p99\tratio\t")
	have := 0
	for _, n := range []int{1, o.functions} {
		if err := w.functions(ctx, have, n); err != nil {
			return err
		}
		have = n
		if err := measureWith(ctx, o, w, n, out); err != nil {
			return fmt.Errorf("with %d functions: %w", n, err)
		}
	}
	return out.Flush()
}

// measureWith measures with n functions, in processes that have seen nothing else.
func measureWith(ctx context.Context, o options, w *world, n int, out *tabwriter.Writer) error {
	addresses, err := freeAddresses(ctx, 5)
	if err != nil {
		return err
	}
	activators := strings.Join(addresses[2:], ",")
	seen, err := start(ctx, "gates", "-address", activators, "-functions", fmt.Sprint(n))
	if err != nil {
		return err
	}
	defer seen.stop()
	subject, err := w.serve(ctx, "subject", addresses[0], "-gates", activators)
	if err != nil {
		return err
	}
	defer subject.stop()
	floor, err := w.serve(ctx, "floor", addresses[1])
	if err != nil {
		return err
	}
	defer floor.stop()

	reads := []struct {
		name string
		path func() string
	}{
		{"a function's rate", func() string { return value(rand.IntN(n)) }},
		{"discovery", func() string { return group }},
	}
	for _, s := range []*server{subject, floor} {
		for i := range n { // all of them: the authorization of each is known then
			if i%100 != 0 && i != n-1 {
				continue
			}
			if err := eventually(ctx, settling, s.name+" to answer", func(ctx context.Context) error {
				_, err := s.read(ctx, value(i))
				return err
			}); err != nil {
				return err
			}
		}
	}
	for _, r := range reads {
		ours, theirs, err := compare(ctx, o.reads, subject, floor, r.path)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		fmt.Fprintf(out, "%d\t%s\t%v\t%v\t%.3f\t%v\t%v\t%.3f\t\n", n, r.name,
			micro(at(ours, 50)), micro(at(theirs, 50)), ratio(at(ours, 50), at(theirs, 50)),
			micro(at(ours, 99)), micro(at(theirs, 99)), ratio(at(ours, 99), at(theirs, 99)))
	}
	return idle(ctx, o.idle, n, subject)
}

func value(function int) string {
	return fmt.Sprintf("%s/namespaces/%s/%s/%s/%s", group, namespace, v1alpha1.FunctionResource, functionName(function), v1alpha1.RequestsPerSecond)
}

// serve starts a server in a role, and a client for it that keeps one connection, as the API server's does.
func (w *world) serve(ctx context.Context, role, address string, args ...string) (*server, error) {
	p, err := start(ctx, role, append([]string{"-address", address, "-kubeconfig", w.cluster.Kubeconfig()}, args...)...)
	if err != nil {
		return nil, err
	}
	return &server{process: p, url: "https://" + address, token: w.token, client: &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			ForceAttemptHTTP2: true,
			// Of a process that this one has started, on loopback.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}}, nil
}

// read reads once, and tells how long that took.
func (s *server) read(ctx context.Context, path string) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf, application/json")
	began := time.Now()
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return took, nil
}

// compare reads both servers by turns, n times each, and returns the durations in order of size.
func compare(ctx context.Context, n int, a, b *server, path func() string) (ofA, ofB []time.Duration, err error) {
	for len(ofA) < n {
		paths := make([]string, block)
		for i := range paths {
			paths[i] = path()
		}
		for _, turn := range []struct {
			server *server
			took   *[]time.Duration
		}{{a, &ofA}, {b, &ofB}} {
			for _, p := range paths {
				took, err := turn.server.read(ctx, p)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", turn.server.name, err)
				}
				*turn.took = append(*turn.took, took)
			}
		}
	}
	slices.Sort(ofA)
	slices.Sort(ofB)
	return ofA, ofB, nil
}

func at(sorted []time.Duration, percent int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

func micro(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// idle says what the adapter costs while nothing happens.
func idle(ctx context.Context, span time.Duration, n int, s *server) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(span):
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	now, most, err := s.resident()
	if err != nil {
		return err
	}
	fmt.Printf("%d functions asleep: %.2f %% of a core over %s; resident %d MB, %d MB at most\n",
		n, 100*float64(after-before)/float64(time.Since(began)), span, now>>20, most>>20)
	return nil
}
