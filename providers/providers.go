// Package providers measures functions and remembers the result.
//
// It hides how numbers come about: who is asked (a Discovery says), how (a Source does it), when (the Collector owns
// every goroutine and clock), and how counters of processes that come, restart and go become one rate (the Store).
// What it gives out is a Value with the time at which it was true, or an Unknown that says why there is none. A value
// is never guessed: unknown is not zero, and no value is NaN, infinite or negative.
//
// The data flows one way: Discovery -> Collector -> Source -> Store -> whoever reads. Reading does no I/O.
package providers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Kind tells what sort of process a Target is.
type Kind string

const (
	// Activator is a replica of the gate. It counts for all functions at once.
	Activator Kind = "activator"
	// Pod is a pod of one function. It counts its own requests.
	Pod Kind = "pod"
	// Query is a query of one function to a server of another system. Its answer is one number.
	Query Kind = "query"
	// Lag is how far the consumer group of one function is behind at a Kafka cluster. Its answer is several numbers.
	Lag Kind = "lag"
)

// Target is one thing that is measured. Its fields are its identity: two Targets that differ in any field are two
// things with numbers of their own.
type Target struct {
	// Kind of the target.
	Kind Kind
	// Function that a Pod, a Query or a Lag belongs to; zero for an Activator.
	Function types.NamespacedName
	// UID of the pod behind the address, by which a new pod at an old address is told from the old pod.
	UID types.UID
	// Address is host:port of an Activator or a Pod.
	Address string
	// Scrape says how the Address is asked, and for what.
	Scrape Scrape
	// Ask is what a Query asks.
	Ask Ask
	// Consumer is whose Lag is measured.
	Consumer Consumer
}

// Scrape says how a process's exposition is fetched and what is read from it.
type Scrape struct {
	// TLS asks over https.
	TLS bool
	// InsecureSkipVerify, ServerName and CASecret are those of the Function's podMetrics.tls.
	InsecureSkipVerify   bool
	ServerName, CASecret string
	// Path of the exposition.
	Path string
	// Preset whose names are read where there is none here.
	Preset v1alpha1.PodMetricsPreset
	// Requests, InFlight and Duration name the counter, the gauge and the histogram or summary that a Pod exposes.
	Requests, InFlight, Duration string
}

// Ask is an instant query.
type Ask struct {
	// Metric is the name under which the answer is served.
	Metric string
	// Server is the base URL, Expr the expression with nothing left to fill in.
	Server, Expr string
	// AuthSecret names a Secret with credentials in the Function's namespace; empty for none.
	AuthSecret string
	// EmptyIsZero makes an answer without elements 0; otherwise it is an error.
	EmptyIsZero bool
}

// Consumer is a group that consumes topics of a Kafka cluster. Lists are in order, with a comma between their members.
type Consumer struct {
	// Name tells the Function's Consumers apart; see v1alpha1.KafkaLagMetric.
	Name string
	// Servers of the cluster, host:port.
	Servers string
	// Group and its Topics.
	Group, Topics string
	// Partitions that count, by number; empty for all.
	Partitions string
	// Reset and Isolation of the group's consumers.
	Reset     v1alpha1.KafkaOffsetReset
	Isolation v1alpha1.KafkaIsolation
	// AuthSecret names a Secret with credentials in the Function's namespace; empty for none.
	AuthSecret string
}

// Metric is the name under which the Consumer's metric of the kind is served: v1alpha1.KafkaLag and so on.
func (c *Consumer) Metric(kind string) string {
	m := v1alpha1.KafkaLagMetric{Name: c.Name}
	return m.Metric(kind)
}

// metrics are the names of what the target answers; none for targets that count requests.
func (t *Target) metrics() []string {
	switch t.Kind {
	case Query:
		return []string{t.Ask.Metric}
	case Lag:
		c := &t.Consumer
		return []string{
			c.Metric(v1alpha1.KafkaLag), c.Metric(v1alpha1.KafkaLagSeconds), c.Metric(v1alpha1.KafkaEndOffsetRate),
			c.Metric(v1alpha1.KafkaPartitions),
		}
	default:
		return nil
	}
}

// String names the target for people: "pod 10.0.0.7:8080", "query queue_depth at http://prometheus:9090".
func (t Target) String() string {
	switch t.Kind {
	case Query:
		return "query " + t.Ask.Metric + " at " + t.Ask.Server
	case Lag:
		return fmt.Sprintf("consumer group %q at %s", t.Consumer.Group, t.Consumer.Servers)
	}
	return string(t.Kind) + " " + t.Address
}

