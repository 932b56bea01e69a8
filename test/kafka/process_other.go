//go:build !linux

package kafka

import "syscall"

// endsWithUs is what Linux alone can do.
func endsWithUs() *syscall.SysProcAttr { return nil }

// awaitStopped is what Linux alone can do.
func awaitStopped(int) {}
