//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// exchange is what a client and a function say to each other. But for TLS the client writes its HTTP/1.1 by itself, so that it
// is certain who speaks first.
type exchange struct {
	name     string
	requests int // as the gate counts
	tls      bool
	h2c      bool // is what the Service's port says
	talk     func(ctx context.Context, p peer) ([]seen, error)
}

// exchanges are those that pass through a door. The shared one is for HTTP.
func exchanges(door bool) []exchange {
	all := []exchange{
		{name: "head", requests: 2, talk: talkHead},
		{name: "kept", requests: 4, talk: talkKept},
		{name: "trailers", requests: 1, talk: talkTrailers},
		{name: "continue", requests: 2, talk: talkContinue},
		{name: "events", requests: 3, talk: talkEvents},
		{name: "websocket", requests: 1, talk: talkWebSocket},
		{name: "h2c", requests: 5, h2c: true, talk: talkH2},
		{name: "grpc", requests: 5, h2c: true, talk: talkGRPC},
	}
	if !door {
		all = append(all, exchange{name: "tls", requests: 1, tls: true, talk: talkTLS})
	}
	return all
}

// unchanged: through a door of mode Proxied, held and warm, a client sees of a function what it sees of the pod itself, and the
// pod of the client. Each exchange has a function of its own, which it finds asleep.
func unchanged(s *story, door bool) {
	var trust *x509.CertPool
	for _, e := range exchanges(door) {
		template := s.template(e.name)
		if e.tls {
			trust = s.secret("tls", s.host(e.name))
			speakTLS(&template.Spec, "tls")
		}
		s.deploy(e.name, 0, template)
		appProtocol := ""
		if e.h2c {
			appProtocol = "kubernetes.io/h2c"
		}
		s.serviceSpeaking(e.name, appProtocol)
		s.create(e.way(door).function(s, e.name))
	}
	for _, e := range exchanges(door) {
		s.Run(e.name, func(t *testing.T) {
			e.passes(&story{world: s.world, T: t, namespace: s.namespace}, door, trust)
		})
	}
}

func (e exchange) way(door bool) way { return way{mode: v1alpha1.Proxied, door: door, tcp: e.tls} }

// speakTLS has the sample function speak TLS with the certificate of a Secret.
func speakTLS(pod *corev1.PodSpec, secret string) {
	c := &pod.Containers[0]
	c.Args = []string{"--tls=/tls"}
	c.ReadinessProbe.HTTPGet.Scheme = corev1.URISchemeHTTPS
	c.VolumeMounts = []corev1.VolumeMount{{Name: "tls", MountPath: "/tls", ReadOnly: true}}
	pod.Volumes = []corev1.Volume{{
		Name: "tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}},
	}}
}

// passes makes the exchange while the function sleeps, while it is warm, and with its pod.
func (e exchange) passes(s *story, door bool, trust *x509.CertPool) {
	s.awaitPhase(e.name, v1alpha1.Idle, 30*time.Second)
	s.awaitGate(e.name, true)
	gate := peer{host: s.host(e.name), trust: trust}
	gate.address, _ = e.way(door).address(s, e.name)
	talks := 0
	through := func(ctx context.Context) (saw []seen, held bool) {
		talks++
		saw, err := e.talk(ctx, gate)
		if err != nil {
			s.Fatalf("talk number %d through the gate: %v", talks, err)
		}
		for i := range saw {
			held = held || saw[i].Header.Get("Sluice-Cold-Start") != ""
			saw[i].strip()
		}
		return saw, held
	}

	began := time.Now()
	cold, held := through(s.Context())
	s.Logf("held, and answered after %s", time.Since(began).Round(time.Millisecond))
	if !held && !e.tls {
		s.Error("no answer of the first talk says that it was held")
	}
	// The activator that has woken nobody may hear of the pod later.
	s.awaitPhase(e.name, v1alpha1.Active, 20*time.Second)
	var warm []seen
	eventually(s.T, 10*time.Second, "an exchange of which nothing is held", func(ctx context.Context) string {
		var held bool
		if warm, held = through(ctx); held {
			return "something of it was held"
		}
		return ""
	})
	pods := s.pods(e.name)
	if len(pods) != 1 {
		s.Fatalf("%d pods; want 1", len(pods))
	}
	want, err := e.talk(s.Context(), peer{address: net.JoinHostPort(pods[0].Status.PodIP, "8080"), host: gate.host, trust: trust})
	if err != nil {
		s.Fatalf("with the pod itself: %v", err)
	}
	for i := range want {
		want[i].strip()
	}
	for state, got := range map[string][]seen{"held": cold, "warm": warm} {
		if diff := cmp.Diff(want, got); diff != "" {
			s.Errorf("%s (-the pod +through the gate):\n%s", state, diff)
		}
	}
	if wakes := len(s.wakes(e.name)); wakes != 1 {
		s.Errorf("woken %d times; want once", wakes)
	}
	if n := s.activatorStarted(s.Context(), e.name); n != float64(talks*e.requests) {
		s.Errorf("%v requests were counted; want %d in each of %d talks", n, e.requests, talks)
	}
}

