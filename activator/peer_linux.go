package activator

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerClosed asks the kernel whether the other side of c has closed or reset it. Unread data does not matter: the
// connection's state changes when the FIN arrives, not when it is read.
func peerClosed(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && (info.State == unix.BPF_TCP_CLOSE || info.State == unix.BPF_TCP_CLOSE_WAIT)
	})
	return err == nil && closed
}
