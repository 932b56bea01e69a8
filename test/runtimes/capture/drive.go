package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ports of one run, all of them free when it began.
type ports struct{ inbound, metrics, admin, function, outbound, elsewhere string }

// sent is the truth: what had been sent to the runtime when it was scraped.
type sent struct {
	// Started and Ended requests of the function; the difference is in flight.
	Started int `json:"started"`
	Ended   int `json:"ended"`
	// Failed is how many of the ended ones were answered with 500.
	Failed int `json:"failed"`
	// AtLeastSeconds is how long the ended ones slept, AtMostSeconds how long their clients waited.
	AtLeastSeconds float64 `json:"atLeastSeconds"`
	AtMostSeconds  float64 `json:"atMostSeconds"`
	// Probes are requests to /healthz, Scrapes those to the metrics before this one, Calls those that the function
	// itself made. None of them is a request of the function.
	Probes  int `json:"probes"`
	Scrapes int `json:"scrapes"`
	Calls   int `json:"calls"`
}

// answer is one scrape.
type answer struct {
	// File with the body as it came over the wire; compressed once more where Packed is true, to keep it small.
	File            string `json:"file"`
	Packed          bool   `json:"packed,omitempty"`
	ContentType     string `json:"contentType"`
	ContentEncoding string `json:"contentEncoding,omitempty"`
	// Accept is what the request asked for.
	Accept string `json:"accept"`
	Sent   sent   `json:"sent"`
}

// captured is a file capture.json.
type captured struct {
	Runtime string `json:"runtime"`
	// Origin is "captured", or "constructed" where the software could not be had.
	Origin string `json:"origin"`
	// Versions of the software, one in a line.
	Versions []string `json:"versions"`
	Preset   string   `json:"preset"`
	// Path of the metrics.
	Path    string   `json:"path"`
	Env     []string `json:"env,omitempty"`
	Counts  counts   `json:"counts"`
	Answers []answer `json:"answers"`
}

const (
	text        = "text/plain;version=0.0.4"
	openMetrics = "application/openmetrics-text;version=1.0.0"
	protobuf    = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)

// driver sends requests to one running runtime and saves its answers.
type driver struct {
	r      runtime
	p      ports
	out    string
	sent   sent
	result captured
}

func capture(ctx context.Context, r runtime, source, dir, out string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK") }))
	defer elsewhere.Close()
	p, err := freePorts(ctx)
	if err != nil {
		return err
	}
	_, p.elsewhere, _ = net.SplitHostPort(elsewhere.Listener.Addr().String())
	versions, err := r.versions(ctx, dir)
	if err != nil {
		return fmt.Errorf("versions: %w", err)
	}
	if r.Language == "envoy" {
		stop, err := start(ctx, dir, []string{"./function"}, append(os.Environ(), "PORT="+p.function))
		if err != nil {
			return err
		}
		defer stop()
	}
	command, err := r.command(source, dir, p)
	if err != nil {
		return err
	}
	env := append(os.Environ(), "PORT="+p.inbound, "METRICS_PORT="+p.metrics,
		"SERVER_PORT="+p.inbound, "SERVER_ADDRESS=127.0.0.1", // Spring Boot
		"OTEL_METRICS_EXPORTER=prometheus", "OTEL_TRACES_EXPORTER=none", "OTEL_LOGS_EXPORTER=none", // OpenTelemetry
		"OTEL_EXPORTER_PROMETHEUS_HOST=127.0.0.1", "OTEL_EXPORTER_PROMETHEUS_PORT="+p.metrics)
	stop, err := start(ctx, dir, command, append(env, r.Env...))
	if err != nil {
		return err
	}
	defer stop()
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	origin := "captured"
	if r.Constructed {
		origin = "constructed"
	}
	d := &driver{r: r, p: p, out: out, result: captured{
		Runtime: r.Name, Origin: origin, Versions: strings.Split(versions, "\n"), Preset: r.Preset, Path: r.Path,
		Env: r.Env, Counts: r.Counts,
	}}
	if err := d.drive(ctx); err != nil {
		return err
	}
	body, err := json.MarshalIndent(d.result, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "capture.json"), append(body, '\n'), 0o644)
}

