package activator

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
)

// rawPod answers each request with the same bytes and closes the connection after them, or sooner. It keeps the heads of
// the requests.
type rawPod struct {
	address string
	answer  string

	mu    sync.Mutex // protects following
	heads []string
}

func newRawPod(t *testing.T, answer string) *rawPod {
	t.Helper()
	ln := listen(t)
	p := &rawPod{address: ln.Addr().String(), answer: answer}
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for head := ""; ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if head += line; line == "\r\n" {
						p.mu.Lock()
						p.heads = append(p.heads, head)
						p.mu.Unlock()
						_, _ = io.WriteString(conn, p.answer)
						return
					}
				}
			})
		}
	})
	return p
}

// sorted brings the fields of each head in text into an order, because the order of maps is none. What a server adds of its
// own accord, the time, is left out.
func sorted(text, pod string) []string {
	text = strings.ReplaceAll(text, pod, "POD")
	var all []string
	for part := range strings.SplitSeq(text, "\r\n\r\n") {
		lines := strings.Split(part, "\r\n")
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "Date: ") })
		slices.Sort(lines[1:])
		all = append(all, lines...)
	}
	return all
}

// What a pod gets of a plain request and what the client gets of its answer is the same, to the byte, whether servePlain
// forwards it or ReverseProxy with its Transport; and whether the gate does that or hands it on to another, which does.
func TestPlainIsLikeReverseProxy(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"
	get := func(more ...string) string {
		return "GET / HTTP/1.1\r\nHost: h.example.com\r\n" + strings.Join(append(more, "Connection: close"), "\r\n") + "\r\n\r\n"
	}
	requests := map[string]string{
		"get":                    get("User-Agent: u", "Accept: */*"),
		"no host":                "GET / HTTP/1.0\r\n\r\n",
		"http 1.0":               "GET /x HTTP/1.0\r\nHost: h.example.com\r\nX: 1\r\n\r\n",
		"query":                  "GET /a%2Fb%20c;d?x=%zz;y&&z=%20+ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"bytes to escape":        "GET /a\"b<c>^`{|}\\?q=\"<> HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"two slashes":            "GET //other.example.com/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"question mark":          "GET /? HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"fragment":               "GET /a#b?c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"absolute":               "GET http://a.example.com/x?y HTTP/1.1\r\nHost: b.example.com\r\nConnection: close\r\n\r\n",
		"options of everything":  "OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"head":                   "HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"post of nothing":        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"put without a length":   "PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"delete":                 "DELETE / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"own method":             "PURGE / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
		"host with port":         "GET / HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: close\r\n\r\n",
		"host with zone":         "GET / HTTP/1.1\r\nHost: [fe80::1%25en0]:80\r\nConnection: close\r\n\r\n",
		"many values":            get("Cookie: a=1", "Cookie: b=2", "X-A: 1", "x-a: 2", "X-Empty:", "X-Space:  x  "),
		"no user agent":          get("Accept-Encoding: gzip", "Range: bytes=0-5", "If-None-Match: \"x\""),
		"empty user agent":       get("User-Agent:"),
		"two user agents":        get("User-Agent: a", "User-Agent: b"),
		"forwarded":              get("X-Forwarded-For: 1.2.3.4, 5.6.7.8", "X-Forwarded-For: 9.9.9.9", "X-Forwarded-Host: a", "X-Forwarded-Host: b", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1", "Forwarded: for=1.2.3.4"),
		"via":                    get("Sluice-Via: default/other", "Via: 1.1 x"),
		"hop by hop":             get("Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authorization: x", "Proxy-Authenticate: x"),
		"connection names":       "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
		"trailers wanted":        "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTE: trailers, deflate\r\n\r\n",
		"expects":                get("Expect: 100-continue"),
		"upgrade without a word": "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n",
		"tracing":                get("traceparent: 00-a-b-01", "event-id: 1", "ce-id: 2"),
	}
	answers := map[string]string{
		"ok":                    ok,
		"nothing":               "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"no content":            "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
		"not modified":          "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nEtag: x\r\n\r\n",
		"no type":               "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"chunked":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
		"announced trailers":    "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
		"trailers without word": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
		"one of two announced":  "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
		"until the end":         "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
		"events":                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nContent-Length: 8\r\n\r\ndata: 1\n",
		"hop by hop":            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\n\r\n",
		"many values":           "HTTP/1.1 500 Oh no\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty:\r\n\r\n",
		"early hints":           "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n" + ok,
		"continue":              "HTTP/1.1 100 Continue\r\n\r\n" + ok,
		"too many hints":        strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 7) + ok,
		"odd status":            "HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n",
		"short":                 "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
		"short chunk":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30\r\nabc",
		"no answer":             "",
		"half a header":         "HTTP/1.1 200 OK\r\nContent-Le",
		"no HTTP":               "SSH-2.0-OpenSSH_9.9\r\n\r\n",
		"two lengths":           "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello\n",
		"length and chunks":     "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"switches":              "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"large header":          "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxResponseHeader+1) + "\r\n\r\n",
		"long":                  "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("0123456789", 10000),
	}
	for name, request := range requests {
		t.Run("request "+name, func(t *testing.T) { bothWays(t, request, ok) })
	}
	for name, answer := range answers {
		t.Run("answer "+name, func(t *testing.T) { bothWays(t, get("User-Agent: u"), answer) })
	}
	for _, answer := range []string{"ok", "chunked", "announced trailers", "no content", "until the end"} {
		t.Run("answer to HEAD "+answer, func(t *testing.T) {
			head, _, _ := strings.Cut(answers[answer], "\r\n\r\n")
			bothWays(t, strings.Replace(get(), "GET", "HEAD", 1), head+"\r\n\r\n")
		})
	}
}

