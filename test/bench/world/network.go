package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/sluice-dev/sluice/test/cluster"
)

// Isolated runs this program again with its own arguments, -role=inside and -dir, the directory for a control plane, in
// a network namespace of its own. That needs root. What the program leaves should it be killed ends with it.
func Isolated(ctx context.Context, state string) (err error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return err
	}
	defer func() {
		root, errRoot := filepath.Abs("../..")
		errDown := cluster.Down(context.WithoutCancel(ctx), cluster.Options{
			ControlPlaneOnly: true, Root: root, Dir: dir, BinDir: filepath.Join(state, "bin"),
		})
		err = errors.Join(err, errRoot, errDown, os.RemoveAll(dir))
	}()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"-role=inside", "-dir=" + dir}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGTERM, // should this process be killed, the other ends what it has started
	}
	return cmd.Run()
}

// PrepareNetwork sets up the network namespace that the process is in: all addresses of the range lead to whoever
// listens in it. EndpointSlices may not name loopback addresses, but these.
func PrepareNetwork(ctx context.Context, addresses string) error {
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"route", "add", "local", addresses, "dev", "lo"}} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	return nil
}