// peer is whom a client talks to: a door, or a pod.
type peer struct {
	address string
	host    string
	trust   *x509.CertPool // for TLS
}

// seen is what a client sees of an answer.
type seen struct {
	Proto           string
	Status          int
	Length          int64 // -1 where the end shows by itself
	Close           bool  // the connection ends with it
	Header, Trailer http.Header
	Body            string
	// Of TLS: the server's certificate, and what was agreed on.
	Certificate, Agreed string
}

// strip takes away what differs between two answers of a pod, or is the gate's to add: to the answer, and to the request as
// /echo tells of it.
func (a *seen) strip() {
	a.Header.Del("Date")
	a.Header.Del("Sluice-Cold-Start")
	var told map[string]any
	if json.Unmarshal([]byte(a.Body), &told) != nil {
		return
	}
	if header, ok := told["header"].(map[string]any); ok {
		for _, added := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Sluice-Via"} {
			delete(header, added)
		}
		body, _ := json.Marshal(told) // it was JSON
		a.Body = string(body)
	}
}

// see reads an answer to its end.
func see(res *http.Response) (seen, error) {
	defer res.Body.Close()
	a := seen{Proto: res.Proto, Status: res.StatusCode, Length: res.ContentLength, Close: res.Close, Header: res.Header}
	body, err := io.ReadAll(res.Body)
	a.Body, a.Trailer = string(body), res.Trailer // which come after it
	if err != nil {
		return a, fmt.Errorf("answer %d broke off: %w", res.StatusCode, err)
	}
	return a, nil
}

// wire is a connection of HTTP/1.1.
type wire struct {
	net.Conn
	host string
	r    *bufio.Reader
}

func (p peer) dial(ctx context.Context) (*wire, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		return nil, err
	}
	return &wire{conn, p.host, bufio.NewReader(conn)}, nil
}

// ask sends the head of a request, whose lines fields are, and what comes after it.
func (w *wire) ask(method, target, fields, rest string) error {
	_, err := fmt.Fprintf(w, "%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n%s", method, target, w.host, fields, rest)
	return err
}

// begun reads the head of the answer to a request of this method.
func (w *wire) begun(method string) (*http.Response, error) {
	return http.ReadResponse(w.r, &http.Request{Method: method})
}

// hear reads the next answer to a request of this method: a final one, or another one.
func (w *wire) hear(method string) (seen, error) {
	res, err := w.begun(method)
	if err != nil {
		return seen{}, err
	}
	return see(res)
}

// line is a request of one talk on one connection.
type line struct{ method, target, fields, rest string }

// talkLines sends the requests one after the other on one connection, each when the answer before has come to its end.
func talkLines(ctx context.Context, p peer, lines ...line) ([]seen, error) {
	w, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var saw []seen
	for _, l := range lines {
		if err := w.ask(l.method, l.target, l.fields, l.rest); err != nil {
			return saw, err
		}
		a, err := w.hear(l.method)
		if err != nil {
			return saw, err
		}
		saw = append(saw, a)
	}
	return saw, nil
}

// talkHead: after the answer to HEAD comes the next one, and no body.
func talkHead(ctx context.Context, p peer) ([]seen, error) {
	return talkLines(ctx, p, line{method: "HEAD", target: "/a%2Fb?x=1"}, line{method: "GET", target: "/"})
}

func talkKept(ctx context.Context, p peer) ([]seen, error) {
	return talkLines(ctx, p,
		line{method: "GET", target: "/echo?x=1;y=%zz", fields: "X-Two: a\r\nX-Two: b\r\nUser-Agent: e2e\r\n"},
		line{method: "POST", target: "/", fields: "Content-Length: 5\r\n", rest: "hello"},
		line{method: "DELETE", target: "/?status=404"},
		line{method: "PUT", target: "/echo", fields: "Content-Length: 0\r\n"})
}

func talkTrailers(ctx context.Context, p peer) ([]seen, error) {
	rest := "5\r\nhello\r\n"
	rest += fmt.Sprintf("%x\r\n%s\r\n", 64<<10, strings.Repeat("chunk of sixteen", 4<<10))
	rest += "0\r\nX-In: all of it\r\n\r\n"
	return talkLines(ctx, p,
		line{method: "POST", target: "/echo", fields: "Transfer-Encoding: chunked\r\nTrailer: X-In\r\nTE: trailers\r\n", rest: rest})
}

// talkContinue sends a body when it is asked for it, and none to a function that answers without.
func talkContinue(ctx context.Context, p peer) ([]seen, error) {
	const expects = "Expect: 100-continue\r\nContent-Length: 5\r\n"
	w, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.ask("POST", "/echo", expects, ""); err != nil {
		return nil, err
	}
	asked, err := w.hear("POST")
	if err != nil {
		return nil, err
	}
	if asked.Status != http.StatusContinue {
		return nil, fmt.Errorf("before the body: %d %q", asked.Status, asked.Body)
	}
	if _, err := io.WriteString(w, "hello"); err != nil {
		return nil, err
	}
	answer, err := w.hear("POST")
	if err != nil {
		return nil, err
	}
	refused, err := talkLines(ctx, p, line{method: "POST", target: "/?status=none", fields: expects})
	return append([]seen{asked, answer}, refused...), err
}

// talkEvents has each event but the first let go when the one before has come.
func talkEvents(ctx context.Context, p peer) ([]seen, error) {
	w, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.ask("GET", "/events?count=3&on=next", "Accept: text/event-stream\r\n", ""); err != nil {
		return nil, err
	}
	res, err := w.begun("GET")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	a, err := seeEvents(res, func() error {
		_, err := talkLines(ctx, p, line{method: "GET", target: "/next"})
		return err
	})
	return []seen{a}, err
}

// seeEvents reads an answer of three events, and lets the second and the third go when the one before has come.
func seeEvents(res *http.Response, next func() error) (seen, error) {
	var came strings.Builder
	events := bufio.NewReader(io.TeeReader(res.Body, &came))
	for i := range 3 {
		if i > 0 {
			if err := next(); err != nil {
				return seen{}, fmt.Errorf("let event %d go: %w", i, err)
			}
		}
		for said := "?"; said != "\n"; {
			var err error
			if said, err = events.ReadString('\n'); err != nil {
				return seen{}, fmt.Errorf("event %d, after %q: %w", i, came.String(), err)
			}
		}
	}
	res.Body = io.NopCloser(events)
	a, err := see(res)
	a.Body = came.String()
	return a, err
}

// talkWebSocket has words come back, and ends the WebSocket.
func talkWebSocket(ctx context.Context, p peer) ([]seen, error) {
	w, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://" + p.host + "\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	if err := w.ask("GET", "/ws", upgrade, ""); err != nil {
		return nil, err
	}
	a, err := w.hear("GET")
	if err != nil {
		return nil, err
	}
	const text, end = "\x81", "\x88" // RFC 6455, 5.2: of the only frame of a message
	for _, word := range []string{"one", "", strings.Repeat("long ", 20)} {
		if _, err := io.WriteString(w, frame(text, word)); err != nil {
			return nil, err
		}
		back := make([]byte, len(text)+1+len(word))
		if _, err := io.ReadFull(w.r, back); err != nil {
			return nil, fmt.Errorf("the echo of %q: %w", word, err)
		}
		if want := text + string(rune(len(word))) + word; string(back) != want {
			return nil, fmt.Errorf("%q came back as %q", word, back)
		}
	}
	if _, err := io.WriteString(w, frame(end, "")); err != nil {
		return nil, err
	}
	last, err := io.ReadAll(w.r)
	a.Body = string(last)
	return []seen{a}, err
}

// frame is one from a client, of a word below 126 bytes, masked by zeros.
func frame(kind, word string) string {
	return kind + string([]byte{0x80 | byte(len(word)), 0, 0, 0, 0}) + word
}

// talkTLS agrees on HTTP/2 with whoever has the certificate.
func talkTLS(ctx context.Context, p peer) ([]seen, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: p.trust, ServerName: p.host, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: callLimit,
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.address+"/echo", strings.NewReader("hello"))
	if err != nil {
		return nil, err
	}
	req.Host = p.host
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	a, err := see(res)
	a.Certificate, a.Agreed = fmt.Sprintf("%x", sha256.Sum256(res.TLS.PeerCertificates[0].Raw)), res.TLS.NegotiatedProtocol
	return []seen{a}, err
}
