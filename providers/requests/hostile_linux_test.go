package requests

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sluice-dev/sluice/providers"
)

// TestHostilePodCostsLittle: whatever a pod answers, in whatever format, is read or refused with the work and the memory
// that one stranger among thousands may take: not many times those of an ordinary answer of that size. Each of these cost
// seconds, minutes, or hundreds of megabytes, by the parsers' ways with what nobody writes.
func TestHostilePodCostsLittle(t *testing.T) {
	const most, mostBytes = 15, 100 << 20
	until := func(limit int, line func(i int) string) string {
		var s strings.Builder
		for i := 0; ; i++ {
			next := line(i)
			if s.Len()+len(next) > limit {
				return s.String()
			}
			s.WriteString(next)
		}
	}
	full := func(line func(i int) string) string { return until(podLimit, line) }
	family := func(kind uint64, metric ...byte) string {
		m := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "s_sum")
		m = protowire.AppendVarint(protowire.AppendTag(m, 3, protowire.VarintType), kind)
		m = append(m, bytes.Repeat(metric, (podLimit-len(m)-8)/len(metric))...)
		return string(protowire.AppendVarint(nil, uint64(len(m)))) + string(m)
	}
	const untyped = 3
	inOneMetric := bytes.Repeat([]byte{0x0a, 0}, 1<<20) // labels without name and value
	oneMetric := append(protowire.AppendVarint([]byte{0x22}, uint64(len(inOneMetric))), inOneMetric...)
	tests := []struct {
		name string
		body string
		as   format
	}{
		{"a line of labels", "s_sum{" + until(maxLine-100, func(i int) string { return fmt.Sprintf("l%d=\"\",", i) }) + "a=\"\"} 1\n", text},
		{"lines of many labels", full(func(int) string {
			var s strings.Builder
			for i := range 200 {
				fmt.Fprintf(&s, "l%d=\"\",", i)
			}
			return "s_sum{" + s.String() + "} 1\n"
		}), text},
		{"short lines in an unusual form", full(func(int) string { return "s_sum\t1\n" }), text},
		{"lines in braces", full(func(int) string { return "{\"s_sum\"} 1\n" }), text},
		{"short lines", full(func(int) string { return "s 1\n" }), text},
		{"sums that are NaN", until(oddLimit*9/10, func(i int) string { return fmt.Sprintf("s_sum{l=\"%d\"} NaN\n", i) }) +
			until(oddLimit, func(i int) string { return fmt.Sprintf("s_count{l=\"%d\"} 0\n", 50_000-i) }), text},
		{"empty metrics", family(untyped, 0x22, 0), protobuf},
		{"metrics of nothing", family(untyped, 0x22, 2, 0x2a, 0), protobuf},
		{"a metric of labels", family(untyped, oneMetric...), protobuf},
	}
	target := providers.Target{Kind: providers.Pod, Function: hello, Scrape: providers.Scrape{
		Path: "/metrics", Requests: "s", InFlight: "s_sum", Duration: "s",
	}}
	measure := func(body string, as format) (seconds float64, allocated uint64, err error) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := cpuTime()
		_, err = decodePod(&limitedReader{r: strings.NewReader(body), left: podLimit}, as, target)
		seconds = (cpuTime() - began).Seconds() // not the time that went by: others may want the machine
		runtime.ReadMemStats(&after)
		return seconds, after.TotalAlloc - before.TotalAlloc, err
	}
	ordinary, _, err := measure(full(func(i int) string { return fmt.Sprintf("s_sum{path=\"/api/v1/orders/%d\",method=\"GET\"} 1.5\n", i) }), text)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			work, allocated, err := measure(test.body, test.as)
			t.Logf("%.1f times as much work, %d MiB, %.100v", work/ordinary, allocated>>20, err)
			if err != nil && !errors.Is(err, providers.ErrInvalid) {
				t.Errorf("error %v is not that of an invalid answer", err)
			}
			if work > most*ordinary {
				t.Errorf("%.0f times the work of an ordinary answer", work/ordinary)
			}
			if allocated > mostBytes {
				t.Errorf("took %d MiB", allocated>>20)
			}
		})
	}
}
