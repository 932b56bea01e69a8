// Command find fetches Kafka's jars below the directory that it is given, unless they are there: for tests that run in a
// network without a way out.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/test/kafka"
)

func main() {
	dir := flag.String("dir", "", "directory for the jars")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := kafka.Find(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "find:", err)
		os.Exit(1)
	}
}
