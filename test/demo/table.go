package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// reading is the value of a metric, or why there is none.
type reading struct {
	value float64
	err   error
}

func (r reading) cell() string {
	if r.err != nil {
		return "unknown"
	}
	return number(r.value)
}

// row is the cluster and the load at one time.
type row struct {
	at       time.Duration // since the load began
	offered  float64       // requests per second
	rate     reading       // requests_per_second
	inFlight reading       // requests_in_flight
	replicas int32         // that the Deployment asks for
	ready    int32
	hpa      string // current value and target of the HorizontalPodAutoscaler
	failed   int
	err      error // why replicas, ready or hpa could not be read
}

var columns = []struct {
	title string
	width int
}{
	{"TIME", 6},
	{"OFFERED/S", 10},
	{"REQUESTS_PER_SECOND", 20},
	{"IN_FLIGHT", 10},
	{"REPLICAS", 9},
	{"READY", 6},
	{"HPA TARGET", 18},
	{"FAILED", 7},
}

func tableHeader() string {
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	return align(titles)
}

func (r row) String() string {
	replicas, ready := strconv.Itoa(int(r.replicas)), strconv.Itoa(int(r.ready))
	if r.err != nil {
		replicas, ready = "?", "?"
	}
	lines := []string{align([]string{
		clock(r.at), number(r.offered), r.rate.cell(), r.inFlight.cell(), replicas, ready, r.hpa, strconv.Itoa(r.failed),
	})}
	for _, note := range r.notes() {
		lines = append(lines, strings.Repeat(" ", columns[0].width+1)+note)
	}
	return strings.Join(lines, "\n")
}

// notes are the reasons of what is unknown in the row, each said once.
func (r row) notes() []string {
	var notes []string
	if r.rate.err != nil {
		notes = append(notes, "requests_per_second is unknown: "+oneLine(r.rate.err))
	}
	if r.inFlight.err != nil && (r.rate.err == nil || oneLine(r.inFlight.err) != oneLine(r.rate.err)) {
		notes = append(notes, "requests_in_flight is unknown: "+oneLine(r.inFlight.err))
	}
	if r.err != nil {
		notes = append(notes, oneLine(r.err))
	}
	return notes
}

func align(cells []string) string {
	var b strings.Builder
	for i, c := range columns {
		fmt.Fprintf(&b, "%*s", c.width, cells[i])
	}
	return b.String()
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// clock writes d as minutes and seconds.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// number writes v with one decimal, and without one where it is whole.
func number(v float64) string { return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") }

// hpaCell writes what the autoscaler compares: the value per replica and its target, as in "12.5/50 (avg)".
func hpaCell(hpa *autoscalingv2.HorizontalPodAutoscaler, metric string) string {
	target, current := "unknown", "unknown"
	for _, m := range hpa.Spec.Metrics {
		if m.Object != nil && m.Object.Metric.Name == metric {
			target = quantity(m.Object.Target.AverageValue)
		}
	}
	for _, m := range hpa.Status.CurrentMetrics {
		if m.Object != nil && m.Object.Metric.Name == metric {
			current = quantity(m.Object.Current.AverageValue)
		}
	}
	return fmt.Sprintf("%s/%s (avg)", current, target)
}

func quantity(q *resource.Quantity) string {
	if q == nil {
		return "unknown"
	}
	return number(q.AsApproximateFloat64())
}
