package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// gates stands in for activators, one at each address, which have seen requests for every function and see none now.
func gates(ctx context.Context, addresses []string, functions int) error {
	began := time.Now()
	text := exposition(began, functions)
	tag := fmt.Sprintf(`"%x"`, began.UnixNano())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Write(text)
	})
	var running sync.WaitGroup
	defer running.Wait()
	for _, address := range addresses {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
		running.Go(func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				fmt.Println("gates:", err)
			}
		})
		context.AfterFunc(ctx, func() { _ = server.Close() })
	}
	<-ctx.Done()
	return nil
}

// exposition is what an activator says that has served each of the functions and serves none.
func exposition(began time.Time, functions int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %d\n", began.Unix())
	for _, family := range []struct {
		name, kind, value string
	}{
		{v1alpha1.ActivatorStarted, "counter", "12345"},
		{v1alpha1.ActivatorInFlight, "gauge", "0"},
		{v1alpha1.ActivatorHeld, "gauge", "0"},
		{v1alpha1.ActivatorBusySeconds, "counter", "678.901234567"},
		{v1alpha1.ActivatorHeldSeconds, "counter", "12.345678901"},
	} {
		fmt.Fprintf(&b, "# TYPE %s %s\n", family.name, family.kind)
		for i := range functions {
			fmt.Fprintf(&b, "%s{function=%q,namespace=%q} %s\n", family.name, functionName(i), namespace, family.value)
		}
	}
	return b.Bytes()
}
