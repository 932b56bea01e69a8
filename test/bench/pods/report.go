package main

import (
	"fmt"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/test/bench/world"
)

// report prints what was seen of the adapter beside what was seen of the floor.
func (b *bench) report(ours, theirs sighting) error {
	limit, err := openFiles()
	if err != nil {
		return err
	}
	answer, _, err := podAnswer()
	if err != nil {
		return err
	}
	fmt.Printf("\n%d pods of %d functions asked every %s, %d bytes each, and %d activators with all functions every second.\n"+
		"%d cores; %d open files allowed to a process; watched for %.0f s each, at a load of %s and %s before.\n",
		b.pods, b.functions, b.interval, answer.Len(), len(gateAddresses()),
		runtime.NumCPU(), limit, ours.took.Seconds(), ours.load, theirs.load)
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(what, format string, adapter, floor float64) {
		fmt.Fprintf(out, "%s\t"+format+"\t"+format+"\t%.2f\t\n", what, adapter, floor, adapter/floor)
	}
	fmt.Fprintln(out, "\tadapter\tfloor\tratio\t")
	row("CPU, % of a core", "%.1f", ours.percent(ours.cpu), theirs.percent(theirs.cpu))
	row("resident, MB", "%.0f", float64(ours.resident>>20), float64(theirs.resident>>20))
	row("resident at most, MB", "%.0f", float64(ours.most>>20), float64(theirs.most>>20))
	row("open files", "%.0f", float64(ours.files), float64(theirs.files))
	row("answers per second", "%.0f", ours.ok/ours.took.Seconds(), theirs.ok/theirs.took.Seconds())
	row("the pods' own CPU, % of a core", "%.1f", ours.percent(ours.podsCPU), theirs.percent(theirs.podsCPU))
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Printf("asked and not answered: adapter %v, floor %v\n", ours.failed, theirs.failed)
	fmt.Printf("pods without a sample of the last two intervals: %.2f %%\n", 100*float64(ours.old)/float64(looks*b.pods))
	fmt.Printf("age of a pod's value: p50 %s, p99 %s; of a function's: p50 %s, p99 %s (told in whole seconds, so up to 1 s less)\n",
		seconds(world.At(ours.podAges, 50)), seconds(world.At(ours.podAges, 99)),
		seconds(world.At(ours.ages, 50)), seconds(world.At(ours.ages, 99)))
	fmt.Printf("reads of a function's rate meanwhile: %d, p50 %s, p99 %s; without a value: %d\n", len(ours.reads),
		world.At(ours.reads, 50).Round(time.Microsecond), world.At(ours.reads, 99).Round(time.Microsecond), ours.unknown)
	fmt.Printf("rates of functions within %.0f %% of the truth: %d, others: %d\n", near*100, ours.near, ours.far)
	fmt.Printf("goroutines: %.0f; memory of heap and stacks: %.0f MB and %.0f MB\n", ours.goroutines, ours.heap/(1<<20), ours.stacks/(1<<20))
	fmt.Printf("garbage collections: %.0f, which stopped everything for %s in all\n", ours.gcs, ours.gcPauses.Round(time.Microsecond))
	return nil
}

func (s sighting) percent(cpu time.Duration) float64 { return 100 * float64(cpu) / float64(s.took) }

func seconds(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
