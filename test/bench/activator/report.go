package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// row is one figure beside what it is to be. An empty string says that there is none.
type row struct {
	what, figure, floor, ratio, target string
	// met is whether the figure is as the target wants it; nil without a target.
	met *bool
}

type report []row

func (r report) print(to io.Writer) error {
	fmt.Fprintf(to, "\n%d cores, a load of %s at the end. The floor is of the same run.\n", runtime.NumCPU(), world.LoadAverage())
	out := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "what\tfigure\tfloor\tratio\ttarget\t")
	for _, row := range r {
		verdict := ""
		if row.met != nil {
			verdict = map[bool]string{true: "met", false: "MISSED"}[*row.met]
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\n", row.what, row.figure, row.floor, row.ratio, row.target, verdict)
	}
	return out.Flush()
}

// atMost and atLeast are rows of a figure with its target.
func atMost[T cmp.Ordered](what string, got, want T, show func(T) string) row {
	return row{what: what, figure: show(got), target: "<= " + show(want), met: new(got <= want)}
}

func atLeast[T cmp.Ordered](what string, got, want T, show func(T) string) row {
	return row{what: what, figure: show(got), target: ">= " + show(want), met: new(got >= want)}
}

func times(r float64) string { return fmt.Sprintf("%.3f", r) }

func whole(r float64) string { return fmt.Sprintf("%.0f", r) }

// brief shows three digits or so.
func brief(d time.Duration) string {
	switch a := d.Abs(); {
	case a >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case a >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case a >= 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case a >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(time.Microsecond).String()
	}
}

// median of values, which it sorts.
func median[T float64 | time.Duration](values []T) T {
	slices.Sort(values)
	switch n := len(values); {
	case n == 0:
		return 0
	case n%2 == 0:
		return (values[n/2-1] + values[n/2]) / 2
	default:
		return values[n/2]
	}
}

// quantile is the percentile of values in order of size, by nearest rank.
func quantile(values []time.Duration, percent float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	return values[max(0, int(math.Ceil(percent/100*float64(len(values))))-1)]
}
