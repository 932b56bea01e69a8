package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MaxDelay bounds how long one call may take.
const MaxDelay = time.Minute

// Options of the function.
type Options struct {
	// Name is what the function answers with: the pod's name.
	Name string
	// Delay is how long a call takes that does not say so itself. Default 0, at most MaxDelay.
	Delay time.Duration
	// StartDelay is how long the function is not ready after its start. Default 0.
	StartDelay time.Duration
	// Drain bounds how long Run waits for calls in flight, and for the commit of records, once its context has ended.
	// Default 0: not at all.
	Drain time.Duration
	// Kafka is what the function consumes, beside answering calls. Default nothing.
	Kafka KafkaOptions
	// TLS is a directory with tls.crt and tls.key, as a Secret of type kubernetes.io/tls is mounted. With it the function
	// speaks TLS alone. Default none: it speaks no TLS.
	TLS string
	// IDsTo is the address, host:port, of a collector that is told the id of every call as it arrives. A call whose id it
	// cannot be told is refused. Default none.
	IDsTo string
}

func (o Options) validate() error {
	if o.Delay < 0 || o.Delay > MaxDelay {
		return fmt.Errorf("delay %s: must be between 0 and %s", o.Delay, MaxDelay)
	}
	if o.StartDelay < 0 {
		return fmt.Errorf("start delay %s: must not be negative", o.StartDelay)
	}
	if o.Drain < 0 {
		return fmt.Errorf("drain %s: must not be negative", o.Drain)
	}
	return o.Kafka.validate()
}

// Run serves on ln, and consumes, until ctx ends; then it accepts no more and waits for the calls in flight and for the
// commit of records, for opts.Drain at most. It returns an error when it could not serve or consume, or when it had to
// cut calls off.
func Run(ctx context.Context, ln net.Listener, opts Options) error {
	f := newFunction(opts)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	consumed := make(chan error, 1)
	go func() {
		if opts.Kafka.Servers == "" {
			consumed <- nil
			return
		}
		err := f.consume(ctx)
		if err != nil {
			stop() // a function that cannot consume ends, and whoever runs it starts it again
		}
		consumed <- err
	}()
	err := f.serve(ctx, ln)
	stop()
	if f.collector != nil {
		f.collector.close()
	}
	return errors.Join(err, <-consumed)
}

// serve is Run without the consumer.
func (f *function) serve(ctx context.Context, ln net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // with TLS
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:           f.handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		// Longer than the 90 s for which Go's clients and the gate keep an idle connection: the side that closes last
		// cannot close under a request that is on its way.
		IdleTimeout: 2 * time.Minute,
	}
	f.listening = time.Now()
	served := make(chan error, 1)
	go func() {
		if f.opts.TLS != "" {
			served <- srv.ServeTLS(ln, filepath.Join(f.opts.TLS, "tls.crt"), filepath.Join(f.opts.TLS, "tls.key"))
			return
		}
		served <- srv.Serve(ln)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.opts.Drain)
	defer cancel()
	err := srv.Shutdown(drain)
	if err != nil {
		err = fmt.Errorf("calls still in flight %s after the end was asked for: %w", f.opts.Drain, err)
		err = errors.Join(err, srv.Close())
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

// function answers and counts. Its handler is safe for concurrent use.
type function struct {
	opts      Options
	readyAt   time.Time
	listening time.Time // since then; set before the first call
	ids       ids
	collector *collector // nil for none

	// unready is until when it says that it is not ready, in Unix nanoseconds.
	unready atomic.Int64

	// next lets go one event of a stream that waits for it.
	next chan struct{}

	// recordIDs are the keys of the records on which work was done.
	recordIDs ids

	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	failures *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	records  prometheus.Counter
}

func newFunction(opts Options) *function {
	f := &function{
		opts:     opts,
		readyAt:  time.Now().Add(opts.StartDelay),
		next:     make(chan struct{}),
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "function_calls_total",
			Help: "Calls that have begun.",
		}, []string{"method"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "function_failures_total",
			Help: "Calls that were not answered, or with a status of 400 or above.",
		}, []string{"method"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "function_duration_seconds",
			Help:    "Time from the beginning of a call to its answer.",
			Buckets: []float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "function_in_flight",
			Help: "Calls that have begun and not ended.",
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "function_records_total",
			Help: "Records of Kafka on which work was done.",
		}),
	}
	if opts.IDsTo != "" {
		f.collector = &collector{address: opts.IDsTo}
	}
	f.registry.MustRegister(f.calls, f.failures, f.duration, f.inFlight)
	if opts.Kafka.Servers != "" {
		f.registry.MustRegister(f.records)
	}
	// A counter that appears only with its first call looks, to who scrapes, like a metric that does not exist.
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		f.calls.WithLabelValues(method)
		f.failures.WithLabelValues(method)
		f.duration.WithLabelValues(method)
	}
	return f
}

