package prometheus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"github.com/sluice-dev/sluice/providers"
)

// checkShape refuses what the client takes for 0: an element of a vector whose value is null or not there, and an answer
// that does not call itself a success. Unknown is not zero.
func checkShape(body []byte) error {
	var said struct {
		Status string
		Data   struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &said); err != nil || said.Status != "success" {
		return invalid("the answer is not marked as a success")
	}
	if said.Data.ResultType != "vector" {
		return nil
	}
	var elements []struct{ Value, Histogram []json.RawMessage }
	if err := json.Unmarshal(said.Data.Result, &elements); err != nil {
		return invalid("the answer's vector cannot be read: %v", err)
	}
	for _, e := range elements {
		if pair := slices.Concat(e.Value, e.Histogram); len(pair) != 2 || bytes.Equal(pair[1], []byte("null")) {
			return invalid("the answer has an element without a value")
		}
	}
	return nil
}

// valueOf returns the one number that an answer is. The error wraps providers.ErrInvalid and says what to change.
func valueOf(answer model.Value, warnings promv1.Warnings, emptyIsZero bool) (float64, error) {
	if len(warnings) > 0 {
		return 0, invalid("the server warns of its answer, which may be partial and is not used: %s", strings.Join(warnings, "; "))
	}
	var v model.SampleValue
	switch a := answer.(type) {
	case *model.Scalar:
		v = a.Value
	case model.Vector:
		switch {
		case a == nil: // null, where an answer without elements is []
			return 0, invalid("the answer has no result")
		case len(a) == 0 && emptyIsZero:
			return 0, nil
		case len(a) == 0:
			return 0, invalid("the query's answer is empty: its series do not exist, or its selector is wrong; " +
				"if that means that there is nothing to count, set emptyIs: Zero")
		case len(a) > 1:
			return 0, invalid("the query's answer has %d elements and one is wanted: aggregate them, as by sum(...)", len(a))
		case a[0] == nil:
			return 0, invalid("the answer has an element that is null")
		case a[0].Histogram != nil:
			return 0, invalid("the query's answer is a native histogram: make a number of it, as by histogram_count(...)")
		}
		v = a[0].Value
	case model.Matrix:
		return 0, invalid("the query's answer is a range vector: make one number of it, as by sum(rate(...))")
	case *model.String:
		return 0, invalid("the query's answer is a string: a number is wanted")
	default:
		return 0, invalid("the answer has no result")
	}
	return number(float64(v))
}

// number lets nothing pass that is not a quantity.
func number(v float64) (float64, error) {
	switch {
	case math.IsNaN(v):
		return 0, invalid("the query's answer is NaN, as 0/0 is: keep the divisor above 0")
	case math.IsInf(v, 0):
		return 0, invalid("the query's answer is infinite, as 1/0 is: keep the divisor above 0")
	case v < 0:
		return 0, invalid("the query's answer is negative, %g: if that means none, use clamp_min(..., 0)", v)
	case v == 0:
		return 0, nil // -0 too
	}
	return v, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", providers.ErrInvalid, fmt.Sprintf(format, args...))
}
