package kafka

import "syscall"

// endsWithUs makes a process end with this one, however that ends: a test that runs into its timeout cleans nothing up.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
