package prometheus

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/sluice-dev/sluice/providers"
)

// answering is a server whose answer is always the same.
type answering struct {
	status      int
	contentType string
	body        string
}

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: a.status, Header: http.Header{"Content-Type": {a.contentType}}, Body: io.NopCloser(strings.NewReader(a.body)),
	}, nil
}

// Whatever a server answers comes out as a number that is finite and not negative, or as an error on one short line.
func FuzzAnswer(f *testing.F) {
	for _, body := range []string{
		scalar("1"), scalar("NaN"), scalar("-1"), scalar("-0"), scalar("0x1p-2"), vector(), vector(element("3")), vector(element("+Inf"), "null"),
		vector(`{"metric":{},"histogram":[1,{"count":"5","sum":"10","buckets":[[0,"1","2","5"]]}]}`),
		vector(`{"value":[1,null]}`), vector(`{"value":[]}`), vector(`{"Value":[1,"1"],"value":[null]}`),
		`{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"2"]]}]}}`,
		`{"status":"success","warnings":["x\n"],"data":{"resultType":"vector","result":[]}}`,
		`{"status":"error","errorType":"bad_data","error":"\u0000\u202e"}`, "", "null", "[]", "<html>", `{"data":{"result":{}}}`,
	} {
		f.Add(200, "application/json", body, true)
	}
	f.Add(422, "application/json", `{"status":"error","errorType":"execution","error":"no"}`, false)
	f.Add(503, "text/html", "<html>", false)
	f.Add(302, "", "", false)
	f.Fuzz(func(t *testing.T, status int, contentType, body string, emptyIsZero bool) {
		transport := &http.Transport{}
		transport.RegisterProtocol("http", answering{status, contentType, body})
		c := &client{creds: &credentials{}, transport: transport}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		v, err := c.ask(ctx, providers.Server{Scheme: "http", Host: "a", Port: "80"}, providers.Ask{Expr: "x", EmptyIsZero: emptyIsZero}, time.Now())
		switch {
		case err == nil && (math.IsNaN(v) || math.IsInf(v, 0) || math.Signbit(v)):
			t.Errorf("the value is %g", v)
		case err == nil && status/100 != 2:
			t.Errorf("status %d gave the value %g", status, v)
		case err == nil && v == 0 && !emptyIsZero && !strings.ContainsAny(body, "0eEpP"): // 1e-999 is 0 too
			t.Errorf("a zero that nobody said: %q", body)
		case err != nil && (v != 0 || len(err.Error()) > textLimit+50 || !errors.Is(err, providers.ErrInvalid) ||
			strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) })):
			t.Errorf("%g, %q", v, err)
		}
	})
}