// bothWays sends request to a pod with the answer, by servePlain where that is for it, and by ReverseProxy.
func bothWays(t *testing.T, request, answer string) {
	t.Helper()
	type exchanged struct {
		Pod, Client []string
		Outcome     outcome
	}
	ask := func(through func(pod string) (*function, http.Handler)) (seen exchanged) {
		pod := newRawPod(t, answer)
		fn, h := through(pod.address)
		front := httptest.NewUnstartedServer(nil)
		front.Config = newServer(t.Context(), logr.Discard(), h)
		front.Start()
		t.Cleanup(front.Close)
		seen.Client = sorted(rawAsk(t, front.Listener.Addr().String(), request), pod.address)
		front.Close() // so that the request is finished
		pod.mu.Lock()
		seen.Pod = sorted(strings.Join(pod.heads, ""), pod.address)
		pod.mu.Unlock()
		for o, n := range fn.stats.snapshot().finished {
			if n > 0 {
				seen.Outcome = outcome(o)
			}
		}
		return seen
	}
	byReverseProxy := func(p *proxy, fn *function) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.serveBy(w, r, &exchange{fn: fn, gate: &gate{fn: fn}, start: fn.stats.start()}, p.serveAny)
		})
	}
	direct := func(h func(*proxy, *function) http.Handler) func(string) (*function, http.Handler) {
		return func(pod string) (*function, http.Handler) {
			p := newPlane(t, nil)
			fn := p.add(newTestFunction("hello"))
			p.pods("hello", pod)
			return fn, h(p.proxy, fn)
		}
	}
	handedOn := func(h func(*proxy, *function) http.Handler) func(string) (*function, http.Handler) {
		return func(pod string) (*function, http.Handler) {
			from, _, _ := handsOn(t, newTestFunction("hello", limited(1)), pod)
			return from.function(), h(from.proxy, from.function())
		}
	}
	byPlain := func(p *proxy, fn *function) http.Handler { return gateHandler(&gate{fn: fn}, p) }
	want := ask(direct(byReverseProxy))
	if diff := cmp.Diff(want, ask(direct(byPlain))); diff != "" {
		t.Errorf("-ReverseProxy +servePlain\n%s", diff)
	}
	if strings.HasPrefix(request, "HEAD ") {
		// Trailers that would come if it were no HEAD: net/http reads the field only of answers that are chunked.
		want.Client = slices.DeleteFunc(want.Client, func(l string) bool { return strings.HasPrefix(l, "Trailer: ") })
	}
	if diff := cmp.Diff(want, ask(handedOn(byPlain))); diff != "" {
		t.Errorf("-ReverseProxy +servePlain, handed on\n%s", diff)
	}
	if diff := cmp.Diff(want, ask(handedOn(byReverseProxy))); diff != "" {
		t.Errorf("-ReverseProxy +ReverseProxy, handed on\n%s", diff)
	}
}

// rawAsk sends request and returns all that comes.
func rawAsk(t *testing.T, address, request string) string {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer context.AfterFunc(t.Context(), func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return strconv.Quote(string(answer)) + " and then " + err.Error()
	}
	return string(answer)
}
