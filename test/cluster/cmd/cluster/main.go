// Command cluster brings the project's test cluster up and down: a real one-node Kubernetes from Go modules.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/cluster/image"
)

const usage = `usage: cluster COMMAND [-dir DIR] [ARGUMENT...]

commands:
  build                                 compile the programs, unless they are up to date (cold: about 10 minutes)
  up                                    start the cluster or attach to it, and wait until it is ready (root)
  down                                  end it and remove all that it left on the machine (root)
  load TAR...                           make images available to pods
  image -o TAR -name REF -binary PATH   make an image of a static Go program
  env                                   print what a shell needs: eval "$(cluster env)"

-dir is the state directory (default: .cluster at the repository's root).
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// errUsage says that the command line is wrong and the usage is due.
var errUsage = errors.New("usage")

// run carries out one command line.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	if args[0] == "image" {
		return makeImage(args[1:])
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	opts := cluster.Options{Log: stdout}
	flags.StringVar(&opts.Dir, "dir", "", "state directory")
	if err := parse(flags, args[1:]); err != nil {
		return err
	}
	if flags.NArg() > 0 != (args[0] == "load") {
		return errUsage
	}
	switch args[0] {
	case "build":
		return cluster.Build(ctx, opts)
	case "up":
		_, err := cluster.Start(ctx, opts)
		return err
	case "down":
		return cluster.Down(ctx, opts)
	case "load":
		return load(ctx, opts, flags.Args())
	case "env":
		opts.Log = os.Stderr // what is on standard output goes into a shell
		return printEnv(ctx, opts, stdout)
	default:
		return errUsage
	}
}

// parse parses flags; a wrong one is named before the usage.
func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "cluster:", err)
		}
		return errUsage
	}
	return nil
}

func load(ctx context.Context, opts cluster.Options, tars []string) error {
	c, err := cluster.Attach(ctx, opts)
	if err != nil {
		return err
	}
	for _, tar := range tars {
		if err := c.LoadImage(ctx, tar); err != nil {
			return err
		}
		fmt.Fprintln(opts.Log, "loaded", tar)
	}
	return nil
}

func printEnv(ctx context.Context, opts cluster.Options, stdout io.Writer) error {
	c, err := cluster.Attach(ctx, opts)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(c.Dir(), "env"))
	if err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	_, err = stdout.Write(b)
	return err
}

func makeImage(args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var opts image.Options
	out := flags.String("o", "", "archive to write")
	flags.StringVar(&opts.Name, "name", "", "full reference")
	flags.StringVar(&opts.Binary, "binary", "", "static program")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *out == "" || opts.Name == "" || opts.Binary == "" || flags.NArg() > 0 {
		return errUsage
	}
	return image.Write(*out, opts)
}
