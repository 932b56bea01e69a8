package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// floorWorkers is over how many goroutines the fetches are spread: each waits for an answer before its next fetch.
const floorWorkers = 32

// floor fetches what the adapter fetches, as often, with a bare net/http client: it keeps its connections, and reads
// nothing in what it gets. It prints how many fetches it has made, and how many have failed, once a second.
func floor(ctx context.Context, o options) error {
	limit, err := openFiles()
	if err != nil {
		return err
	}
	var urls []string
	for _, address := range podAddresses(o.pods, o.perFunction, o.processes) {
		urls = append(urls, "http://"+address.String()+"/metrics")
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}
	client := &http.Client{Transport: transport, Timeout: o.interval * 8 / 10}
	var done, failed atomic.Int64
	fetch := func(url string, keep bool) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			failed.Add(1)
			return
		}
		req.Close = !keep
		resp, err := client.Do(req)
		if err != nil {
			failed.Add(1)
			return
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			failed.Add(1)
		}
		done.Add(1)
	}
	var running sync.WaitGroup
	for w := range floorWorkers {
		running.Go(func() {
			n := (len(urls) - w + floorWorkers - 1) / floorWorkers // this worker's
			pace(ctx, o.interval, n, func(i int) {
				i = w + i*floorWorkers
				fetch(urls[i], i < limit-spare)
			})
		})
	}
	for _, gate := range gateAddresses() {
		running.Go(func() {
			pace(ctx, time.Second, 1, func(int) { fetch("http://"+gate.String()+"/metrics", true) })
		})
	}
	pace(ctx, time.Second, 1, func(int) { fmt.Println(done.Load(), failed.Load()) })
	running.Wait()
	return nil
}

// pace calls do for each of 0..n-1 in every interval, until ctx ends.
func pace(ctx context.Context, interval time.Duration, n int, do func(i int)) {
	if n == 0 {
		return
	}
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i = (i + 1) % n {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		do(i)
		next = next.Add(interval / time.Duration(n))
		timer.Reset(time.Until(next))
	}
}
