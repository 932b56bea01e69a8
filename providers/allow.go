package providers

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
)

// AllowList is whom an operator lets Functions name as servers of a kind of source. Without any entry they may name all, of
// which those are asked that are at an address that CheckAddress lets through; one that an entry names is trusted with its
// address too. The zero value has no entry.
type AllowList struct {
	flag    string
	entries []Server // fields that are empty match all
}

// ParseAllowList reads the value of a flag, which errors of the list name. An entry is a host, a host with a port, or an
// http or https URL, whose path stands for itself and all below it: "prometheus.monitoring.svc",
// "prometheus.monitoring.svc:9090", "https://prom.example:9090/tenant". The error names the entry.
func ParseAllowList(flag string, entries []string) (AllowList, error) {
	return parseList(flag, entries, func(entry string) (Server, error) {
		s, err := parseAllowed(entry)
		if err != nil {
			err = fmt.Errorf("%w; write a host (name.namespace.svc), a host with a port, or a URL (https://name.example/tenant)", err)
		}
		return s, err
	})
}

// ParseHostList is ParseAllowList for servers that are not asked by URLs.
func ParseHostList(flag string, entries []string) (AllowList, error) {
	return parseList(flag, entries, func(entry string) (Server, error) {
		s, err := parseAllowed(entry)
		if err == nil && s.Scheme != "" {
			err = errors.New("a URL is not taken")
		}
		if err != nil {
			err = fmt.Errorf("%w; write a host (name.namespace.svc), or a host with a port", err)
		}
		return s, err
	})
}

func parseList(flag string, entries []string, parse func(string) (Server, error)) (AllowList, error) {
	l := AllowList{flag: flag}
	for _, entry := range entries {
		s, err := parse(entry)
		if err != nil {
			return AllowList{}, fmt.Errorf("%q: %w", withoutUser(entry), err)
		}
		l.entries = append(l.entries, s)
	}
	return l, nil
}

func parseAllowed(entry string) (Server, error) {
	raw, isURL := entry, strings.Contains(entry, "://")
	if !isURL {
		raw = "http://" + entry
	}
	s, hasPort, err := parseURL(raw)
	switch {
	case strings.Contains(entry, "*"):
		return Server{}, errors.New("there are no wildcards")
	case err != nil:
		return Server{}, err
	case isURL:
		return s, nil
	case strings.Contains(entry, "/"):
		return Server{}, errors.New("a path needs a scheme before it")
	case !hasPort:
		return Server{Host: s.Host}, nil
	}
	return Server{Host: s.Host, Port: s.Port}, nil
}

// Empty tells that there are no entries.
func (l AllowList) Empty() bool { return len(l.entries) == 0 }

// Has tells whether an entry names s.
func (l AllowList) Has(s Server) bool {
	return slices.ContainsFunc(l.entries, func(e Server) bool {
		return e.Host == s.Host && (e.Scheme == "" || e.Scheme == s.Scheme) && (e.Port == "" || e.Port == s.Port) &&
			(e.Path == "" || e.Path == s.Path || strings.HasPrefix(s.Path, e.Path+"/"))
	})
}

// Check is nil where Functions may name s.
func (l AllowList) Check(s Server) error {
	if l.Empty() || l.Has(s) {
		return nil
	}
	return fmt.Errorf("server %s is not in the operator's allow-list (%s)", s, l.flag)
}

// Dialer is for s, at addresses that CheckAddress lets through, or at all where an entry names it.
func (l AllowList) Dialer(s Server) *net.Dialer {
	d := &net.Dialer{KeepAlive: 30 * time.Second}
	if !l.Has(s) {
		d.Control = l.CheckAddress
	}
	return d
}

// CheckAddress is a net.Dialer's Control for servers that no entry names.
func (l AllowList) CheckAddress(_, address string, _ syscall.RawConn) error {
	if err := CheckAddress(address); err != nil {
		return fmt.Errorf("%w, which is asked only if the operator's allow-list (%s) has the server", err, l.flag)
	}
	return nil
}
