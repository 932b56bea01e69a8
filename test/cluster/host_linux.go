package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// checkHost tells whether this machine and user can run the full cluster.
func checkHost() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("the full cluster needs root, and this is uid %d: run it as root on Debian, or use any cluster of yours with `make install`; `make integration` needs no root", uid)
	}
	return nil
}

// inNetns calls fn on a thread that is in the network namespace called name, or in the caller's own if name is empty. A
// program that fn starts inherits the namespace.
//
// This, like nsenter, enters the network namespace and no other. `ip netns exec` would also mount a fresh /sys, which
// hides /sys/fs/cgroup: kubelet then dies with "failed to find cgroup mounts".
func inNetns(name string, fn func() error) error {
	if name == "" {
		return fn()
	}
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so that no other goroutine can land in the namespace.
		runtime.LockOSThread()
		result <- func() error {
			if insideNetns(name) {
				return fn() // setns needs privileges even when it changes nothing
			}
			f, err := os.Open("/run/netns/" + name)
			if err != nil {
				return fmt.Errorf("entering network namespace %s: %w", name, err)
			}
			defer func() { _ = f.Close() }()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering network namespace %s: %w", name, err)
			}
			return fn()
		}()
	}()
	return <-result
}

// insideNetns reports whether the calling thread is in the network namespace called name.
func insideNetns(name string) bool {
	var here, there unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &here) != nil || unix.Stat("/run/netns/"+name, &there) != nil {
		return false
	}
	return here.Dev == there.Dev && here.Ino == there.Ino
}

// dialer returns a function that dials from inside the network namespace called name. The address must be a literal IP:
// resolving a name would leave the thread that is in the namespace.
func dialer(name string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = inNetns(name, func() (err error) {
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

// detached makes a program a session of its own, so that neither the terminal's Ctrl-C nor its hang-up reaches it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// kill sends SIGKILL to p if it is still the process that was recorded. The pidfd pins the process between the check and
// the signal, so that a recycled pid cannot be hit.
func (p identity) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	return nil
}

// reap collects p if it is a dead child of this process, which nothing else waits for.
func (p identity) reap() {
	var status unix.WaitStatus
	_, _ = unix.Wait4(p.PID, &status, unix.WNOHANG, nil) // ECHILD: somebody else's child
}

// unmount detaches the file system at path, even when it is busy.
func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	return nil
}

// snapshotter is the containerd snapshotter that works on the file system of dir: an overlay cannot lie on an overlay.
func snapshotter(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

// lock takes the cluster's lock, waiting for whoever else brings it up or down. The kernel frees it when its holder dies.
func (l layout) lock(ctx context.Context, log io.Writer) (unlock func(), err error) {
	return lockFile(ctx, l.path("lock"), log)
}

func lockFile(ctx context.Context, path string, log io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	try := func(context.Context) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	if try(ctx) != nil {
		fmt.Fprintf(log, "waiting for another command that holds %s\n", path)
		err = poll(ctx, "the lock "+path, 100*time.Millisecond, try)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
