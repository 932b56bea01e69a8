package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"

	"github.com/sluice-dev/sluice/providers"
)

const (
	// answerLimit is the largest answer that is read, in bytes: more than a thousand elements, where one is wanted.
	answerLimit = 256 << 10
	// textLimit is the longest text of an error, in bytes. Our own words come first in it, those of the server are cut.
	textLimit = 400
)

// exchange is the http.RoundTripper of one query. It adds the credentials, and lets through only what can be an
// answer.
type exchange struct {
	transport     http.RoundTripper
	authorization string
	status        int    // of the last answer; 0 before there is one
	body          []byte // of the last answer, whole
}

// RoundTrip implements http.RoundTripper.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "sluice-adapter")
	if x.authorization != "" {
		req.Header.Set("Authorization", x.authorization)
	}
	resp, err := x.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	x.status = resp.StatusCode
	if err := checkHeader(resp); err != nil {
		return nil, err
	}
	if x.body, err = io.ReadAll(io.LimitReader(resp.Body, answerLimit+1)); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(x.body) > answerLimit {
		return nil, invalid("the answer has more than %d KiB, and one number is wanted: aggregate it, as by sum(...)", answerLimit>>10)
	}
	resp.Body = io.NopCloser(bytes.NewReader(x.body))
	return resp, nil
}

func checkHeader(resp *http.Response) error {
	switch media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); {
	case resp.StatusCode/100 == 3:
		return invalid("status %d, a redirect, which is not followed since credentials would go there too; "+
			"set server to where it leads: %s", resp.StatusCode, target(resp))
	case resp.Header.Get("Content-Encoding") != "":
		return invalid("the answer is compressed, which was not asked for: %s", resp.Header.Get("Content-Encoding"))
	case resp.StatusCode/100 == 2 && (err != nil || media != "application/json"):
		return invalid("the answer is not application/json; server is to be the base URL of a Prometheus API; the answer's content type: %s",
			resp.Header.Get("Content-Type"))
	}
	return nil
}

// target is where a redirect leads, without what may be secret in it.
func target(resp *http.Response) string {
	u, err := resp.Location()
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

// failure is an error of a query as people may see it. Of what happened it keeps but the sort, since the text of an
// error on the way may hold anything.
type failure struct {
	text string
	sort error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.sort }

// explain makes a failure of the error of a query that began at a time. status is that of the answer, or 0.
func (c *client) explain(ctx context.Context, err error, status int, began time.Time) error {
	if asked, ok := errors.AsType[*url.Error](err); ok { // its text has the URL, and with that the query
		err = asked.Err
	}
	api, isAPI := errors.AsType[*promv1.Error](err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &failure{"the query was given up", context.Canceled}
	case ctx.Err() != nil:
		return &failure{fmt.Sprintf("no complete answer after %s", time.Since(began).Round(100*time.Millisecond)), context.DeadlineExceeded}
	case isAPI:
		return &failure{providers.ErrInvalid.Error() + ": " + c.clean(describe(api, status)), providers.ErrInvalid}
	}
	f := &failure{text: c.clean(err.Error())}
	for _, sort := range []error{providers.ErrInvalid, syscall.ECONNREFUSED, context.DeadlineExceeded} {
		if errors.Is(err, sort) {
			f.sort = sort
			break
		}
	}
	return f
}

// describe tells what the server said, and what to do about it.
func describe(e *promv1.Error, status int) string {
	if status/100 == 2 && e.Type == promv1.ErrBadResponse {
		// Not the bytes that the parser quotes from around the place: they may be a piece of anything.
		what, _, _ := strings.Cut(e.Msg, ", error found in #")
		return "it is not that of a Prometheus API: " + what
	}
	said := string(e.Type) + ": " + e.Msg
	if e.Detail != "" {
		said = firstWords(e.Detail)
	}
	text := "status " + strconv.Itoa(status)
	if remedy := remedies[status]; remedy != "" {
		text += ", " + remedy
	}
	if said != "" {
		text += ": " + said
	}
	return text
}

var remedies = map[int]string{
	http.StatusBadRequest:          "the server does not understand the query",
	http.StatusUnauthorized:        "the server wants credentials, or others than those of authRef",
	http.StatusForbidden:           "the credentials of authRef do not allow the query",
	http.StatusNotFound:            "there is no Prometheus API below this address; server is to be its base URL",
	http.StatusUnprocessableEntity: "the server cannot evaluate the query",
	http.StatusTooManyRequests:     "the server has too many requests",
	http.StatusServiceUnavailable:  "the server gave up on the query, or is overloaded",
}

// firstWords is what an error's body says: the message, where it is JSON of a Prometheus API; its text, where it is not
// a page for a browser.
func firstWords(body string) string {
	var said struct{ ErrorType, Error, Message string }
	if json.Unmarshal([]byte(body), &said) == nil {
		switch {
		case said.ErrorType != "":
			return said.ErrorType + ": " + said.Error
		case said.Error != "":
			return said.Error
		}
		return said.Message
	}
	if strings.HasPrefix(strings.TrimSpace(body), "<") {
		return ""
	}
	return body
}

// clean makes foreign text fit for an error: on one line, short, and without credentials, which some servers repeat.
func (c *client) clean(text string) string {
	if c.creds.hide != nil {
		text = c.creds.hide.Replace(text)
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	return cut(strings.Join(strings.Fields(text), " "))
}

// cut ends text at textLimit, at a whole character.
func cut(text string) string {
	if len(text) <= textLimit {
		return text
	}
	end := textLimit
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}
