package cluster

import (
	"context"
	"fmt"
	"slices"
)

// StopPrograms ends programs of the cluster at once, by the names of their log files ("kube-apiserver"), and leaves the
// others alone. Until StartPrograms has them back the cluster is half dead, and a Start would replace it.
func (c *Cluster) StopPrograms(ctx context.Context, names ...string) error {
	return c.eachProgram(ctx, names, func(_ *record, p process) error { return p.end(ctx) })
}

// StartPrograms starts programs that StopPrograms has ended, one after the other, with the flags that they had. It waits for
// the API server to answer before it starts the next, and in the end.
func (c *Cluster) StartPrograms(ctx context.Context, names ...string) error {
	return c.eachProgram(ctx, names, func(rec *record, p process) error {
		if p.alive() {
			return fmt.Errorf("starting %s: it runs", p.Name)
		}
		if err := c.spawn(c.netns, rec, program{name: p.Name, path: c.program(p.binary()), args: p.Args}); err != nil {
			return err
		}
		// Those that are still to be started have not ended by themselves.
		to := names[slices.Index(names, p.Name)+1:]
		started := *rec
		started.Processes = slices.DeleteFunc(slices.Clone(rec.Processes), func(p process) bool { return slices.Contains(to, p.Name) })
		return c.waitAPI(ctx, &started)
	})
}

// eachProgram calls f with each of the recorded programs of these names, while no other command changes the cluster.
func (c *Cluster) eachProgram(ctx context.Context, names []string, f func(*record, process) error) error {
	unlock, err := c.lock(ctx, c.log)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.loadRecord()
	if err != nil {
		return err
	}
	for _, name := range names {
		i := slices.IndexFunc(rec.Processes, func(p process) bool { return p.Name == name })
		if i < 0 {
			return fmt.Errorf("the cluster %s has no program %q", c.name, name)
		}
		if err := f(rec, rec.Processes[i]); err != nil {
			return err
		}
	}
	return nil
}

// binary is the file that the program is in: one holds all of Kubernetes and etcd.
func (p process) binary() string {
	switch p.Name {
	case "containerd", "coredns":
		return p.Name
	default:
		return "kube"
	}
}

// end ends the process, if it runs, and waits until it is gone.
func (p process) end(ctx context.Context) error {
	return killAll(ctx, func() []identity {
		if p.alive() {
			return []identity{p.identity}
		}
		return nil
	})
}
