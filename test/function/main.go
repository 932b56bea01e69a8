// Command function is the sample HTTP function of Sluice's demo and end-to-end stories: one static binary that
// answers every request with the name of its pod, as slowly as it is told to, and counts what reached it.
//
// Paths of its own are /healthz, /metrics, /ids and /records, /unready, which has /healthz fail ?for=10s, and /next; every
// other path is a call. A call takes these query parameters:
//
//	delay=200ms    how long to wait before the answer, at most 60s; the default is --delay
//	status=503     the status to answer with, 200 to 599; the default is 200
//
// A call may carry the header X-Id; /ids then tells how many distinct ids this pod has seen and how many came twice. With
// --ids-to a collector is told every id, so that a call which came to two pods is seen too.
// It speaks HTTP/1.1 and, with prior knowledge, HTTP/2 without TLS; with --tls both by TLS alone.
//
// Calls of other kinds: /events sends ?count=3 server-sent events with ?delay between them, or with ?on=next each but the
// first when /next is asked for; /echo tells what came, headers, body and trailers, and ends in trailers of its own; /ws is
// a WebSocket that sends each message back; and gRPC's function.Echo, whose messages are google.protobuf.StringValue, has
// Unary (the message), Stream (it, count times, with a delay between them) and Chat (each message that comes). Metadata ask
// for delay, count, and the code to end with; x-id is the call's id.
//
// With --kafka-servers, --kafka-topic and --kafka-group it also consumes a topic, as a member of a group: it takes
// --kafka-delay for a record, writes the record's key to the topic --kafka-done, and commits afterwards, so that each
// record is worked on at least once. /records tells of keys what /ids tells of ids.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	os.Exit(run())
}

func run() int {
	// The function only waits and answers: one thread of Go code is enough, and many pods share a small node.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	addr, opts, err := parse(os.Args[1:], os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "function:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "function:", err)
		return 1
	}
	if err := Run(ctx, ln, opts); err != nil {
		fmt.Fprintln(os.Stderr, "function:", err)
		return 1
	}
	return 0
}

// parse reads flags, whose defaults come from the environment so that a manifest can set either.
func parse(args []string, getenv func(string) string) (addr string, opts Options, err error) {
	var delay, start time.Duration
	if delay, err = envDuration(getenv, "FUNCTION_DELAY"); err != nil {
		return "", Options{}, err
	}
	if start, err = envDuration(getenv, "FUNCTION_START_DELAY"); err != nil {
		return "", Options{}, err
	}
	name := getenv("POD_NAME")
	if name == "" {
		// In a pod, the host name is the pod's name.
		if name, err = os.Hostname(); err != nil {
			return "", Options{}, fmt.Errorf("no POD_NAME, and no host name: %w", err)
		}
	}
	fs := flag.NewFlagSet("function", flag.ContinueOnError)
	fs.StringVar(&addr, "listen", ":8080", "address to listen on")
	fs.StringVar(&opts.Name, "name", name, "name to answer with; default $POD_NAME, else the host name")
	fs.DurationVar(&opts.Delay, "delay", delay, "time that a call takes unless it says otherwise; default $FUNCTION_DELAY")
	fs.DurationVar(&opts.StartDelay, "start-delay", start,
		"time from start to ready; default $FUNCTION_START_DELAY")
	fs.DurationVar(&opts.Drain, "drain", 20*time.Second,
		"time that calls in flight, and the commit of records, have to finish after SIGTERM")
	fs.StringVar(&opts.TLS, "tls", "", "directory with tls.crt and tls.key, to speak TLS")
	fs.StringVar(&opts.IDsTo, "ids-to", "", "HOST:PORT to tell the id of every call, a line each: the pod's name and the id")
	fs.StringVar(&opts.Kafka.Servers, "kafka-servers", "", "brokers to consume from, HOST:PORT with a comma between them")
	fs.StringVar(&opts.Kafka.Topic, "kafka-topic", "", "topic to consume")
	fs.StringVar(&opts.Kafka.Group, "kafka-group", "", "group to consume as")
	fs.DurationVar(&opts.Kafka.Delay, "kafka-delay", 0, "time that the work on a record takes")
	fs.StringVar(&opts.Kafka.Done, "kafka-done", "", "topic to write the key of a record to when its work is done")
	if err := fs.Parse(args); err != nil {
		return "", Options{}, err
	}
	if fs.NArg() > 0 {
		return "", Options{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return addr, opts, opts.validate()
}

func envDuration(getenv func(string) string, name string) (time.Duration, error) {
	v := getenv(name)
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, fmt.Errorf("environment %s: %w", name, err)
	}
	return d, nil
}