// handler counts calls only. `OPTIONS *` never reaches it: net/http answers that itself.
func (f *function) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", f.healthz)
	mux.HandleFunc("/unready", f.turnUnready)
	mux.Handle("/metrics", promhttp.HandlerFor(f.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/ids", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, f.ids.report()) })
	mux.HandleFunc("/records", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, f.recordIDs.report()) })
	mux.HandleFunc("/ws", f.counted(f.webSocket))
	mux.HandleFunc("/events", f.counted(f.events))
	mux.HandleFunc("/next", f.letGo)
	mux.HandleFunc("/echo", f.counted(f.echo))
	mux.HandleFunc("/", f.counted(f.call))
	rpc := f.counted(f.newGRPC().ServeHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isGRPC(r) {
			rpc(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// healthz answers 503 until the start delay is over, and 200 from then on, after SIGTERM too. A pod that is being
// deleted is taken out of service by its deletion timestamp, not by its probe; failing the probe as well would also
// make the endpoint not `serving`, and kube-proxy, which falls back to serving endpoints when only terminating ones
// are left, would refuse requests that could still have been answered.
func (f *function) healthz(w http.ResponseWriter, _ *http.Request) {
	switch {
	case !f.ready():
		http.Error(w, "starting", http.StatusServiceUnavailable)
	case time.Now().UnixNano() < f.unready.Load():
		http.Error(w, "not ready, as was asked for", http.StatusServiceUnavailable)
	default:
		_, _ = io.WriteString(w, "ok\n")
	}
}

// turnUnready has healthz fail for a while. Calls are answered meanwhile.
func (f *function) turnUnready(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || d < 0 {
		writeJSON(w, http.StatusBadRequest, failure{Pod: f.opts.Name, Error: "for: give a duration, such as 10s"})
		return
	}
	f.unready.Store(time.Now().Add(d).UnixNano())
}

func (f *function) ready() bool { return !time.Now().Before(f.readyAt) }

// answer is the body of a call's response.
type answer struct {
	Pod       string `json:"pod"`
	Method    string `json:"method"`
	Path      string `json:"path"`
	BodyBytes int64  `json:"bodyBytes"`
	Delay     string `json:"delay"`
	ID        string `json:"id,omitempty"`
}

// failure is the body of a response that refuses the call.
type failure struct {
	Pod   string `json:"pod"`
	Error string `json:"error"`
}

// counted counts what comes as a call.
func (f *function) counted(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		method, began := methodLabel(r.Method), time.Now()
		f.calls.WithLabelValues(method).Inc()
		f.inFlight.Inc()
		defer func() {
			f.inFlight.Dec()
			f.duration.WithLabelValues(method).Observe(time.Since(began).Seconds())
		}()
		// On arrival, not on success: a request that was sent twice counts twice even if one of the two was given up.
		if id := r.Header.Get("X-Id"); id != "" {
			f.ids.add(id)
			if f.collector != nil {
				if err := f.collector.tell(r.Context(), f.opts.Name, id); err != nil {
					f.failures.WithLabelValues(method).Inc()
					writeJSON(w, http.StatusInternalServerError, failure{Pod: f.opts.Name, Error: err.Error()})
					return
				}
			}
		}
		answer(w, r)
	}
}

// headerListening tells in every answer to a call since when the function accepts connections, by RFC 3339 with all
// digits: what a cold start took beyond the function's own part is measured by it.
const headerListening = "Listening-Since"

func (f *function) call(w http.ResponseWriter, r *http.Request) {
	status, body := f.work(r)
	if status >= http.StatusBadRequest {
		f.failures.WithLabelValues(methodLabel(r.Method)).Inc()
	}
	w.Header().Set(headerListening, f.listening.Format(time.RFC3339Nano))
	writeJSON(w, status, body)
}

// work does what the call asks for and returns the response.
func (f *function) work(r *http.Request) (status int, body any) {
	refuse := func(status int, err error) (int, any) { return status, failure{Pod: f.opts.Name, Error: err.Error()} }
	if !f.ready() {
		// Whoever sends a call to a pod that is not ready is to notice.
		return refuse(http.StatusServiceUnavailable, errors.New("not ready: the start delay is not over"))
	}
	delay, status, err := f.parameters(r)
	if err != nil {
		return refuse(http.StatusBadRequest, err)
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return refuse(http.StatusBadRequest, fmt.Errorf("read body: %w", err))
	}
	if err := sleep(r.Context(), delay); err != nil {
		// Nobody reads this answer; the status makes it count as a failure.
		return refuse(http.StatusServiceUnavailable, fmt.Errorf("the client went away: %w", err))
	}
	return status, answer{
		Pod: f.opts.Name, Method: r.Method, Path: r.URL.Path,
		BodyBytes: n, Delay: delay.String(), ID: r.Header.Get("X-Id"),
	}
}

func (f *function) parameters(r *http.Request) (delay time.Duration, status int, err error) {
	query := r.URL.Query()
	delay, status = f.opts.Delay, http.StatusOK
	if v := query.Get("delay"); v != "" {
		delay, err = time.ParseDuration(v)
		if err != nil || delay < 0 || delay > MaxDelay {
			return 0, 0, fmt.Errorf("delay %q: give a duration between 0 and %s, such as 200ms", v, MaxDelay)
		}
	}
	if v := query.Get("status"); v != "" {
		status, err = strconv.Atoi(v)
		if err != nil || status < 200 || status > 599 {
			return 0, 0, fmt.Errorf("status %q: give a number between 200 and 599", v)
		}
	}
	return delay, status, nil
}

// sleep waits for d, or returns why ctx ended before.
func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// methodLabel keeps the number of series bounded: a client may send any token as its method.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodOptions:
		return method
	default:
		return "other"
	}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is the client's connection, which net/http closes.
	_ = json.NewEncoder(w).Encode(body)
}
