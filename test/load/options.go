package load

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Bounds that no Options can pass.
const (
	// MaxRate bounds the rate of a step, in requests per second.
	MaxRate = 100_000
	// MaxLength bounds the sum of the steps' lengths.
	MaxLength = time.Hour
)

// Options of a load. URL, Steps and MaxRequests are required.
type Options struct {
	// URL of the target, scheme http.
	URL string
	// Method of the requests. Default GET.
	Method string
	// Host is sent as the Host header. Default: the URL's.
	Host string
	// Header is sent with every request.
	Header http.Header
	// Body is sent with every request.
	Body []byte
	// Edit may change request n, counted from 0, before it leaves; for instance to give it a header of its own. It is
	// called from one goroutine, in order, and delays the load for as long as it takes.
	Edit func(n int, r *http.Request)

	// Steps are the load over time, one after the other.
	Steps []Step
	// MaxRequests is how many requests the caller is prepared to send; Steps that make more are refused.
	MaxRequests int
	// MaxInFlight bounds the requests under way. One that comes due beyond it is not sent, and counts as an error of
	// kind Saturated. Default 1000.
	MaxInFlight int
	// Timeout bounds one request, from when it leaves to the last byte of its answer. Default 10s.
	Timeout time.Duration
	// FreshConnections makes a new connection for every request. By default connections are kept and used again.
	FreshConnections bool
	// Allow lists what may be dialed besides loopback addresses.
	Allow []netip.Prefix

	// Stop ends the load before its steps do, when it is closed: no further request leaves, and those under way get
	// their time to finish. To cut them off as well, end Run's context.
	Stop <-chan struct{}

	// transport replaces the network in tests.
	transport http.RoundTripper
}

// complete returns o with its defaults filled in, and the number of requests that it makes.
func (o Options) complete() (Options, int, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return o, 0, fmt.Errorf("URL: %w", err)
	}
	if u.Scheme != "http" || u.Hostname() == "" {
		return o, 0, fmt.Errorf("URL %q: must be http://host/path", o.URL)
	}
	if o.MaxRequests <= 0 {
		return o, 0, errors.New("MaxRequests: is required, and above 0")
	}
	if o.MaxInFlight < 0 || o.Timeout < 0 {
		return o, 0, errors.New("MaxInFlight and Timeout: must not be negative")
	}
	planned, _, err := plan(o.Steps)
	if err != nil {
		return o, 0, err
	}
	if planned > o.MaxRequests {
		return o, 0, fmt.Errorf("steps make %d requests, more than MaxRequests %d", planned, o.MaxRequests)
	}
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 1000
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	return o, planned, nil
}
