package prometheus

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
	"syscall"

	"github.com/sluice-dev/sluice/providers"
)

// server is a base URL in one canonical form, so that what is compared is what is asked.
type server struct {
	scheme string // http or https
	host   string // lower case, without a final dot; IPv6 without brackets
	port   string // always
	path   string // clean; empty for the root
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// String is the URL. It has no default port, since servers behind a proxy may be told apart by the Host header.
func (s server) String() string {
	host := net.JoinHostPort(s.host, s.port)
	if s.port == defaultPorts[s.scheme] {
		host = strings.TrimSuffix(host, ":"+s.port)
	}
	return s.scheme + "://" + host + s.path
}

// address is what is dialled, and so what can be overloaded.
func (s server) address() string { return net.JoinHostPort(s.host, s.port) }

// parseServer reads a base URL. Whatever could make two readers of it see two different servers or paths is refused.
func parseServer(raw string) (server, error) {
	s, _, err := parseURL(raw)
	if err != nil {
		return server{}, fmt.Errorf("server %q: %w", withoutUser(raw), err)
	}
	return s, nil
}

// parseURL also reports whether the URL names its port.
func parseURL(raw string) (s server, hasPort bool, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return server{}, false, errors.New("it is not a URL") // the parser's own error repeats it whole
	}
	s = server{scheme: u.Scheme, port: cmp.Or(u.Port(), defaultPorts[u.Scheme])}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return s, false, errors.New("it does not begin with http:// or https://")
	case u.User != nil || strings.Contains(u.Host, "@"):
		return s, false, errors.New("a user in it is not taken; put credentials into the Secret of authRef")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
		return s, false, errors.New("it is to be a base URL, without ? and #")
	}
	if s.host, err = canonicalHost(u.Hostname()); err != nil {
		return s, false, err
	}
	port, err := strconv.ParseUint(s.port, 10, 16)
	if err != nil || port == 0 {
		return s, false, errors.New("its port is not between 1 and 65535")
	}
	s.port = strconv.FormatUint(port, 10) // 09090 is 9090
	segments := strings.Split(u.Path, "/")
	if u.RawPath != "" || slices.Contains(segments, ".") || slices.Contains(segments, "..") || !isPlain(u.Path) {
		return s, false, errors.New(`its path is to be plain, without ".", ".." and escapes`)
	}
	s.path = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	return s, u.Port() != "", nil
}

func canonicalHost(host string) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		return ip.Unmap().String(), nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
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

// allowed is an entry of the allow-list. Fields that are empty match all.
type allowed struct {
	scheme, host, port, path string
}

// allowList matches everything when it is empty.
type allowList []allowed

// parseAllow reads entries such as "https://prom.example:9090/tenant", "prometheus.monitoring.svc" and
// "prometheus.monitoring.svc:9090".
func parseAllow(entries []string) (allowList, error) {
	var list allowList
	for _, entry := range entries {
		a, err := parseAllowed(entry)
		if err != nil {
			return nil, fmt.Errorf("%q: %w; write a host (prometheus.monitoring.svc), a host with a port, "+
				"or a URL (https://prometheus.example/tenant)", withoutUser(entry), err)
		}
		list = append(list, a)
	}
	return list, nil
}

func parseAllowed(entry string) (allowed, error) {
	raw, isURL := entry, strings.Contains(entry, "://")
	if !isURL {
		raw = "http://" + entry
	}
	s, hasPort, err := parseURL(raw)
	switch {
	case strings.Contains(entry, "*"):
		return allowed{}, errors.New("there are no wildcards")
	case err != nil:
		return allowed{}, err
	case isURL:
		return allowed(s), nil
	case strings.Contains(entry, "/"):
		return allowed{}, errors.New("a path needs a scheme before it")
	case !hasPort:
		return allowed{host: s.host}, nil
	}
	return allowed{host: s.host, port: s.port}, nil
}

func (l allowList) allows(s server) bool {
	return len(l) == 0 || slices.ContainsFunc(l, func(a allowed) bool {
		return a.host == s.host && (a.scheme == "" || a.scheme == s.scheme) && (a.port == "" || a.port == s.port) &&
			(a.path == "" || a.path == s.path || strings.HasPrefix(s.path, a.path+"/"))
	})
}

// checkAddress is a net.Dialer's Control for servers that no operator has vouched for.
func checkAddress(_, address string, _ syscall.RawConn) error {
	if err := providers.CheckAddress(address); err != nil {
		return fmt.Errorf("%w, which is asked only if the operator's allow-list (--prometheus-allow) has the server", err)
	}
	return nil
}