// Endpoint is a Target with what its discovery knows of it now.
type Endpoint struct {
	Target
	// Pod is the pod behind a Target of Kind Pod, with its labels.
	Pod Object
	// Ready is true while the target takes new requests. A target that is not ready and refuses connections does not
	// run: nothing there counts, and nobody waits for it.
	Ready bool
	// Expected is true while values need the target: without news of it they become unknown. A target that is not
	// expected is measured too, and what it says counts, but it is not missed.
	Expected bool
	// New is true when the target appeared while discovery was already looking, so that it has counted nothing yet.
	New bool
}

// Object is a Kubernetes object for which a function's values are served too.
type Object struct {
	// Kind and Resource of the object; zero where there is none.
	Kind     schema.GroupVersionKind
	Resource schema.GroupResource
	// Name of the object, in the Function's namespace.
	Name string
	// Labels of the object. Never written to.
	Labels map[string]string
	// Exists is false for an object that the Function names and that is not there.
	Exists bool
}

// Reading is what one target said of one function. Counters only grow while the process lives; they are in requests
// and in seconds.
type Reading struct {
	// Started counts requests since the process began.
	Started float64
	// BusySeconds and HeldSeconds are the time integrals of the requests in flight, and of those that wait for a pod.
	// Activators only.
	BusySeconds, HeldSeconds float64
	// InFlight is the number of requests in flight now.
	InFlight float64
	// DurationSeconds is the sum of the durations of the requests that ended, Durations their number. Pods only.
	DurationSeconds, Durations float64
	// Absent is true when the exposition says nothing of the counter of requests: there may be nothing counted yet, or
	// the counter has another name. Pods only.
	Absent bool
	// NoGauge is true when the exposition says nothing of the gauge of requests in flight, where one is asked for: there
	// may be none. Pods only.
	NoGauge bool
}

// Measurement is one complete answer of one target. A function that is absent from it reads zero.
type Measurement struct {
	// Value is the answer of a Query, which has no Functions.
	Value float64
	// Answers are those of a Lag, which has no Functions either.
	Answers []Answer
	// Partitions are what the Answers of a Lag are made of. The Store keeps the list, and writes nothing to it.
	Partitions []PartitionLag
	// Notices are what was noticed of the target lately, oldest first; mostly none. Those of the Measurements before may be
	// among them.
	Notices []Notice
	// At is when what is told was true, where that is before it was asked for; else zero.
	At time.Time
	// Unchanged says that Functions are those of the last Measurement of the target. They are there all the same.
	Unchanged bool
	// Start is when the process began; zero when the target does not say.
	Start time.Time
	// Functions by name. The Store keeps nothing of the map.
	Functions map[types.NamespacedName]Reading
}

// Answer is one number of several.
type Answer struct {
	// Metric is the name under which it is served.
	Metric string
	// Value is finite and not negative.
	Value float64
	// Window is the time over which it is a mean; 0 when it is none.
	Window time.Duration
	// Unknown says why there is no Value, although the target has answered; else empty.
	Unknown string
}

// Notice is something about a target that its function's owner should hear of once: no value, and no error.
type Notice struct {
	// At is when it was noticed.
	At time.Time
	// Reason in one word, as of an Event.
	Reason string
	// Key tells one occurrence from another of the same Reason, whoever noticed it and when.
	Key string
	// Text says what is the case, and what to do about it. It holds nothing of a Secret.
	Text string
}

// Source measures targets of one Kind.
//
// The Collector calls Measure from one goroutine per target, so concurrently for different targets, and for one target
// one call after the other (a target that left and came back may still be ending a call whose ctx has ended). ctx ends
// at the deadline of the measurement; Measure returns soon after. A Measurement is complete or it is an error: of a
// part of an answer nothing can be said.
type Source interface {
	Measure(ctx context.Context, t Target) (*Measurement, error)
}

// ErrInvalid is wrapped by the error of a Source whose target answered with something that cannot be used.
var ErrInvalid = errors.New("invalid answer")

// Discovery finds functions and targets.
//
// Run tells sink of all that exists, calls Synced once, then tells of every change until ctx ends, when it returns
// nil. It calls sink from one goroutine at a time.
type Discovery interface {
	Run(ctx context.Context, sink Sink) error
}

