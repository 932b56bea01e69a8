package activator

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"
)

// lacksFiles tells whether err says that this process, or its node, has as many files open as it may: nothing that a pod or a
// client can do anything about.
func lacksFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// seldom lets one log line of many that say the same pass in seldomPause.
type seldom struct {
	last atomic.Int64 // when one has passed, in nanoseconds since 1970
}

const seldomPause = time.Minute

func (s *seldom) passes() bool {
	last, now := s.last.Load(), time.Now().UnixNano()
	return now-last >= int64(seldomPause) && s.last.CompareAndSwap(last, now)
}

// tellNoFiles logs that a pod could not be connected to for want of files.
func (p *proxy) tellNoFiles(fn *function, err error) {
	if p.noFiles.passes() {
		p.log.Error(err, "too many open files, and so requests are refused; raise the limit of the activators, or run more of them",
			"namespace", fn.key.Namespace, "function", fn.key.Name)
	}
}
