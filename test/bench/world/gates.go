package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Gates stand in for activators, one at each address, which have seen requests for every function.
type Gates struct {
	Addresses []string
	// Functions is how many functions they know.
	Functions int
	// Busy is how many of them get a request each second at each gate. With none, the gates say that nothing has changed
	// since they were last asked.
	Busy int
}

// Serve answers scrapes until ctx ends.
func (g Gates) Serve(ctx context.Context) error {
	began := time.Now()
	text := exposition(began, g.Functions, g.Busy)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		step := 0
		if g.Busy > 0 {
			step = int(time.Since(began).Seconds())
		}
		tag := fmt.Sprintf(`"%x-%x"`, began.UnixNano(), step)
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		body := text.Append(make([]byte, 0, text.Len()), step)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	var running sync.WaitGroup
	defer running.Wait()
	for _, address := range g.Addresses {
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

// exposition is what an activator says that has served each of the functions and serves none now, or busy ones of them.
func exposition(began time.Time, functions, busy int) *Moving {
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
			fmt.Fprintf(&b, "%s{function=%q,namespace=%q} %s\n", family.name, FunctionName(i), Namespace, family.value)
		}
	}
	left := busy
	return NewMoving(b.Bytes(), func(line []byte) bool {
		if left == 0 || !bytes.HasPrefix(line, []byte(v1alpha1.ActivatorStarted+"{")) {
			return false
		}
		left--
		return true
	})
}
