package activator

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// container makes a container of that name which declares port 8080 as "http".
func container(name string, change ...func(*corev1.Container)) corev1.Container {
	c := corev1.Container{Name: name, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func readiness(p corev1.Probe) func(*corev1.Container) {
	return func(c *corev1.Container) { c.ReadinessProbe = &p }
}

func httpGet(path string, port intstr.IntOrString) corev1.Probe {
	return corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port}}}
}

func onPort(ports ...corev1.ContainerPort) func(*corev1.Container) {
	return func(c *corev1.Container) { c.Ports = ports }
}

func tcpSocket(port int) corev1.Probe {
	return corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}}
}

// planned is what a test looks at in a plan.
type planned struct {
	Why    string
	Checks []string
}

func TestPlanProbe(t *testing.T) {
	exec := corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	always := corev1.ContainerRestartPolicyAlways
	named := intstr.FromString("http")
	abroad := httpGet("/", intstr.FromInt(8080))
	abroad.HTTPGet.Host = "169.254.169.254"
	itself := httpGet("/", intstr.FromInt(8080))
	itself.HTTPGet.Host = "10.0.0.1"
	secure := httpGet("/", intstr.FromInt(8443))
	secure.HTTPGet.Scheme = corev1.URISchemeHTTPS
	pod := func(containers ...corev1.Container) corev1.PodSpec { return corev1.PodSpec{Containers: containers} }
	with := func(s corev1.PodSpec, change func(*corev1.PodSpec)) corev1.PodSpec {
		change(&s)
		return s
	}
	tests := []struct {
		name string
		spec corev1.PodSpec
		want planned
	}{
		{"no probe: its port has to accept", pod(container("a")), planned{}},
		{"HTTP at a named port", pod(container("a", readiness(httpGet("/healthz?full=1", named)))), planned{"", []string{"a http://10.0.0.1:8080/healthz?full=1"}}},
		{"HTTP at the pod's own address", pod(container("a", readiness(itself))), planned{"", []string{"a http://10.0.0.1:8080/"}}},
		{"HTTPS", pod(container("a", readiness(secure))), planned{"", []string{"a https://10.0.0.1:8443/"}}},
		{"a path that is none", pod(container("a", readiness(httpGet("//x/%zz", named)))), planned{"", []string{"a http://10.0.0.1:8080//x/%25zz"}}},
		{"TCP", pod(container("a", readiness(tcpSocket(9000)))), planned{"", []string{"a 10.0.0.1:9000"}}},
		{"gRPC", pod(container("a", readiness(corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9001, Service: new("x")}}}))), planned{"", []string{"a grpc 10.0.0.1:9001 x"}}},
		{
			"all containers, injected ones and sidecars included",
			with(pod(container("a", readiness(httpGet("/a", named))), container("proxy", readiness(httpGet("/b", intstr.FromInt(15021))))), func(s *corev1.PodSpec) {
				s.InitContainers = []corev1.Container{container("first", readiness(exec)), container("side", readiness(tcpSocket(1)), func(c *corev1.Container) { c.RestartPolicy = &always })}
			}),
			planned{"", []string{"a http://10.0.0.1:8080/a", "proxy http://10.0.0.1:15021/b", "side 10.0.0.1:1"}},
		},
		{"exec", pod(container("a", readiness(exec))), planned{Why: "the readinessProbe of container a is not over the network"}},
		{"another host", pod(container("a", readiness(abroad))), planned{Why: `the readinessProbe of container a asks another host, "169.254.169.254"`}},
		{"no such port", pod(container("a", readiness(httpGet("/", intstr.FromString("nope"))))), planned{Why: "the readinessProbe of container a names the port nope, which the container does not have"}},
		{"startup probe", pod(container("a", func(c *corev1.Container) { c.StartupProbe = new(tcpSocket(8080)) })), planned{Why: "container a has a startupProbe"}},
		{"startup probe of a sidecar", with(pod(container("a")), func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{container("side", func(c *corev1.Container) { c.RestartPolicy, c.StartupProbe = &always, new(tcpSocket(1)) })}
		}), planned{Why: "container side has a startupProbe"}},
		{"readiness gates", with(pod(container("a")), func(s *corev1.PodSpec) { s.ReadinessGates = []corev1.PodReadinessGate{{}} }), planned{Why: "it has readinessGates"}},
		{"host network", with(pod(container("a")), func(s *corev1.PodSpec) { s.HostNetwork = true }), planned{Why: "it is in the network of its node, where the port may be another's"}},
		// The runtimes of Kubeless have no readiness probe, and a proxy that opens the port before them.
		{"liveness where there is no readiness", pod(container("a", func(c *corev1.Container) {
			c.LivenessProbe = new(httpGet("/healthz", named))
			c.LivenessProbe.InitialDelaySeconds, c.LivenessProbe.PeriodSeconds = 3, 30
		})), planned{"", []string{"a http://10.0.0.1:8080/healthz"}}},
		{"liveness by exec says nothing", pod(container("a", func(c *corev1.Container) { c.LivenessProbe = &exec })), planned{}},
		{"silent beside a sidecar that may accept for it", pod(container("a"), container("proxy", readiness(tcpSocket(15021)), onPort())), planned{
			Why: "container a has no readinessProbe, and another container could accept connections in its place",
		}},
		{"a silent one beside the one that has the port", pod(container("a", readiness(httpGet("/", named))), container("logs", onPort())), planned{"", []string{"a http://10.0.0.1:8080/"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan := planProbe(&tt.spec, "10.0.0.1", 8080)
			got := planned{Why: plan.why}
			for _, c := range plan.checks {
				switch c.kind {
				case checkHTTP:
					got.Checks = append(got.Checks, c.container+" "+c.url.String())
				case checkGRPC:
					got.Checks = append(got.Checks, c.container+" grpc "+c.address+" "+c.service)
				default:
					got.Checks = append(got.Checks, c.container+" "+c.address)
				}
				if c.delay != 0 || c.threshold != 1 || c.timeout != time.Second {
					t.Errorf("%s: delay %s, threshold %d, timeout %s; want Kubernetes's defaults 0, 1, 1s", c.container, c.delay, c.threshold, c.timeout)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanProbeTakesTheProbesNumbers(t *testing.T) {
	p := httpGet("/", intstr.FromInt(8080))
	p.InitialDelaySeconds, p.TimeoutSeconds, p.SuccessThreshold, p.PeriodSeconds = 4, 3, 2, 20
	p.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "shop"}, {Name: "X-A", Value: "1"}, {Name: "x-a", Value: "2"}, {Name: "accept", Value: ""}, {Name: "User-Agent", Value: "mine"}}
	spec := corev1.PodSpec{Containers: []corev1.Container{container("a", readiness(p))}}
	plan := planProbe(&spec, "10.0.0.1", 8080)
	if len(plan.checks) != 1 {
		t.Fatalf("got %+v, want one check", plan)
	}
	c := plan.checks[0]
	if c.delay != 4*time.Second || c.timeout != 3*time.Second || c.threshold != 2 {
		t.Errorf("delay %s, timeout %s, threshold %d; want 4s, 3s, 2", c.delay, c.timeout, c.threshold)
	}
	if want := 4*time.Second + 3*20*time.Second + proofGrace; plan.counts != want {
		t.Errorf("the proof counts for %s, want %s", plan.counts, want)
	}
	want := http.Header{"Host": {"shop"}, "X-A": {"1", "2"}, "User-Agent": {"mine"}, headerProbe: {probeAhead}}
	if diff := cmp.Diff(want, c.header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}
