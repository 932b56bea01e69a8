package providers

import (
	"fmt"
	"net/netip"
	"slices"
)

// Addresses besides link-local ones at which clouds serve credentials to whoever runs on their machines.
var metadataServers = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"), netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("168.63.129.16"),
}

// CheckAddress refuses addresses that are not those of a server that others can reach too: what listens there trusts
// whoever can ask it, and a Function's author may not ask through the adapter. It is for the Control of a net.Dialer,
// which sees the address, host:port, after resolution, so that no name gets around it.
func CheckAddress(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s: %w", address, err)
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.Contains(metadataServers, ip) {
		return fmt.Errorf("%s is an address of the adapter's own machine or of its cloud's metadata", ip)
	}
	return nil
}
