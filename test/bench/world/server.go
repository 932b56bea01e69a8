package world

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Group is the path of the metrics API.
const Group = "/apis/custom.metrics.k8s.io/v1beta2"

// Accept of the API's clients: of the HorizontalPodAutoscaler's controller, and of people.
const (
	Protobuf = "application/vnd.kubernetes.protobuf, application/json"
	JSON     = "application/json"
)

// RatePath is the path of the rate of the i-th function.
func RatePath(i int) string {
	return fmt.Sprintf("%s/namespaces/%s/%s/%s/%s", Group, Namespace, v1alpha1.FunctionResource, FunctionName(i), v1alpha1.RequestsPerSecond)
}

// Server is a process that serves the metrics API, with a client that keeps one connection, as the API server's does.
type Server struct {
	*Process
	url    string
	client *http.Client
	token  string
}

// Server makes a client of p, which listens at address.
func (w *World) Server(p *Process, address string) *Server {
	return &Server{Process: p, url: "https://" + address, token: w.token, client: &http.Client{
		Timeout: 2 * time.Minute, // a profile takes its time
		Transport: &http.Transport{
			ForceAttemptHTTP2: true,
			// Of a process that this one has started, on loopback.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}}
}

// Get reads path, and tells how long that took.
func (s *Server) Get(ctx context.Context, path, accept string) ([]byte, time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("Accept", accept)
	began := time.Now()
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	body, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("%s: %s: %.300s", path, resp.Status, body)
	}
	return body, took, nil
}

// Profile keeps a profile of the server in a file, and prints what it says: path is below /debug/pprof/.
func (s *Server) Profile(ctx context.Context, path, file string, flags ...string) error {
	profile, _, err := s.Get(ctx, "/debug/pprof/"+path, JSON)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return KeepProfile(ctx, profile, file, flags...)
}

// KeepProfile writes a profile to a file, and prints what it says.
func KeepProfile(ctx context.Context, profile []byte, file string, flags ...string) error {
	if err := os.WriteFile(file, profile, 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "go", append(append([]string{"tool", "pprof", "-top"}, flags...), file)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go tool pprof -top %s: %w: %s", file, err, out)
	}
	fmt.Printf("\ngo tool pprof %s\n%s", file, out)
	return nil
}

// At is the percentile of values, which it sorts.
func At(values []time.Duration, percent int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, len(values)*percent/100)]
}
