// The shape of Kubeless's Go runtime, and of the proxy that it puts before Ruby and PHP: calls counted as they begin,
// three metrics by method.
package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func main() {
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "function_calls_total", Help: "Number of calls to user function",
	}, []string{"method"})
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "function_failures_total", Help: "Number of exceptions in user function",
	}, []string{"method"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "function_duration_seconds", Help: "Duration of user function in seconds",
	}, []string{"method"})
	prometheus.MustRegister(calls, failures, duration)

	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "OK") })
	http.Handle("/metrics", promhttp.Handler())
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		calls.WithLabelValues(r.Method).Inc()
		start := time.Now()
		err := function(r)
		duration.WithLabelValues(r.Method).Observe(time.Since(start).Seconds())
		if err != nil {
			failures.WithLabelValues(r.Method).Inc()
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprint(w, "hello")
	})
	server := http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadHeaderTimeout: time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}

func function(r *http.Request) error {
	ms, _ := strconv.Atoi(r.FormValue("sleep")) // nothing asked: 0
	<-time.After(time.Duration(ms) * time.Millisecond)
	if r.FormValue("fail") != "" {
		return errors.New("as asked")
	}
	return nil
}
