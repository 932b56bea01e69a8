package scaler

import (
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// maxAge is the age past which a value is unknown, and how far ahead of ours an adapter's clock may be.
const maxAge = 10 * time.Second

// sample is the last value of a metric, or why there is none.
type sample struct {
	Value float64
	// Time at which the value was true, by the clock of whoever measured it.
	Time time.Time
	// Polled is when the poll that brought the value began, by our own clock.
	Polled time.Time
	// Unknown says in words why there is no value, if the API says so.
	Unknown string
	// ReadError says in words why the last read failed, if it did. That says nothing about the value: the one before
	// it stays known until it is too old.
	ReadError string
}

// required are the metrics that must be known before the function may sleep: those it scales on, and idle_seconds.
func required(fn *v1alpha1.Function) []string {
	var names []string
	for _, m := range fn.Spec.Metrics {
		switch {
		case m.RequestRate != nil:
			names = append(names, v1alpha1.RequestsPerSecond)
		case m.Concurrency != nil:
			names = append(names, v1alpha1.RequestsInFlight)
		}
	}
	if fn.MaySleep() {
		names = append(names, v1alpha1.IdleSeconds)
	}
	return names
}

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
	case in.Age > maxAge:
		in.Unknown = fmt.Sprintf("the last value is more than %s old", maxAge)
	case in.Age < -maxAge:
		in.Unknown = fmt.Sprintf("the value's time is more than %s ahead of the scaler's; compare the nodes' clocks", maxAge)
	}
	if in.Unknown != "" && s.ReadError != "" && in.Unknown != s.ReadError {
		in.Unknown += "; the last read failed: " + s.ReadError
	}
	// A clock a little ahead, or rounding, must not show as a negative age.
	in.Age = max(in.Age, 0)
	return in
}
