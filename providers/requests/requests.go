// Package requests measures requests: it finds the activators and the pods that count them, and reads their counters
// as Prometheus text over HTTP.
//
// It hides Kubernetes from providers (which Service, which EndpointSlices, which port) and the text format with all
// that can be wrong with an answer: a target is a stranger, and may hang, flood or lie.
package requests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

const (
	// Largest answers. An activator says five series for each of 10,000 functions in about 5 MiB.
	activatorLimit = 16 << 20
	podLimit       = 4 << 20
)

// startTime is the gauge by which processes say when they began, in Unix seconds.
const startTime = "process_start_time_seconds"

// Scraper measures activators and pods. Make it with NewScraper; Close it when no call is under way any more.
type Scraper struct {
	client *http.Client
}

var _ providers.Source = (*Scraper)(nil)

// NewScraper makes a Scraper.
func NewScraper() *Scraper {
	transport := &http.Transport{
		// No proxy: targets are pod addresses.
		DialContext: (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext,
		// One connection per target, kept for its next turn.
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// A compressed answer may be a thousand times as large as it looks.
		DisableCompression: true,
	}
	return &Scraper{client: &http.Client{
		Transport: transport,
		// A target answers itself or not at all.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops the idle connections.
func (s *Scraper) Close() { s.client.CloseIdleConnections() }

// Measure implements providers.Source. Besides errors of the connection there are those that wrap
// providers.ErrInvalid: the target answered, but not with a complete exposition that can be used.
func (s *Scraper) Measure(ctx context.Context, t providers.Target) (*providers.Measurement, error) {
	if t.Kind == providers.Activator {
		return measure(ctx, s.client, t, activatorLimit, decodeActivator)
	}
	return measure(ctx, s.client, t, podLimit, func(body io.Reader) (*providers.Measurement, error) {
		return decodePod(body, t)
	})
}

func measure(
	ctx context.Context, client *http.Client, t providers.Target, limit int64,
	decode func(io.Reader) (*providers.Measurement, error),
) (*providers.Measurement, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Address+t.Scrape.Path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	req.Header.Set("User-Agent", "sluice-adapter")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := checkHeader(resp); err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	m, err := decode(&limitedReader{r: resp.Body, left: limit})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	return m, nil
}

// checkHeader refuses what is not an exposition. A function whose runtime serves requests on every path answers a
// scrape too; its answer is no count.
func checkHeader(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: status %d", providers.ErrInvalid, resp.StatusCode)
	}
	contentType := resp.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "text/plain" {
		return fmt.Errorf("%w: content type %q, want text/plain", providers.ErrInvalid, contentType)
	}
	return nil
}

// limitedReader fails past its limit, where io.LimitedReader would report a proper end.
type limitedReader struct {
	r    io.Reader
	left int64
}

var errTooLarge = errors.New("answer is too large")

func (l *limitedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("%w: %w", providers.ErrInvalid, errTooLarge)
	}
	return n, err
}

// decodeActivator reads an activator's exposition. It must say something, for an activator always does; a function
// that is not in it reads zero.
func decodeActivator(body io.Reader) (*providers.Measurement, error) {
	samples, err := decode(body, v1alpha1.ActivatorStarted, v1alpha1.ActivatorInFlight,
		v1alpha1.ActivatorBusySeconds, v1alpha1.ActivatorHeldSeconds, startTime)
	if err != nil {
		return nil, err
	}
	start, err := samples.start()
	if err != nil {
		return nil, err
	}
	if start.IsZero() {
		return nil, fmt.Errorf("%w: no %s, so this is not an activator", providers.ErrInvalid, startTime)
	}
	m := &providers.Measurement{Start: start, Functions: map[types.NamespacedName]providers.Reading{}}
	for family, set := range map[string]func(*providers.Reading, float64){
		v1alpha1.ActivatorStarted:     func(r *providers.Reading, v float64) { r.Started += v },
		v1alpha1.ActivatorInFlight:    func(r *providers.Reading, v float64) { r.InFlight += v },
		v1alpha1.ActivatorBusySeconds: func(r *providers.Reading, v float64) { r.BusySeconds += v },
		v1alpha1.ActivatorHeldSeconds: func(r *providers.Reading, v float64) { r.HeldSeconds += v },
	} {
		for _, s := range samples[family] {
			name := types.NamespacedName{Namespace: s.label(v1alpha1.LabelNamespace), Name: s.label(v1alpha1.LabelFunction)}
			if name.Namespace == "" || name.Name == "" {
				return nil, fmt.Errorf("%w: %s without labels %s and %s", providers.ErrInvalid, family,
					v1alpha1.LabelNamespace, v1alpha1.LabelFunction)
			}
			r := m.Functions[name]
			set(&r, s.value)
			m.Functions[name] = r
		}
	}
	return m, nil
}

// decodePod reads a pod's exposition: the sums over all labels of the counter and the gauge that t names. A counter
// that is not there yet has counted nothing.
func decodePod(body io.Reader, t providers.Target) (*providers.Measurement, error) {
	names := []string{t.Scrape.Requests, startTime}
	if t.Scrape.InFlight != "" {
		names = append(names, t.Scrape.InFlight)
	}
	samples, err := decode(body, names...)
	if err != nil {
		return nil, err
	}
	start, err := samples.start()
	if err != nil {
		return nil, err
	}
	reading := providers.Reading{Started: samples.sum(t.Scrape.Requests), InFlight: samples.sum(t.Scrape.InFlight)}
	return &providers.Measurement{
		Start:     start,
		Functions: map[types.NamespacedName]providers.Reading{t.Function: reading},
	}, nil
}
