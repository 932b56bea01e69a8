// Package requests measures requests: it finds the activators and the pods that count them, and reads their counters
// from the expositions of metrics that they serve over HTTP, in the formats of Prometheus and OpenMetrics.
//
// It hides Kubernetes from providers (which Service, which EndpointSlices, which port) and the formats with all that
// can be wrong with an answer: a target is a stranger, and may hang, flood or lie.
package requests

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// Largest answers, uncompressed. An activator says five series for each of 10,000 functions in about 5 MiB.
	activatorLimit = 16 << 20
	podLimit       = 4 << 20
	// Largest header of an answer.
	headerLimit = 64 << 10
)

const (
	// accept prefers the text format: it is cheapest to pass over and cheap to write, and all names in it are those that
	// people see. The others are for processes that have nothing else.
	accept = "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5," +
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.4,*/*;q=0.1"
	// acceptEncoding asks for no compression. Inside a cluster the bytes are cheaper than the time that both sides, one
	// of them a function's pod, would spend on it. An answer that is compressed all the same is read.
	acceptEncoding = "identity"
)

// Secrets reads Secrets. Safe for concurrent use; its error names the Secret. It is asked before each measurement that
// needs a Secret, so it should remember.
type Secrets interface {
	Get(ctx context.Context, name types.NamespacedName) (providers.Secret, error)
}

// Scraper measures activators and pods. Make it with NewScraper; Close it when no call is under way any more.
type Scraper struct {
	// Secrets holds the authorities of targets that name a CASecret. Without it they cannot be measured. Set before
	// the first call of Measure.
	Secrets Secrets
	// MaxConnections bounds the connections to pods that are open at a time. The process's limit of open files does so too, but
	// at it the process cannot be connected to any more. Near MaxConnections connections are closed after their use, and
	// made anew for the next; at it, who needs one waits. Default: no bound. Set before the first call of Measure.
	MaxConnections int

	connections *connections // to pods
	transports  transports
	pods        providers.Slots[string] // by namespace
	answers     answers
}

// perNamespace bounds the measurements of pods that go on in one namespace at the same time. Pods answer in milliseconds:
// 20,000 of them, asked every 5 s, are a few dozen at a time. More are pods that hang, and theirs alone is the wait.
const perNamespace = 1000

var (
	_ providers.Source = (*Scraper)(nil)
	_ Secrets          = (*providers.Secrets)(nil)
)

// NewScraper makes a Scraper.
func NewScraper() *Scraper {
	s := &Scraper{
		transports: transports{byIdentity: map[identity]*tlsTransport{}},
		pods:       providers.Slots[string]{Most: perNamespace},
		answers:    answers{byTarget: map[providers.Target]*answer{}},
	}
	s.connections = newConnections(func() int { return s.MaxConnections })
	s.transports.dial = s.connections.dial
	s.transports.plain = s.transports.newTransport()
	s.transports.activators = s.transports.newTransport()
	s.transports.activators.DialContext = newDialer().DialContext // there are few, and pods must not keep them waiting
	return s
}

// Close drops the idle connections.
func (s *Scraper) Close() { s.transports.close() }

// Measure implements providers.Source. Besides errors of the connection there are those that wrap
// providers.ErrInvalid: the target answered, but not with a complete exposition that can be used.
//
// An activator that says that its figures are those of its last answer gives the same Functions again, Unchanged.
func (s *Scraper) Measure(ctx context.Context, t providers.Target) (*providers.Measurement, error) {
	scheme := "http://"
	if t.Scrape.TLS {
		scheme = "https://"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+t.Address+t.Scrape.Path, nil)
	if err != nil {
		return nil, err
	}
	if t.Kind == providers.Pod {
		release, err := s.pods.Acquire(ctx, t.Function.Namespace)
		if err != nil {
			return nil, fmt.Errorf("%s: %d pods of namespace %s were being measured all the time, most of which hang: %w",
				req.URL, perNamespace, t.Function.Namespace, err)
		}
		defer release()
	}
	m, err := s.measure(req, t)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	return m, nil
}

func (s *Scraper) measure(req *http.Request, t providers.Target) (*providers.Measurement, error) {
	transport, err := s.transports.of(req.Context(), t, s.Secrets)
	if err != nil {
		return nil, err
	}
	req.Header = http.Header{"Accept": {accept}, "Accept-Encoding": {acceptEncoding}, "User-Agent": {"sluice-adapter"}}
	var last *answer
	if req.Close = t.Kind == providers.Pod && s.connections.crowded(); t.Kind == providers.Activator {
		if last = s.answers.of(t); last != nil {
			req.Header["If-None-Match"] = []string{last.etag}
		}
	}
	// Not by an http.Client: a target answers itself or not at all, so that there are no redirects to follow.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if t.Kind == providers.Pod {
			err = s.connections.explain(err)
		}
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if last != nil && resp.StatusCode == http.StatusNotModified {
		m := *last.measurement
		m.Unchanged = true
		return &m, nil
	}
	m, err := read(resp, t)
	if err == nil && t.Kind == providers.Activator && req.Context().Err() == nil {
		s.answers.keep(t, resp.Header.Get("ETag"), m)
	}
	return m, err
}

// read reads an answer.
func read(resp *http.Response, t providers.Target) (m *providers.Measurement, err error) {
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: status %d", providers.ErrInvalid, resp.StatusCode)
	}
	f, err := contentFormat(resp.Header)
	if err != nil {
		return nil, err
	}
	limit := int64(podLimit)
	if t.Kind == providers.Activator {
		limit = activatorLimit
	}
	err = uncompressed(resp.Body, resp.Header.Get("Content-Encoding"), limit, func(body io.Reader) error {
		if t.Kind == providers.Activator {
			m, err = decodeActivator(body, f)
		} else {
			m, err = decodePod(body, f, t)
		}
		return err
	})
	return m, err
}
