package main

import (
	"fmt"
	"net/netip"
	"syscall"
)

const (
	// network is the range of the pods' addresses. All of it leads to whoever listens.
	network = "10.250.0.0/16"
	// firstPort is that of the pods of the first process; that of the next ones follow.
	firstPort = 8080
	// gatesPort is where activators serve metrics.
	gatesPort = 9090
	// mostPods is how many addresses there are, without the first 256, which are the activators'.
	mostPods = 1<<16 - 1<<8
	// spare is how many files a process may need beside its connections to pods.
	spare = 500
)

// openFiles is how many files a process may have open.
func openFiles() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return int(min(limit.Cur, 1<<20)), nil
}

// podAddresses are where n pods of that many processes answer: those of one function at one process.
func podAddresses(n, perFunction, processes int) []netip.AddrPort {
	addresses := make([]netip.AddrPort, n)
	for i := range addresses {
		at := i + 1<<8
		addresses[i] = netip.AddrPortFrom(
			netip.AddrFrom4([4]byte{10, 250, byte(at >> 8), byte(at)}), uint16(firstPort+i/perFunction%processes))
	}
	return addresses
}

// gateAddresses are where the activators answer.
func gateAddresses() []netip.AddrPort {
	var addresses []netip.AddrPort
	for i := range byte(3) {
		addresses = append(addresses, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 250, 0, i + 1}), gatesPort))
	}
	return addresses
}
