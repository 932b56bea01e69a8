// Package watches has lists and watches of Kubernetes objects go on within seconds after the API server was away.
//
// What lists and watches is client-go's reflector, which waits longer and longer for an API server that does not answer, in
// the end up to a minute, and goes on waiting when it is back. A whole minute long the activator would hold requests for
// pods that it has not heard of, and the scaler would not see a new Function.
package watches

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
)

// pause is how often an API server that cannot be reached is asked again, more or less: clients should not fall together.
const pause = time.Second

// Config returns a copy of cfg for clients that list and watch, and do nothing else. A request that gets no answer, as
// opposed to one that is refused, is sent again every second, until there is one or its context ends. That it comes to that
// is told to the logger of ctx.
func Config(ctx context.Context, cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	log := logr.FromContextOrDiscard(ctx)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return patient{next, log} })
	return cfg
}

type patient struct {
	next http.RoundTripper
	log  logr.Logger
}

// WrappedRoundTripper lets apimachinery find the transport, to close its idle connections.
func (p patient) WrappedRoundTripper() http.RoundTripper { return p.next }

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	// Discovery gives its requests a context that never ends: who waited with those could not be stopped.
	may := r.Method == http.MethodGet && r.Context().Done() != nil
	for told := false; ; {
		res, err := p.next.RoundTrip(r)
		if err == nil || !may {
			if told {
				p.log.Info("the API server answers again", "path", r.URL.Path)
			}
			return res, err
		}
		if !told {
			told = true
			p.log.Error(err, "the API server does not answer; it is asked again, and what is known stands", "path", r.URL.Path)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-r.Context().Done():
			timer.Stop()
			return nil, err
		}
	}
}