// Sink is told what to measure. Each call replaces what was said before of the same thing.
type Sink interface {
	// SetFunction adds or changes a function, with all of its pods and queries that are to be measured.
	SetFunction(fn Function, targets []Endpoint)
	// DeleteFunction forgets a function.
	DeleteFunction(name types.NamespacedName)
	// SetActivators names all activators.
	SetActivators(activators []Endpoint)
	// Synced says that everything that exists has been told.
	Synced()
}

// Intervals say how often each Kind of target is measured.
type Intervals struct {
	// Activator is the interval of activators. Default 1s.
	Activator time.Duration
	// Pod is the interval of pods. Default 2s.
	Pod time.Duration
	// Query is the interval of queries. Default 10s.
	Query time.Duration
	// Lag is the interval of consumer groups. Default 2s.
	Lag time.Duration
}

func (i Intervals) withDefaults() Intervals {
	if i.Activator <= 0 {
		i.Activator = time.Second
	}
	if i.Pod <= 0 {
		i.Pod = 2 * time.Second
	}
	if i.Query <= 0 {
		i.Query = 10 * time.Second
	}
	if i.Lag <= 0 {
		i.Lag = 2 * time.Second
	}
	return i
}

func (i Intervals) of(k Kind) time.Duration {
	switch k {
	case Pod:
		return i.Pod
	case Query:
		return i.Query
	case Lag:
		return i.Lag
	default:
		return i.Activator
	}
}

// staleAfter is the age from which a value that needs a source of this interval is unknown: three intervals, but at
// least 5 s, so that one slow answer at a short interval is not yet a gap.
func staleAfter(interval time.Duration) time.Duration { return max(3*interval, 5*time.Second) }

// Value is a number that was true at a time.
type Value struct {
	// Value in the metric's own unit: finite and not negative.
	Value float64
	// At is the time up to which everything that the value is made of had been observed.
	At time.Time
	// Window is the time before At over which the value is a mean; 0 when it is not a mean.
	Window time.Duration
}

// ErrNoFunction is returned for a function that does not exist.
var ErrNoFunction = errors.New("no such function")

// Reason is why a value is unknown, in one word.
type Reason string

const (
	// NoData means that not enough has been observed yet.
	NoData Reason = "NoData"
	// Stale means that a source that is needed has not answered for too long.
	Stale Reason = "Stale"
	// SourceError means that a source that is needed has never answered properly.
	SourceError Reason = "SourceError"
	// NoActivator means that no activator is listed, so that nobody can say what happens at the gate.
	NoActivator Reason = "NoActivator"
	// CounterMissing means that no pod of the function has ever exposed the counter that it is said to count by, so
	// that nobody knows whether it has that name.
	CounterMissing Reason = "CounterMissing"
	// NotCounted means that nobody counts this metric for the function, as it is configured.
	NotCounted Reason = "NotCounted"
	// NoMetric means that there is no metric of that name.
	NoMetric Reason = "NoMetric"
)

// Unknown is the error for a value that is not known. It is not zero.
type Unknown struct {
	// Reason in one word.
	Reason Reason
	// Source that is missing, where it is one: "activator 10.0.0.7:9090".
	Source string
	// Detail says what is missing, where the Reason alone does not: "no request ended in the window".
	Detail string
	// Age of what was last observed of Source. Set for Stale.
	Age time.Duration
	// Err is the last error of Source, if it had one.
	Err error
	// Remedy says what to do about NotCounted and CounterMissing.
	Remedy string
}

// Error gives the reason in words.
func (u *Unknown) Error() string {
	var s string
	switch u.Reason {
	case Stale:
		s = fmt.Sprintf("stale: the last answer of %s is %s old", u.Source, u.Age.Round(100*time.Millisecond))
	case SourceError:
		s = u.Source + " cannot be measured"
	case NoActivator:
		s = "no activator is listed, so nobody knows what happens at the gate"
	case NotCounted:
		s = "nobody counts it: " + u.Remedy
	case NoMetric:
		s = u.Detail
	case CounterMissing:
		s = u.Source + " " + u.Detail + ": " + u.Remedy
	default:
		s = "no data yet"
		switch {
		case u.Detail != "":
			s = "no data: " + u.Detail
		case u.Source != "":
			s += ": " + u.Source + " has not been measured long enough"
		}
	}
	if u.Err != nil {
		s += ": " + u.Err.Error()
	}
	return s
}

// Unwrap returns the last error of the source.
func (u *Unknown) Unwrap() error { return u.Err }