// drive is the whole story: before any request, while one is in flight, and after all.
func (d *driver) drive(ctx context.Context) error {
	if err := d.awaitReady(ctx); err != nil {
		return err
	}
	for range 3 {
		d.sent.Probes++
		if _, _, err := d.get(ctx, d.p.inbound, "/healthz", nil); err != nil {
			return err
		}
	}
	if err := errors.Join(d.scrape(ctx, "", text, ""), d.scrape(ctx, "idle.txt", text, "")); err != nil {
		return err
	}
	for _, q := range []string{"sleep=20", "sleep=20", "sleep=20", "sleep=20", "sleep=20", "fail=1"} {
		if err := d.request(ctx, http.MethodGet, q); err != nil {
			return err
		}
	}
	for range 3 {
		if err := d.request(ctx, http.MethodPost, "sleep=20"); err != nil {
			return err
		}
	}
	if err := d.call(ctx); err != nil {
		return err
	}
	held := make(chan error, 1)
	began := time.Now()
	go func() { held <- d.send(ctx, http.MethodGet, "/?sleep=2000") }()
	wait(ctx, 500*time.Millisecond) // the request is there, and no answer can be for 1.5 s
	d.sent.Started++
	if err := d.scrape(ctx, "busy.txt", text, ""); err != nil {
		return err
	}
	if err := <-held; err != nil {
		return err
	}
	d.sent.Ended++
	d.sent.AtLeastSeconds += 2
	d.sent.AtMostSeconds += time.Since(began).Seconds()
	settle := 200 * time.Millisecond // runtimes count after the client has its answer
	if d.r.Counts.LateDurations {
		settle = 6 * time.Second
	}
	wait(ctx, settle)
	return errors.Join(
		d.scrape(ctx, "served.txt", text, ""),
		d.scrape(ctx, "served.gzip", text, "gzip"),
		d.scrape(ctx, "served.openmetrics", openMetrics, ""),
		d.scrape(ctx, "served.protobuf", protobuf, ""),
	)
}

// call makes the runtime call another server, which is no request of the function.
func (d *driver) call(ctx context.Context) error {
	switch {
	case !d.r.Calls:
		return nil
	case d.r.Language == "envoy":
		d.sent.Calls++
		_, _, err := d.get(ctx, d.p.outbound, "/", nil)
		return err
	default:
		d.sent.Calls++
		return d.request(ctx, http.MethodGet, "call=http://127.0.0.1:"+d.p.elsewhere+"/")
	}
}

// request sends one request of the function and waits for its end.
func (d *driver) request(ctx context.Context, method, query string) error {
	began := time.Now()
	if err := d.send(ctx, method, "/?"+query); err != nil {
		return err
	}
	d.sent.Started++
	d.sent.Ended++
	d.sent.AtMostSeconds += time.Since(began).Seconds()
	switch query {
	case "sleep=20":
		d.sent.AtLeastSeconds += 0.02
	case "fail=1":
		d.sent.Failed++
	}
	return nil
}

func (d *driver) send(ctx context.Context, method, path string) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+d.p.inbound+path, strings.NewReader("data"))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/plain")
	if method == http.MethodGet {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// scrape saves one answer, or forgets it where there is no file. A format that the runtime does not offer, so that it
// gives plain text again, is not saved twice.
func (d *driver) scrape(ctx context.Context, file, accept, encoding string) error {
	port := d.p.inbound
	if d.r.OwnPort {
		port = d.p.metrics
	}
	header := http.Header{"Accept": {accept}, "Accept-Encoding": {"identity"}}
	if encoding != "" {
		header.Set("Accept-Encoding", encoding)
	}
	answered, body, err := d.get(ctx, port, d.r.Path, header)
	if err != nil {
		return err
	}
	now := d.sent
	d.sent.Scrapes++
	contentType, contentEncoding := answered.Get("Content-Type"), answered.Get("Content-Encoding")
	fmt.Printf("%-20s %6d bytes  %s %s\n", file, len(body), contentType, contentEncoding)
	plain := strings.HasPrefix(contentType, "text/plain") && contentEncoding == ""
	if file == "" || plain && (encoding != "" || accept != text) {
		return nil
	}
	packed := len(body) > 8<<10
	if packed {
		file += ".packed"
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(body); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		body = buf.Bytes()
	}
	d.result.Answers = append(d.result.Answers, answer{
		File: file, Packed: packed, ContentType: contentType, ContentEncoding: contentEncoding, Accept: accept, Sent: now,
	})
	return os.WriteFile(filepath.Join(d.out, file), body, 0o644)
}

func (d *driver) get(ctx context.Context, port, path string, header http.Header) (http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+path, nil)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(req.Header, header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return resp.Header, body, nil
}

// awaitReady probes until the function answers; all the probes that reached it count as probes.
func (d *driver) awaitReady(ctx context.Context) error {
	for {
		_, _, err := d.get(ctx, d.p.inbound, "/healthz", nil)
		if err == nil {
			d.sent.Probes++
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("never ready: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// wait passes the time that runtimes need for what nobody can see from outside.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// start runs a command in a process group of its own, which stop ends.
func start(ctx context.Context, dir string, command, env []string) (stop func(), err error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, env, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}, nil
}

// freePorts asks the kernel for ports.
func freePorts(ctx context.Context) (ports, error) {
	var p ports
	var config net.ListenConfig
	for _, port := range []*string{&p.inbound, &p.metrics, &p.admin, &p.function, &p.outbound} {
		l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return ports{}, err
		}
		defer func() { _ = l.Close() }()
		if _, *port, err = net.SplitHostPort(l.Addr().String()); err != nil {
			return ports{}, err
		}
	}
	return p, nil
}
