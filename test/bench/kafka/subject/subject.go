// Package subject is how the benchmark looks into the programs that it measures, which are processes of their own: what
// they are to measure, what they say that the lag is, and how long that took them.
package subject

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"
)

// Options of a program that is measured.
type Options struct {
	// Address is where it is looked into, by HTTP.
	Address string
	// Servers of the Kafka cluster, host:port.
	Servers string
	// Groups in number, each of which consumes one of the Topics.
	Groups, Topics int
	// Interval at which each group is measured.
	Interval time.Duration
}

// Flags makes flags of o.
func (o *Options) Flags() {
	flag.StringVar(&o.Address, "address", "", "where the program is looked into")
	flag.StringVar(&o.Servers, "servers", "", "of the Kafka cluster")
	flag.IntVar(&o.Groups, "groups", 1000, "how many consumer groups there are")
	flag.IntVar(&o.Topics, "topics", 200, "how many topics there are, over which the groups are spread")
	flag.DurationVar(&o.Interval, "interval", 2*time.Second, "how often each group is measured")
}

// Args are o as flags.
func (o *Options) Args() []string {
	return []string{
		"-address", o.Address, "-servers", o.Servers, "-groups", fmt.Sprint(o.Groups), "-topics", fmt.Sprint(o.Topics),
		"-interval", o.Interval.String(),
	}
}

// Group is the name of the i-th group.
func Group(i int) string { return fmt.Sprintf("group-%04d", i) }

// TopicOf is the number of the topic that the i-th group consumes.
func (o *Options) TopicOf(i int) int { return i % o.Topics }

// Topic is the name of the i-th topic.
func Topic(i int) string { return fmt.Sprintf("topic-%03d", i) }

// Answer is the lag of a group.
type Answer struct {
	Lag int64
	// Unknown says why there is no Lag; else empty.
	Unknown string
}

// Seen is what a program did since it was last looked at.
type Seen struct {
	// Cycles are how long it took to measure all groups, from the first question to the last answer.
	Cycles []time.Duration
	// Polls are how long it took to measure one group.
	Polls []time.Duration
	// Failed polls, and the Error of the last one.
	Failed int
	Error  string
	// Requests to brokers, by their API.
	Requests map[string]int
}

// Subject is a program that is measured.
type Subject interface {
	// Lags are the latest answers, by group.
	Lags() []Answer
	// Seen is what it did since the last call.
	Seen() Seen
}

// Crowd is a Subject whose groups have turns of their own.
type Crowd interface {
	// Together measures all groups at once, out of turn, and returns when all have been.
	Together(ctx context.Context) error
}

// Serve lets s be looked into at address until ctx ends.
func Serve(ctx context.Context, address string, s Subject) error {
	mux := http.NewServeMux()
	say := func(path string, what func(context.Context) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := what(r.Context())
			body, errBody := json.Marshal(answer)
			if err := errors.Join(err, errBody); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(body) // who asks may be gone
		})
	}
	say("/lags", func(context.Context) (any, error) { return s.Lags(), nil })
	say("/seen", func(context.Context) (any, error) { return s.Seen(), nil })
	if crowd, ok := s.(Crowd); ok {
		say("/together", func(ctx context.Context) (any, error) { return struct{}{}, crowd.Together(ctx) })
	}
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.Handle("GET /debug/pprof/heap", pprof.Handler("heap"))
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Recorder keeps what polls took. Safe for concurrent use.
type Recorder struct {
	// Turns is how far apart turns are of all groups at once, each of which is a cycle; 0 where groups have turns of their
	// own.
	Turns time.Duration

	mu   sync.Mutex // protects following
	seen Seen
	// Of the cycle that is under way, or was last: when it began, and when the last answer came.
	began, ended time.Time
}

// Poll calls poll, and keeps how long it took.
func (r *Recorder) Poll(poll func() error) {
	began := time.Now()
	r.mu.Lock()
	if r.Turns > 0 && began.Sub(r.began) > r.Turns/2 {
		r.closeLocked()
		r.began = began
	}
	r.mu.Unlock()
	err := poll()
	ended := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen.Polls = append(r.seen.Polls, ended.Sub(began))
	if err != nil {
		r.seen.Failed++
		r.seen.Error = err.Error()
	}
	if ended.After(r.ended) {
		r.ended = ended
	}
}

func (r *Recorder) closeLocked() {
	if !r.began.IsZero() && r.ended.After(r.began) {
		r.seen.Cycles = append(r.seen.Cycles, r.ended.Sub(r.began))
	}
}

// Seen is what was kept since the last call.
func (r *Recorder) Seen() Seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = Seen{}
	return seen
}
