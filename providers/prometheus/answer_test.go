package prometheus

import (
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/providers"
)

func vector(elements ...string) string {
	return `{"status":"success","data":{"resultType":"vector","result":[` + strings.Join(elements, ",") + `]}}`
}

func element(value string) string { return `{"metric":{"a":"b"},"value":[1700000000,"` + value + `"]}` }

func scalar(value string) string {
	return `{"status":"success","data":{"resultType":"scalar","result":[1700000000,"` + value + `"]}}`
}

func TestAnswers(t *testing.T) {
	const empty = "the query's answer is empty: its series do not exist, or its selector is wrong; if that means that there is nothing to count, set emptyIs: Zero"
	tests := []struct {
		name, body  string
		emptyIsZero bool
		want        float64
		wantErr     string // after "invalid answer: "
	}{
		{name: "scalar", body: scalar("12.5"), want: 12.5},
		{name: "vector of one", body: vector(element("3")), want: 3},
		{name: "zero", body: vector(element("0")), want: 0},
		{name: "minus zero", body: scalar("-0"), want: 0},
		{name: "small", body: scalar("5e-324"), want: 5e-324},
		{name: "large", body: scalar("1.7976931348623157e308"), want: math.MaxFloat64},
		{name: "an info is no reason for doubt", body: strings.Replace(scalar("1"), "{", `{"infos":["PromQL info: metric might not be a counter"],`, 1), want: 1},
		{name: "empty", body: vector(), wantErr: empty},
		{name: "empty is zero", body: vector(), emptyIsZero: true, want: 0},
		{name: "several", body: vector(element("1"), element("2"), element("3")), emptyIsZero: true, wantErr: "the query's answer has 3 elements and one is wanted: aggregate them, as by sum(...)"},
		{name: "NaN", body: scalar("NaN"), wantErr: "the query's answer is NaN, as 0/0 is: keep the divisor above 0"},
		{name: "infinite", body: vector(element("+Inf")), wantErr: "the query's answer is infinite, as 1/0 is: keep the divisor above 0"},
		{name: "minus infinite", body: scalar("-Inf"), wantErr: "the query's answer is infinite, as 1/0 is: keep the divisor above 0"},
		{name: "negative", body: scalar("-2.5"), wantErr: "the query's answer is negative, -2.5: if that means none, use clamp_min(..., 0)"},
		{name: "too large for a number", body: scalar("1e999"), wantErr: "it is not that of a Prometheus API"},
		{name: "no number", body: scalar("seven"), wantErr: "it is not that of a Prometheus API"},
		{name: "range vector", body: `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"2"]]}]}}`, wantErr: "the query's answer is a range vector"},
		{name: "string", body: `{"status":"success","data":{"resultType":"string","result":[1,"x"]}}`, wantErr: `it is not that of a Prometheus API: unexpected value type "string"`},
		{name: "native histogram", body: vector(`{"metric":{},"histogram":[1,{"count":"5","sum":"10","buckets":[[0,"1","2","5"]]}]}`), wantErr: "the query's answer is a native histogram"},
		{name: "partial", body: strings.Replace(scalar("1"), "{", `{"warnings":["store 10.0.0.9: no answer","x"],`, 1), wantErr: "the server warns of its answer, which may be partial and is not used: store 10.0.0.9: no answer; x"},
		{name: "partial and empty", body: strings.Replace(vector(), "{", `{"warnings":["store gone"],`, 1), emptyIsZero: true, wantErr: "the server warns of its answer, which may be partial and is not used: store gone"},
		{name: "null is not empty", body: `{"status":"success","data":{"resultType":"vector","result":null}}`, emptyIsZero: true, wantErr: "the answer has no result"},
		{name: "no result", body: `{"status":"success","data":{"resultType":"vector"}}`, emptyIsZero: true, wantErr: "it is not that of a Prometheus API"},
		{name: "no data", body: `{"status":"success"}`, emptyIsZero: true, wantErr: "the answer has no result"},
		{name: "data is null", body: `{"status":"success","data":null}`, emptyIsZero: true, wantErr: "the answer has no result"},
		{name: "null element", body: vector("null"), wantErr: "the answer has an element without a value"},
		{name: "element without anything", body: vector("{}"), wantErr: "the answer has an element without a value"},
		{name: "value that is null", body: vector(`{"metric":{},"value":[1700000000,null]}`), wantErr: "the answer has an element without a value"},
		{name: "value that is missing", body: vector(`{"metric":{},"value":[1700000000]}`), wantErr: "the answer has an element without a value"},
		{name: "no success", body: `{"data":{"resultType":"vector","result":[]}}`, emptyIsZero: true, wantErr: "the answer is not marked as a success"},
		{name: "truncated", body: scalar("12")[:60], wantErr: "it is not that of a Prometheus API: unexpected end of JSON input"},
		{name: "nothing", body: "", wantErr: "it is not that of a Prometheus API: unexpected end of JSON input"},
		{name: "garbage", body: "<html>\x00\x1b[31m", wantErr: "it is not that of a Prometheus API: invalid character '<' looking for beginning of value"},
		{name: "more after it", body: scalar("1") + scalar("2"), wantErr: "it is not that of a Prometheus API: invalid character '{' after top-level value"},
		{name: "an error with status 200", body: `{"status":"error","errorType":"timeout","error":"too slow"}`, wantErr: "status 200: timeout: too slow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, func(w http.ResponseWriter, _ *http.Request) { says(w, http.StatusOK, tt.body) })
			target := query(srv.URL)
			target.Ask.EmptyIsZero = tt.emptyIsZero
			got, err := measure(t, newSource(t, &vault{}), target)
			switch {
			case tt.wantErr == "" && (err != nil || got != tt.want || math.Signbit(got)):
				t.Errorf("got %g, %v, want %g", got, err, tt.want)
			case tt.wantErr != "" && (err == nil || !strings.HasPrefix(err.Error(), "invalid answer: "+tt.wantErr)):
				t.Errorf("got  %v\nwant invalid answer: %s", err, tt.wantErr)
			case tt.wantErr != "" && !errors.Is(err, providers.ErrInvalid):
				t.Errorf("%v is not ErrInvalid", err)
			}
		})
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	tests := []struct {
		name, contentType, body string
		status                  int
		want                    string
	}{
		{
			"not PromQL", "application/json", `{"status":"error","errorType":"bad_data","error":"1:5: parse error: unexpected )"}`, 400,
			"invalid answer: status 400, the server does not understand the query: bad_data: 1:5: parse error: unexpected )",
		},
		{
			"cannot be evaluated", "application/json", `{"status":"error","errorType":"execution","error":"many-to-many matching not allowed"}`, 422,
			"invalid answer: status 422, the server cannot evaluate the query: execution: many-to-many matching not allowed",
		},
		{
			"gave up", "application/json", `{"status":"error","errorType":"timeout","error":"query timed out in expression evaluation"}`, 503,
			"invalid answer: status 503, the server gave up on the query, or is overloaded: timeout: query timed out in expression evaluation",
		},
		{
			"credentials", "text/plain", "Unauthorized\n", 401,
			"invalid answer: status 401, the server wants credentials, or others than those of authRef: Unauthorized",
		},
		{
			"a page for browsers", "text/html", "\n<html><h1>Forbidden</h1></html>", 403,
			"invalid answer: status 403, the credentials of authRef do not allow the query",
		},
		{
			"no API", "text/plain", "404 page not found", 404,
			"invalid answer: status 404, there is no Prometheus API below this address; server is to be its base URL: 404 page not found",
		},
		{
			"a gateway's JSON", "application/json", `{"message":"no route"}`, 502,
			"invalid answer: status 502: no route",
		},
		{"nothing said", "", "", 500, "invalid answer: status 500: server_error: server error: 500"},
		{"no content", "", "", 204, "invalid answer: the answer is not application/json; server is to be the base URL of a Prometheus API; the answer's content type:"},
		{"a page with status 200", "text/html; charset=utf-8", "<html>log in</html>", 200, "invalid answer: the answer is not application/json; server is to be the base URL of a Prometheus API; the answer's content type: text/html; charset=utf-8"},
		{
			"control characters", "text/plain", "a\x1b[31m\r\nlevel=info\x00 \u202egnp\xff", 500,
			"invalid answer: status 500: a [31m level=info gnp\uFFFD",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tt.contentType)
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			})
			_, err := measure(t, newSource(t, &vault{}), query(srv.URL))
			if err == nil || err.Error() != tt.want || !errors.Is(err, providers.ErrInvalid) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestForeignTextIsCut(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("größer ", 1000), 500) })
	_, err := measure(t, newSource(t, &vault{}), query(srv.URL))
	if err == nil || len(err.Error()) > textLimit+50 || !strings.HasSuffix(err.Error(), "...") || !utf8.ValidString(err.Error()) {
		t.Errorf("got %v", err)
	}
}
