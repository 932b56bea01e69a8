// Command find fetches the Prometheus server below the directory that it is given, unless it is there or in PATH: for
// tests that run in a network without a way out.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/test/prometheus"
)

func main() {
	dir := flag.String("dir", "", "directory for the unpacked package")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := prometheus.Find(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "find:", err)
		os.Exit(1)
	}
}
