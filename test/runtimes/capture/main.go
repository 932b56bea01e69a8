// Command capture runs each runtime that the presets know on loopback, sends it a known number of requests, and saves
// what it then exposes, with its Content-Type and the true numbers, as testdata for providers/requests. What it runs
// comes from the registries that go, pip, npm and mvn are set up for, into a directory that it removes.
//
//	go -C test/runtimes run ./capture -out ../../providers/requests/testdata [-work DIR] [NAME...]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
)

func main() {
	out := flag.String("out", "../../providers/requests/testdata", "directory to write captures to, one below it for each runtime")
	work := flag.String("work", "", "directory for the runtimes' dependencies, kept; empty for a temporary one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *work, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "capture:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out, work string, names []string) error {
	source, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(source, "kubeless-python")); err != nil {
		return fmt.Errorf("run it in test/runtimes: %w", err)
	}
	if work == "" {
		if work, err = os.MkdirTemp("", "runtimes-*"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	if work, err = filepath.Abs(work); err != nil {
		return err
	}
	for _, name := range names {
		if !slices.ContainsFunc(runtimes, func(r runtime) bool { return r.Name == name }) {
			return fmt.Errorf("there is no runtime %q", name)
		}
	}
	for _, r := range runtimes {
		if len(names) > 0 && !slices.Contains(names, r.Name) {
			continue
		}
		fmt.Println("==", r.Name)
		dir := filepath.Join(work, r.dir()+r.Manifest)
		if err := r.prepare(ctx, filepath.Join(source, r.dir()), dir); err != nil {
			return fmt.Errorf("prepare %s: %w", r.Name, err)
		}
		if err := capture(ctx, r, source, dir, filepath.Join(out, r.Name)); err != nil {
			return fmt.Errorf("capture %s: %w", r.Name, err)
		}
	}
	return nil
}
