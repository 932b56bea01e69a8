package activator

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerClosed asks the kernel whether the other side of c has closed or reset it. Unread data does not matter: the
// connection's state changes when the FIN arrives, not when it is read.
func peerClosed(c net.Conn) bool {
	state, ok := tcpState(c)
	return ok && (state == unix.BPF_TCP_CLOSE || state == unix.BPF_TCP_CLOSE_WAIT)
}

// peerReset asks the kernel whether the other side of c has reset it, or was given up.
func peerReset(c net.Conn) bool {
	state, ok := tcpState(c)
	return ok && state == unix.BPF_TCP_CLOSE
}

func tcpState(c net.Conn) (state uint8, ok bool) {
	control(c, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if ok = err == nil; ok {
			state = info.State
		}
	})
	return state, ok
}

// unread asks the kernel whether the other side of c has said something that was not read.
func unread(c net.Conn) (some bool) {
	control(c, func(fd int) {
		n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		some = err == nil && n > 0
	})
	return some
}

func control(c net.Conn, do func(fd int)) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { do(int(fd)) })
}

// nothingToRead tells whether the connection stands and the other side has said nothing.
func nothingToRead(fd uintptr) bool {
	var b [1]byte
	_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return errors.Is(err, unix.EAGAIN)
}
