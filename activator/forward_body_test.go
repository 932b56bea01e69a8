package activator

import (
	"io"
	"net/http/httptest"
	"testing"
	"time"
)

// deadlines is a client that counts the read deadlines it was given.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetReadDeadline(time.Time) error {
	d.set++
	return nil
}

// tellingReader closes began when a read of it begins, which must happen once.
type tellingReader struct {
	io.Reader
	began chan<- struct{}
}

func (r tellingReader) Read(b []byte) (int, error) {
	close(r.began)
	return r.Reader.Read(b)
}

// TestABodyClosedLateLeavesTheClientAlone: net/http's client closes the body of a stream that was reset in a goroutine of its
// own. By then the handler may have returned, and the server given its writer to another request, whose body would be cut.
func TestABodyClosedLateLeavesTheClientAlone(t *testing.T) {
	for _, over := range []bool{false, true} {
		client := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		ex := &exchange{client: client}
		from, to := io.Pipe()
		began, read := make(chan struct{}), make(chan struct{})
		body := &attemptBody{body: tellingReader{from, began}, ex: ex, once: true}
		go func() {
			defer close(read)
			_, _ = body.Read(make([]byte, 1))
		}()
		<-began
		want := 1
		if over {
			want = 0
			ex.end()
		}
		_ = body.Close()
		if client.set != want {
			t.Errorf("handler returned: %v: the client's read deadline was set %d times, want %d", over, client.set, want)
		}
		_ = to.Close()
		<-read
	}
}
