package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

// ErrForbidden is wrapped by every refusal to dial an address that is neither loopback nor allowed.
var ErrForbidden = errors.New("is neither a loopback address nor allowed")

func permitted(addr netip.Addr, allow []netip.Prefix) bool {
	addr = addr.Unmap().WithZone("")
	return addr.IsLoopback() || slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// NewTransport returns a transport that dials loopback addresses and those in allow only, and no proxy. The check is
// made on the address of each connection, after names are resolved, so that no name can lead it elsewhere. maxIdle
// connections are kept per host; 0 means that every request makes its own.
func NewTransport(allow []netip.Prefix, maxIdle int) *http.Transport {
	dialer := &net.Dialer{
		Timeout: 5 * time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			target, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, err)
			}
			if !permitted(target.Addr(), allow) {
				return fmt.Errorf("%s %w", target.Addr(), ErrForbidden)
			}
			return nil
		},
	}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		DisableCompression:  true,
		DisableKeepAlives:   maxIdle == 0,
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     30 * time.Second,
	}
}

// checkTarget refuses a target that the transport would refuse, before the load begins and in clearer words.
func checkTarget(ctx context.Context, target string, allow []netip.Prefix) error {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("URL: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return fmt.Errorf("resolve target %s: %w", u.Hostname(), err)
	}
	for _, addr := range addrs {
		if !permitted(addr, allow) {
			return fmt.Errorf("target %s: %s %w; name its network in Allow", u.Host, addr.Unmap(), ErrForbidden)
		}
	}
	return nil
}
