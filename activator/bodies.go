package activator

import (
	"io"
	"net/http"
	"sync"
)

// attemptBody is the client's body, lent to one attempt after another. The Transport closes the body it is given when
// a dial fails, which must not end the body for the next attempt; the server closes it after the handler.
type attemptBody struct {
	body io.Reader
	ex   *exchange
	// once says that the body is lent for one attempt only, whose end Close is. The read that is under way is then
	// ended, because HTTP/2 waits for it before it tells that the pod is gone; a client may leave a body open for hours.
	once bool
	gone <-chan struct{} // with once: closed when the client is gone

	mu     sync.Mutex // protects following
	read   bool       // a read was begun
	reads  bool       // one is under way
	closed bool
	ended  bool // it was read to its end
}

func (b *attemptBody) Read(buf []byte) (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b.read, b.reads = true, true
	b.mu.Unlock()
	n, err := b.body.Read(buf)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads = false
	b.ended = b.ended || err == io.EOF
	if err != nil && err != io.EOF && !b.closed {
		b.ex.bodyBroken.Store(true)
	}
	return n, err
}

func (b *attemptBody) Close() error {
	if !b.once {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed = true; b.reads {
		b.ex.cutBody(b.gone)
	}
	return nil
}

func (b *attemptBody) wasRead() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read
}

func (b *attemptBody) wasEnded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// streamWriter passes on at once what a pod writes. ReverseProxy does so for answers of unknown length; this does it
// for the others, but leaves the last piece to the end of the request. ReverseProxy.FlushInterval -1 would flush header
// and body of each small answer on their own, which costs a third more processor time: BenchmarkWarm.
type streamWriter struct {
	http.ResponseWriter
	ex *exchange
}

func (w streamWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.ex.remaining -= int64(n); err == nil && w.ex.remaining > 0 {
		err = http.NewResponseController(w.ResponseWriter).Flush()
	}
	return n, err
}

// WriteHeader keeps the pod's own 100 Continue back: the server has one for the client, when the body is first read.
func (w streamWriter) WriteHeader(status int) {
	if status != http.StatusContinue {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Unwrap gives http.ResponseController what else the server's writer can do.
func (w streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const bufferSize = 32 << 10

// bufferPool is the buffers that answers are copied by. It keeps pointers to arrays, so that Put allocates nothing.
type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }
