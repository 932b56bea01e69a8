package activator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Bounds of what is exported.
const (
	maxQueuedSpans = 2048 // what comes beyond it is dropped
	maxSpanBatch   = 512
	spanDelay      = 5 * time.Second // of a span that is not followed by enough for a batch
	exportTimeout  = 10 * time.Second
	firstReexport  = 250 * time.Millisecond
)

// What has become of a span, as the label of sluice_trace_spans_total.
const (
	spanExported = "exported"
	spanDropped  = "dropped"
	spanFailed   = "failed"
)

// spanQueue is the sdktrace.SpanProcessor between requests and the receiver of their spans. No request ever waits for it.
// The SDK's own does the same, but does not tell what it drops.
type spanQueue struct {
	log      logr.Logger
	exporter sdktrace.SpanExporter
	counted  *prometheus.CounterVec
	delay    time.Duration

	queue    chan sdktrace.ReadOnlySpan
	stopping chan struct{}      // closed by Shutdown
	ended    chan struct{}      // closed when run has ended
	cancel   context.CancelFunc // ends the exports
	stop     sync.Once
}

// newSpanQueue makes a queue that exports until Shutdown, whether ctx has ended or not.
func newSpanQueue(
	ctx context.Context, log logr.Logger, exporter sdktrace.SpanExporter, counted *prometheus.CounterVec, delay time.Duration,
) *spanQueue {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	q := &spanQueue{
		log: log, exporter: exporter, counted: counted, delay: delay,
		queue: make(chan sdktrace.ReadOnlySpan, maxQueuedSpans), stopping: make(chan struct{}), ended: make(chan struct{}), cancel: cancel,
	}
	go func() {
		defer close(q.ended)
		q.run(ctx)
	}()
	return q
}

// OnStart implements sdktrace.SpanProcessor.
func (q *spanQueue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	select {
	case q.queue <- s:
	default:
		q.counted.WithLabelValues(spanDropped).Inc()
	}
}

// ForceFlush implements sdktrace.SpanProcessor. Nobody asks for it.
func (q *spanQueue) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdktrace.SpanProcessor: it exports what is queued, until ctx ends. No span may end any more.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	q.stop.Do(func() { close(q.stopping) })
	defer q.cancel()
	select {
	case <-q.ended:
		return nil
	case <-ctx.Done():
		q.cancel()
		<-q.ended
		return ctx.Err()
	}
}

// run exports batches until Shutdown, and then what is left.
func (q *spanQueue) run(ctx context.Context) {
	batch := make([]sdktrace.ReadOnlySpan, 0, maxSpanBatch)
	failing := false
	export := func() {
		if len(batch) == 0 {
			return
		}
		failing = q.export(ctx, batch, failing)
		clear(batch)
		batch = batch[:0]
	}
	timer := time.NewTimer(q.delay) // runs while the batch is not empty
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case s := <-q.queue:
			if batch = append(batch, s); len(batch) == 1 {
				timer.Reset(q.delay)
			}
			if len(batch) == maxSpanBatch {
				timer.Stop()
				export()
			}
		case <-timer.C:
			export()
		case <-q.stopping:
			for len(q.queue) > 0 { // nobody else takes from it
				if batch = append(batch, <-q.queue); len(batch) == maxSpanBatch {
					export()
				}
			}
			export()
			return
		}
	}
}

// export sends a batch. failing tells whether the last one failed, which is logged once.
func (q *spanQueue) export(ctx context.Context, batch []sdktrace.ReadOnlySpan, failing bool) bool {
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	err := q.exporter.ExportSpans(ctx, batch)
	switch {
	case err == nil:
		q.counted.WithLabelValues(spanExported).Add(float64(len(batch)))
		if failing {
			q.log.Info("spans of requests are exported again")
		}
		return false
	case !failing:
		q.log.Error(err, "cannot export spans of requests; they are lost")
	}
	q.counted.WithLabelValues(spanFailed).Add(float64(len(batch)))
	return true
}

// otlpClient sends spans as OTLP has it over HTTP, in protobuf.
//
// It is none of OpenTelemetry's own because both link gRPC, by which the activator would be much larger.
type otlpClient struct {
	http    *http.Client
	url     string
	headers map[string]string
}

var _ otlptrace.Client = (*otlpClient)(nil)

func newOTLPClient(url string, headers map[string]string, tlsConfig *tls.Config) *otlpClient {
	return &otlpClient{
		url: url, headers: headers,
		http: &http.Client{
			Transport: &http.Transport{
				TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
				TLSHandshakeTimeout: exportTimeout,
			},
			// Where the endpoint is moved to is for the operator to say: the headers may hold a token.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Start implements otlptrace.Client.
func (c *otlpClient) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *otlpClient) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client. What the receiver may take later is sent again until ctx ends.
func (c *otlpClient) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// An ExportTraceServiceRequest, of the same form on the wire; the package of that one links gRPC.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	for delay := firstReexport; ; delay *= 2 {
		again, err := c.post(ctx, body)
		if err == nil || !again {
			return err
		}
		timer := time.NewTimer(jitter(delay))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// post sends body once. again tells whether it may be sent again after an error.
func (c *otlpClient) post(ctx context.Context, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	for k, v := range c.headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	res, err := c.http.Do(req)
	if err != nil {
		return !errors.Is(err, context.Canceled), err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection is used again
	if res.StatusCode/100 == 2 {
		return false, nil
	}
	err = fmt.Errorf("POST %s: %s", req.URL.Redacted(), res.Status)
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true, err
	default:
		return false, err
	}
}
