package activator

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probePlan is how a pod shows that it can take requests, before Kubernetes says so.
type probePlan struct {
	checks []check
	// why the pod cannot be probed ahead, and Kubernetes has to be waited for; empty when it can. For the log.
	why string
	// counts is how long the proof counts: until then the kubelet has come to the same result, or it never will.
	counts time.Duration
}

// check is one probe of one container.
type check struct {
	container string
	kind      checkKind
	address   string // host:port
	tls       bool
	url       *url.URL    // of HTTP
	header    http.Header // of HTTP
	service   string      // of gRPC
	timeout   time.Duration
	threshold int           // so many successes on end
	delay     time.Duration // to wait from the first connection on
}

type checkKind int

const (
	checkTCP checkKind = iota
	checkHTTP
	checkGRPC
)

// proofGrace is added to what the kubelet needs at most: for a container of the pod that starts late, and for the way of
// the news.
const proofGrace = 30 * time.Second

// planProbe derives the plan from the pod as it is, and not from its workload's template: with the sidecars that were
// injected, and in a rollout with the probes of this revision. host is the pod's address that requests go to, port the
// target port.
func planProbe(spec *corev1.PodSpec, host string, port int32) probePlan {
	plan := probePlan{counts: proofGrace}
	refuse := func(format string, args ...any) probePlan { return probePlan{why: fmt.Sprintf(format, args...)} }
	switch {
	case spec.HostNetwork:
		return refuse("it is in the network of its node, where the port may be another's")
	case len(spec.ReadinessGates) > 0:
		return refuse("it has readinessGates")
	}
	containers := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	var silent []corev1.Container // that say nothing of themselves
	vouched := false              // a container that has the target port has a check
	for _, c := range containers {
		if c.StartupProbe != nil {
			return refuse("container %s has a startupProbe", c.Name)
		}
		ck, why := readinessCheck(&c, host)
		switch {
		case why != "":
			return refuse("the readinessProbe of container %s %s", c.Name, why)
		case ck == nil:
			silent = append(silent, c)
		default:
			plan.checks = append(plan.checks, *ck)
			vouched = vouched || hasPort(&c, port)
			if p := c.ReadinessProbe; p != nil {
				period := time.Duration(cmp.Or(p.PeriodSeconds, 10)) * time.Second
				plan.counts = max(plan.counts, ck.delay+time.Duration(ck.threshold+1)*period+proofGrace)
			}
		}
	}
	if len(silent) > 0 && len(containers) > 1 && !vouched {
		// A mesh's sidecar accepts connections for every port, whether anybody is behind it or not.
		return refuse("container %s has no readinessProbe, and another container could accept connections in its place", silent[0].Name)
	}
	return plan
}

func hasPort(c *corev1.Container, port int32) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == port })
}

// readinessCheck is what container c is asked by: its readinessProbe; where it has none, its livenessProbe if that goes
// over the network, since what fails that is not alive; else nil. why says that the readinessProbe cannot be run from
// here.
func readinessCheck(c *corev1.Container, host string) (ck *check, why string) {
	if c.ReadinessProbe != nil {
		return newCheck(c.ReadinessProbe, c, host)
	}
	if c.LivenessProbe == nil {
		return nil, ""
	}
	ck, why = newCheck(c.LivenessProbe, c, host)
	if why != "" {
		return nil, ""
	}
	// Its delay is there so that the container is not killed too early.
	ck.delay, ck.threshold = 0, 1
	return ck, ""
}

func newCheck(p *corev1.Probe, c *corev1.Container, host string) (*check, string) {
	ck := &check{
		container: c.Name,
		timeout:   time.Duration(max(p.TimeoutSeconds, 1)) * time.Second,
		threshold: int(max(p.SuccessThreshold, 1)),
		delay:     time.Duration(p.InitialDelaySeconds) * time.Second,
	}
	var at string
	var port intstr.IntOrString
	switch {
	case p.HTTPGet != nil:
		ck.kind, ck.tls = checkHTTP, p.HTTPGet.Scheme == corev1.URISchemeHTTPS
		at, port = p.HTTPGet.Host, p.HTTPGet.Port
	case p.TCPSocket != nil:
		ck.kind, at, port = checkTCP, p.TCPSocket.Host, p.TCPSocket.Port
	case p.GRPC != nil:
		ck.kind, port = checkGRPC, intstr.FromInt32(p.GRPC.Port)
		if p.GRPC.Service != nil {
			ck.service = *p.GRPC.Service
		}
	default:
		return nil, "is not over the network"
	}
	if at != "" && at != host {
		// The kubelet asks from the pod's node, and what it reaches there is not what is reached from here.
		return nil, fmt.Sprintf("asks another host, %q", at)
	}
	n := portOf(port, c)
	if n == 0 {
		return nil, fmt.Sprintf("names the port %s, which the container does not have", port.String())
	}
	ck.address = net.JoinHostPort(host, strconv.Itoa(int(n)))
	if ck.kind == checkHTTP {
		ck.url, ck.header = probeURL(p.HTTPGet, ck.address), probeHeader(p.HTTPGet.HTTPHeaders)
	}
	return ck, ""
}

// portOf is the number of a probe's port, 0 where there is none; as the kubelet resolves it.
func portOf(port intstr.IntOrString, c *corev1.Container) int32 {
	if port.Type == intstr.Int {
		if port.IntVal < 1 || port.IntVal > 65535 {
			return 0
		}
		return port.IntVal
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return p.ContainerPort
		}
	}
	if n, err := strconv.ParseUint(port.StrVal, 10, 16); err == nil {
		return int32(n)
	}
	return 0
}

// probeURL reads the path as the kubelet does: with a query, and as it is where it cannot be parsed.
func probeURL(get *corev1.HTTPGetAction, address string) *url.URL {
	u, err := url.Parse(get.Path)
	if err != nil || u.Host != "" {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = strings.ToLower(string(cmp.Or(get.Scheme, corev1.URISchemeHTTP))), address
	return u
}

// probeHeader are the headers of an HTTP probe. The User-Agent begins like the kubelet's, so that what leaves probes out
// of its counts leaves these out too; the probe's own headers go before ours, as with the kubelet.
func probeHeader(own []corev1.HTTPHeader) http.Header {
	h := http.Header{}
	for _, o := range own {
		h.Add(o.Name, o.Value)
	}
	for name, value := range map[string]string{"Accept": "*/*", "User-Agent": probeUserAgent} {
		if own, ok := h[name]; !ok {
			h.Set(name, value)
		} else if own[0] == "" {
			h.Del(name)
		}
	}
	h.Set(headerProbe, probeAhead)
	return h
}

const (
	probeUserAgent = "kube-probe/sluice"
	probeAhead     = "ahead" // the value of headerProbe with which pods are asked
)
