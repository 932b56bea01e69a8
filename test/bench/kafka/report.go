package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// report prints what was seen of ours beside what was seen of the usual design, and has an error where a lag was not true.
func report(o options, ours, theirs sighting) error {
	fmt.Printf("\n%d groups on %d topics of %d partitions of one broker, measured every %s; a client each for %d of them.\n"+
		"%d cores; watched for %.0f s each, at a load of %s and %s before.\n",
		o.Groups, o.Topics, o.partitions, o.Interval, o.triggers,
		runtime.NumCPU(), ours.took.Seconds(), ours.load, theirs.load)
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(what, target, format string, a, b float64) {
		fmt.Fprintf(out, "%s\t%s\t"+format+"\t"+format+"\t%.4f\t\n", what, target, a, b, a/b)
	}
	fmt.Fprintln(out, "\ttarget\tSluice\ta client per trigger\tratio\t")
	row("all groups once, p50, ms", "", "%.1f", ms(world.At(ours.Cycles, 50)), ms(world.At(theirs.together, 50)))
	row("all groups once, p99, ms", "< 1000", "%.1f", ms(world.At(ours.Cycles, 99)), ms(world.At(theirs.together, 99)))
	row("CPU, % of a core", "< 25", "%.1f", ours.percent(ours.cpu), theirs.percent(theirs.cpu))
	row("resident, MB", "< 100", "%.1f", mb(ours.resident), mb(theirs.resident))
	row("resident at most, MB", "< 100", "%.1f", mb(ours.most), mb(theirs.most))
	row("connections to the broker", "< 10", "%.0f", float64(ours.connections), float64(theirs.connections))
	row("requests per interval", "", "%.1f", ours.perInterval(o.Interval), theirs.perInterval(o.Interval))
	row("the broker's CPU, % of a core", "", "%.1f", ours.percent(ours.brokerCPU), theirs.percent(theirs.brokerCPU))
	row("the broker's resident, MB", "", "%.0f", mb(ours.brokerResident), mb(theirs.brokerResident))
	row("answers per second", "", "%.0f", ours.rate(), theirs.rate())
	if err := out.Flush(); err != nil {
		return err
	}
	var errs []error
	for _, s := range []struct {
		name string
		*sighting
	}{{"Sluice", &ours}, {"a client per trigger", &theirs}} {
		fmt.Printf("%s: %d answers, %d failed, of %.0f that were due; %s\n", s.name, len(s.Polls)-s.Failed, s.Failed,
			float64(s.subjects)*s.took.Seconds()/o.Interval.Seconds(), s.requests())
		fmt.Printf("%s: one group took p50 %.1f ms, p99 %.1f ms; all lags were true %s the start, and %s records and commits\n",
			s.name, ms(world.At(s.Polls, 50)), ms(world.At(s.Polls, 99)), after(s.first), after(s.moved))
		if s.Error != "" {
			fmt.Printf("%s: the last failure: %s\n", s.name, s.Error)
		}
		fmt.Printf("%s: at the end %d lags were true, %d wrong, %d unknown\n", s.name, s.verdict.right, s.verdict.wrong, s.verdict.unknown)
	}
	// What the usual design does not know is its own matter; a lag that is wrong would be one of the benchmark's.
	if v := ours.verdict; v.wrong+v.unknown > 0 {
		errs = append(errs, fmt.Errorf("sluice: %w", v.err()))
	}
	if v := theirs.verdict; v.wrong > 0 {
		errs = append(errs, fmt.Errorf("a client per trigger: %w", v.err()))
	}
	fmt.Printf("rounds of Sluice: %d; of all triggers at once, after the span: %d, in which %d polls failed\n",
		len(ours.Cycles), len(theirs.together), theirs.unanswered)
	if ours.Failed > 0 {
		errs = append(errs, fmt.Errorf("sluice: %d answers are unknown: %s", ours.Failed, ours.Error))
	}
	if len(ours.Cycles) == 0 {
		errs = append(errs, errors.New("sluice: it made no round in the span"))
	}
	return errors.Join(errs...)
}

// after is when something was, if ever.
func after(d time.Duration) string {
	if d == 0 {
		return "never in " + patience.String() + " after"
	}
	return fmt.Sprintf("%.1f s after", d.Seconds())
}

// requests in the span, by their API.
func (s *sighting) requests() string {
	var all []string
	for _, api := range slices.SortedFunc(maps.Keys(s.Requests), func(a, b string) int { return cmp.Compare(s.Requests[b], s.Requests[a]) }) {
		if n := s.Requests[api]; n > 0 {
			all = append(all, fmt.Sprintf("%s %d", api, n))
		}
	}
	return "requests: " + strings.Join(all, ", ")
}

func (s *sighting) perInterval(interval time.Duration) float64 {
	sum := 0
	for _, n := range s.Requests {
		sum += n
	}
	return float64(sum) * interval.Seconds() / s.took.Seconds()
}

func (s *sighting) rate() float64 { return float64(len(s.Polls)-s.Failed) / s.took.Seconds() }

func (s *sighting) percent(cpu time.Duration) float64 { return 100 * float64(cpu) / float64(s.took) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }
