package activator

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// peer is an activator, as the EndpointSlices of the activators' Service have it.
type peer struct {
	name  string // of its pod
	ip    string
	admin string // host:port of its admin address
	ready bool
}

// peerSet is an immutable snapshot of the activators.
type peerSet struct {
	self   *peer   // this one; nil while it is not among them
	others []*peer // whether ready or not
	owners []*peer // to which pods belong: those that are ready, self included; all where none is
}

// peers knows the activators, and speaks to them.
type peers struct {
	metrics *metrics
	service types.NamespacedName // in front of the activators
	self    string               // name of this one's pod
	timeout time.Duration        // of a dial
	set     atomic.Pointer[peerSet]

	client  *http.Client  // asks; see claims.go
	asking  chan struct{} // holds one for each function that is asked for
	silent  silences
	stop    chan struct{} // closed by close
	closing sync.WaitGroup
}

// maxAsking bounds the functions that peers are asked for at the same time.
const maxAsking = 32

func newPeers(m *metrics, o Options) *peers {
	ps := &peers{
		metrics: m, service: types.NamespacedName{Namespace: o.Namespace, Name: v1alpha1.ActivatorService},
		self: o.PodName, timeout: o.DialTimeout, asking: make(chan struct{}, maxAsking), stop: make(chan struct{}),
	}
	ps.set.Store(&peerSet{})
	ps.client = &http.Client{
		Transport: &http.Transport{DialContext: ps.connect, MaxIdleConnsPerHost: maxAsking, IdleConnTimeout: time.Minute},
	}
	return ps
}

func (ps *peers) load() *peerSet { return ps.set.Load() }

// take takes in what the EndpointSlices of the activators' Service say now.
func (ps *peers) take(of map[string]*discoveryv1.EndpointSlice) {
	n := &peerSet{}
	all := v1alpha1.PodEndpoints(slices.Collect(maps.Values(of)), v1alpha1.ActivatorMetricsPort)
	slices.SortStableFunc(all, func(a, b v1alpha1.PodEndpoint) int {
		return cmp.Or(strings.Compare(a.Pod.Name, b.Pod.Name), readyFirst(a, b))
	})
	// A pod of a StatefulSet may be listed beside the one that it comes after; that one has ended.
	all = slices.CompactFunc(all, func(a, b v1alpha1.PodEndpoint) bool { return a.Pod.Name == b.Pod.Name })
	var unready []*peer
	for _, ep := range all {
		if ep.Pod.Name == "" || ep.Port == 0 {
			continue
		}
		p := &peer{ep.Pod.Name, ep.Address, net.JoinHostPort(ep.Address, strconv.Itoa(int(ep.Port))), ep.Ready}
		if p.name == ps.self {
			n.self = p
		} else {
			n.others = append(n.others, p)
		}
		if p.ready {
			n.owners = append(n.owners, p)
		} else {
			unready = append(unready, p)
		}
	}
	if len(n.owners) == 0 {
		n.owners = unready
	}
	ps.set.Store(n)
	names := make([]string, len(n.others))
	for i, p := range n.others {
		names[i] = p.name
	}
	ps.silent.keep(names)
}

// readyFirst compares pods of one name: that which is ready is first, and that which ends is last.
func readyFirst(a, b v1alpha1.PodEndpoint) int {
	rank := func(ep v1alpha1.PodEndpoint) int {
		switch {
		case ep.Ready:
			return 0
		case !ep.Terminating:
			return 1
		default:
			return 2
		}
	}
	return rank(a) - rank(b)
}

// knows tells whether the other side of a connection is another activator, by its address ("host:port").
func (ps *peers) knows(remote string) bool {
	ip, _, err := net.SplitHostPort(remote)
	return err == nil && slices.ContainsFunc(ps.load().others, func(p *peer) bool { return p.ip == ip })
}

// connect dials a peer from the address by which it knows this activator.
func (ps *peers) connect(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: ps.timeout, KeepAlive: dialKeepAlive}
	if self := ps.load().self; self != nil {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(self.ip)}
	}
	return d.DialContext(ctx, network, address)
}

// close ends what is asked, and waits for it.
func (ps *peers) close() {
	close(ps.stop)
	ps.closing.Wait()
	ps.client.CloseIdleConnections()
}

// peerSuffix is at the end of the host in the address of a pod that is a peer. A pod's own host is an IP address.
const peerSuffix = ".peer"

func peerAddress(admin string) string {
	host, port, _ := net.SplitHostPort(admin)
	return net.JoinHostPort(host+peerSuffix, port)
}

// adminOf is the opposite of peerAddress; ok is false for the address of a pod, and for a Host that somebody has named so.
func adminOf(address string) (admin string, ok bool) {
	host, port, _ := net.SplitHostPort(address)
	host, ok = strings.CutSuffix(host, peerSuffix)
	return net.JoinHostPort(host, port), ok && net.ParseIP(host) != nil
}
