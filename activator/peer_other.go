//go:build !linux

package activator

import "net"

// peerClosed cannot tell here; a held request whose client is gone keeps its place until the hold's timeout.
func peerClosed(net.Conn) bool { return false }

func nothingToRead(uintptr) bool { return true }

// peerReset cannot tell here; the end of a connection is passed on, but not that it was by a reset.
func peerReset(net.Conn) bool { return false }

func unread(net.Conn) bool { return false }
