package kafka

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// endsWithUs makes a process end with this one, however that ends: a test that runs into its timeout cleans nothing up.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// awaitStopped waits until every thread of a child that was sent SIGSTOP has stopped, or it has ended: until then it may
// still answer.
func awaitStopped(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil), syscall.EINTR) {
	}
}
