package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// down ends whatever there is of the cluster. The caller holds the lock. Each step finds its own victims in the system
// rather than trusting that the step before left a certain state: half of the cluster may have been killed already.
func (l layout) down(ctx context.Context, log io.Writer) error {
	rec, err := l.loadRecord()
	if err != nil {
		return err
	}
	if !rec.ControlPlaneOnly && os.Geteuid() == 0 {
		if err := l.downNode(ctx, log, rec); err != nil {
			return err
		}
	} else if err := killAll(ctx, func() []identity { return l.survivors(rec) }); err != nil {
		return err
	}
	return l.removeState()
}

// downNode ends the full cluster.
func (l layout) downNode(ctx context.Context, log io.Writer, rec *record) error {
	victims := l.survivors(rec)
	if n := len(victims); n > 0 {
		fmt.Fprintf(log, "ending %d processes of %s\n", n, l.name)
	}
	if err := killAll(ctx, func() []identity { return l.survivors(rec) }); err != nil {
		return err
	}
	if err := l.removeCgroups(ctx); err != nil {
		return err
	}
	// Before any removal: RemoveAll would descend into what is mounted.
	if err := unmountBelow(ctx, l.dir, l.runDir(), l.kubeletDir()); err != nil {
		return err
	}
	// The namespace goes with its last reference; its interfaces (the pods' veths) go with it.
	if _, err := os.Stat(l.netnsPath()); err == nil {
		if err := unmount(l.netnsPath()); err != nil {
			return err
		}
		if err := os.Remove(l.netnsPath()); err != nil {
			return fmt.Errorf("removing network namespace: %w", err)
		}
	}
	l.removeShimSockets()
	l.removeStrays()
	for _, dir := range []string{l.runDir(), l.kubeletDir()} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing %s: %w", dir, err)
		}
	}
	return nil
}

// survivors lists the cluster's living processes: the recorded ones, those that carry its marker, and the containers'.
func (l layout) survivors(rec *record) []identity {
	var found []identity
	for _, p := range rec.Processes {
		if p.alive() {
			found = append(found, p.identity)
		}
	}
	found = append(found, l.marked()...)
	found = append(found, l.contained()...)
	slices.SortFunc(found, func(a, b identity) int { return a.PID - b.PID })
	return slices.Compact(found)
}

// stateFiles names what ends with the cluster.
func stateFiles() []string { return []string{"env", "kubeconfig", "state"} }

// removeState removes what ends with the cluster, and nothing else. The programs and images stay, because they take long
// to build; the logs, because they tell why a cluster died; and the lock, which the caller holds.
func (l layout) removeState() error {
	for _, name := range stateFiles() {
		if err := os.RemoveAll(l.path(name)); err != nil {
			return fmt.Errorf("removing state: %w", err)
		}
	}
	return nil
}

// removeLogs removes the logs of the cluster before, of its programs and of its pods, which a new one would mix its own
// with.
func (l layout) removeLogs() error {
	if err := os.RemoveAll(l.path("logs")); err != nil {
		return fmt.Errorf("removing old logs: %w", err)
	}
	if err := os.MkdirAll(l.path("logs"), 0o755); err != nil {
		return fmt.Errorf("creating the log directory: %w", err)
	}
	return nil
}
