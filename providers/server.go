package providers

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Server is whom a Function names as a source, in one canonical form, so that what is compared is what is asked.
type Server struct {
	Scheme string // http or https; empty where it is not asked by a URL
	Host   string // lower case, without a final dot; IPv6 without brackets
	Port   string // always
	Path   string // clean; empty for the root
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// String is the URL, or the address. A URL has no default port, since servers behind a proxy may be told apart by the Host
// header.
func (s Server) String() string {
	if s.Scheme == "" {
		return s.Address()
	}
	host := s.Address()
	if s.Port == defaultPorts[s.Scheme] {
		host = strings.TrimSuffix(host, ":"+s.Port)
	}
	return s.Scheme + "://" + host + s.Path
}

// Address is what is dialled, host:port, and so what can be overloaded.
func (s Server) Address() string { return net.JoinHostPort(s.Host, s.Port) }

// ParseServer reads a base URL. Whatever could make two readers of it see two different servers or paths is refused. The
// error holds no password that is in it.
func ParseServer(raw string) (Server, error) {
	s, _, err := parseURL(raw)
	if err != nil {
		return Server{}, fmt.Errorf("server %q: %w", withoutUser(raw), err)
	}
	return s, nil
}

// ParseAddress reads host:port.
func ParseAddress(raw string) (Server, error) {
	host, port, err := net.SplitHostPort(raw)
	if err != nil {
		return Server{}, fmt.Errorf("server %.300q: it is not HOST:PORT", raw)
	}
	var s Server
	if s.Host, err = canonicalHost(host); err == nil {
		s.Port, err = canonicalPort(port)
	}
	if err != nil {
		return Server{}, fmt.Errorf("server %.300q: %w", raw, err)
	}
	return s, nil
}

// parseURL also reports whether the URL names its port.
func parseURL(raw string) (s Server, hasPort bool, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Server{}, false, errors.New("it is not a URL") // the parser's own error repeats it whole
	}
	s = Server{Scheme: u.Scheme}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return s, false, errors.New("it does not begin with http:// or https://")
	case u.User != nil || strings.Contains(u.Host, "@"):
		return s, false, errors.New("a user in it is not taken; put credentials into the Secret of authRef")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
		return s, false, errors.New("it is to be a base URL, without ? and #")
	}
	if s.Host, err = canonicalHost(u.Hostname()); err != nil {
		return s, false, err
	}
	if s.Port, err = canonicalPort(cmp.Or(u.Port(), defaultPorts[u.Scheme])); err != nil {
		return s, false, err
	}
	segments := strings.Split(u.Path, "/")
	if u.RawPath != "" || slices.Contains(segments, ".") || slices.Contains(segments, "..") || !isPlain(u.Path) {
		return s, false, errors.New(`its path is to be plain, without ".", ".." and escapes`)
	}
	s.Path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	return s, u.Port() != "", nil
}

func canonicalHost(host string) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		return ip.Unmap().String(), nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if len(host) > 253 {
		return "", errors.New("its host is longer than a host name may be")
	}
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		default:
			return "", errors.New("its host has characters that no host name has; write international names in their xn-- form")
		}
	}
	if host == "" || strings.HasPrefix(host, ".") || strings.HasSuffix(host, ".") || strings.Contains(host, "..") {
		return "", errors.New("it has no host")
	}
	return host, nil
}

func canonicalPort(port string) (string, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", errors.New("its port is not between 1 and 65535")
	}
	return strconv.FormatUint(n, 10), nil // 09090 is 9090
}

// isPlain reports whether a path is of the characters that no software reads in two ways.
func isPlain(path string) bool {
	return !strings.ContainsFunc(path, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`\%;"<>^{|}`+"`", r)
	})
}

// withoutUser is raw for an error, without what may be a password in it.
func withoutUser(raw string) string {
	if at := strings.LastIndex(raw, "@"); at >= 0 {
		return "..." + raw[at:]
	}
	return raw
}
