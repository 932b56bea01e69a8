package activator

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// sendH2 sends one request of raw fields and returns the status of its answer, or what ended it: "reset", "closed".
func sendH2(t *testing.T, address string, fields []hpack.HeaderField, body string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	// A header block beyond a frame's size goes on in continuations.
	const frame = 16 << 10
	rest := block.Bytes()
	first := rest[:min(len(rest), frame)]
	rest = rest[len(first):]
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(rest) == 0, EndStream: body == ""}); err != nil {
		t.Fatal(err)
	}
	for len(rest) > 0 {
		next := rest[:min(len(rest), frame)]
		rest = rest[len(next):]
		if err := fr.WriteContinuation(1, len(rest) == 0, next); err != nil {
			return "closed" // the server need not read to the end of what it refuses
		}
	}
	if body != "" {
		if err := fr.WriteData(1, true, []byte(body)); err != nil {
			return "closed"
		}
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if status := f.PseudoValue("status"); status != "" {
				return status
			}
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "closed"
		}
	}
}

// TestSmugglingFromHTTP2 sends in HTTP/2 what would be more than one request, or another one, when it is written as
// HTTP/1.1 to the pod.
func TestSmugglingFromHTTP2(t *testing.T) {
	const smuggle = "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.example.com\r\n\r\n"
	type fields map[string]string
	tests := []struct {
		name    string
		fields  fields // beside, and in place of, those of a GET of /a
		body    string
		answers []string // any of them
		pod     []string
	}{
		{name: "a plain request", answers: []string{"200"}, pod: []string{"GET /a hello.example.com"}},
		{name: "a coding", fields: fields{"transfer-encoding": "chunked"}, answers: []string{"reset", "400"}},
		{name: "a connection header", fields: fields{"connection": "keep-alive"}, answers: []string{"reset", "400"}},
		{name: "an upgrade", fields: fields{"upgrade": "websocket"}, answers: []string{"reset", "400"}},
		{name: "a value of two lines", fields: fields{"x-a": "b\r\nx-b: c"}, answers: []string{"reset"}},
		{name: "a name of two lines", fields: fields{"x-a: b\r\nx-b": "c"}, answers: []string{"reset"}},
		{name: "a name in capitals", fields: fields{"X-A": "b"}, answers: []string{"reset"}},
		{name: "a name with a colon", fields: fields{"x-a:": "b"}, answers: []string{"reset"}},
		{name: "a path of two lines", fields: fields{":path": "/a HTTP/1.1" + smuggle}, answers: []string{"reset"}},
		{
			name: "a path with a space", fields: fields{":path": "/a HTTP/1.1 b"}, answers: []string{"200", "400", "reset"},
			pod: []string{"GET /a%20HTTP/1.1%20b hello.example.com"},
		},
		{name: "a path that is none", fields: fields{":path": "a"}, answers: []string{"reset", "400"}},
		{name: "a method of two lines", fields: fields{":method": "GET / HTTP/1.1" + smuggle}, answers: []string{"reset"}},
		{name: "a method with a space", fields: fields{":method": "GET /smuggled HTTP/1.1\tX"}, answers: []string{"400"}},
		{name: "a method that is another request", fields: fields{":method": "GET /smuggled"}, answers: []string{"400"}},
		{name: "a host with a space", fields: fields{":authority": "hello.example.com /x"}, answers: []string{"400", "404", "reset"}},
		{name: "a host with a path", fields: fields{":authority": "hello.example.com/x"}, answers: []string{"400", "404", "reset"}},
		{name: "a host of two lines", fields: fields{":authority": "hello.example.com\r\nx-a: b"}, answers: []string{"reset"}},
		{
			name: "a host header beside the authority, which counts", fields: fields{"host": "other.example.com"},
			answers: []string{"200", "400", "reset"}, pod: []string{"GET /a hello.example.com"},
		},
		{
			name: "a body longer than it says", fields: fields{":method": "POST", "content-length": "1"}, body: "abc" + smuggle,
			answers: []string{"reset"}, pod: []string{"unreadable body: unexpected EOF"},
		},
		{
			name: "a body shorter than it says", fields: fields{":method": "POST", "content-length": "10"}, body: "abc",
			answers: []string{"reset", "400"}, pod: []string{"unreadable body: unexpected EOF"},
		},
		{name: "a length that is none", fields: fields{":method": "POST", "content-length": "3, 4"}, body: "abc", answers: []string{"reset", "400"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			throughBothDoors(t, func(t *testing.T, address string, fn *function, pod *strictPod) {
				var raw []hpack.HeaderField
				for _, f := range []hpack.HeaderField{
					{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/a"}, {Name: ":authority", Value: "hello.example.com"},
				} {
					if v, ok := tt.fields[f.Name]; ok {
						f.Value = v
					}
					raw = append(raw, f)
				}
				for k, v := range tt.fields {
					if !strings.HasPrefix(k, ":") {
						raw = append(raw, hpack.HeaderField{Name: k, Value: v})
					}
				}
				got := sendH2(t, address, raw, tt.body)
				if !slices.Contains(tt.answers, got) {
					t.Errorf("answered with %s, want any of %v", got, tt.answers)
				}
				eventually(t, "nothing in flight", func() bool { return fn.stats.snapshot().inFlight == 0 })
				// Of a request that is reset the pod may have seen a part.
				if got != "200" {
					for _, saw := range pod.all() {
						if !slices.Contains(tt.pod, saw) {
							t.Errorf("the pod saw %q", saw)
						}
					}
					return
				}
				if diff := cmp.Diff(tt.pod, pod.all()); diff != "" {
					t.Errorf("the pod saw (-want +got)\n%s", diff)
				}
			})
		})
	}
}
