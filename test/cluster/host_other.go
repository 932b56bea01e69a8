//go:build !linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
)

func checkHost() error {
	return fmt.Errorf("the cluster runs on Linux, and this is %s: use any cluster of yours with `make install`", runtime.GOOS)
}

var errNotLinux = errors.New("not on Linux")

func inNetns(string, func() error) error { return errNotLinux }

func insideNetns(string) bool { return false }

func dialer(string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return nil, errNotLinux }
}

func detached() *syscall.SysProcAttr { return nil }

func (p identity) kill() error { return errNotLinux }

func (p identity) reap() {}

func unmount(string) error { return errNotLinux }

func snapshotter(string) string { return "native" }

func (l layout) lock(ctx context.Context, log io.Writer) (func(), error) {
	return lockFile(ctx, "", log)
}

func lockFile(context.Context, string, io.Writer) (func(), error) { return nil, checkHost() }
