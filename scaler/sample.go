package scaler

import (
	"fmt"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxAge is the age past which a value is unknown, and how far ahead of ours an adapter's clock may be.
const maxAge = 10 * time.Second

// maxExternalAge is that age for an external metric. Its source may be asked rarely; the adapter knows how often, and no
// longer lists a value that is too old for that.
const maxExternalAge = 5 * time.Minute

// ageLimit is the age past which a value of a metric is unknown.
func ageLimit(name string) time.Duration {
	if slices.Contains(requestMetrics, name) {
		return maxAge
	}
	return maxExternalAge
}

// sample is the last value of a metric, or why there is none.
type sample struct {
	Value float64
	// Time at which the value was true, by the clock of whoever measured it.
	Time time.Time
	// Polled is when the poll that brought the value began, by our own clock.
	Polled time.Time
	// QuietSince, of an external metric, is since when every poll knew it and found it not above its activation, by our
	// own clock; zero when the last one did not.
	QuietSince time.Time
	// Unknown says in words why there is no value, if the API says so.
	Unknown string
	// ReadError says in words why the last read failed, if it did. That says nothing about the value: the one before
	// it stays known until it is too old.
	ReadError string
}

// required are the metrics that must be known before the function may sleep: those it scales on, and, where requests
// can wake it, idle_seconds.
func required(fn *v1alpha1.Function) []string {
	names, _ := scaleMetrics(fn)
	if fn.MaySleep() && fn.Spec.Traffic != nil {
		names = append(names, v1alpha1.IdleSeconds)
	}
	return names
}

// wanted are the metrics that are read of a function that is awake.
func wanted(fn *v1alpha1.Function) []string {
	var names []string
	if fn.Spec.Traffic != nil {
		names = append(names, requestMetrics...)
	}
	return slices.Concat(names, externalNames(fn), boundNames(fn))
}

// externalNames are the names of the function's external metrics.
func externalNames(fn *v1alpha1.Function) []string {
	var names []string
	for _, m := range fn.ExternalMetrics() {
		names = append(names, m.Name)
	}
	return names
}

// idleFor is the value of idle_seconds as a duration.
func (s sample) idleFor() time.Duration { return time.Duration(s.Value * float64(time.Second)) }

// notRead says that no read of a metric has ended yet.
const notRead = "not read yet"

// read gives the value of a metric with its age, or why it is unknown.
func read(now time.Time, name string, samples map[string]sample) input {
	s, ok := samples[name]
	in := input{Name: name, Value: s.Value, Age: now.Sub(s.Time)}
	switch {
	case !ok:
		in.Unknown = notRead
	case s.Unknown != "":
		in.Unknown = s.Unknown
	case s.ReadError != "" && s.Polled.IsZero():
		in.Unknown = s.ReadError // there was never a value
	case in.Age > ageLimit(name):
		in.Unknown = fmt.Sprintf("the last value is more than %s old", ageLimit(name))
	case in.Age < -maxAge:
		in.Unknown = fmt.Sprintf("the value's time is more than %s ahead of the scaler's; compare the nodes' clocks", maxAge)
	case now.Sub(s.Polled) > maxAge:
		// Of a value that may be old at its source, this alone tells that it is not read any more.
		in.Unknown = fmt.Sprintf("it was last read more than %s ago", maxAge)
	}
	if in.Unknown != "" && s.ReadError != "" && in.Unknown != s.ReadError {
		in.Unknown += "; the last read failed: " + s.ReadError
	}
	// A clock a little ahead, or rounding, must not show as a negative age.
	in.Age = max(in.Age, 0)
	return in
}
