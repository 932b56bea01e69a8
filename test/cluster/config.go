package cluster

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

// The cluster's addresses. They are the same in every cluster, since each full one has a network of its own.
const (
	nodeIP        = "10.244.0.1"    // the node, and the pods' gateway
	podCIDR       = "10.244.0.0/24" // pods, from .10 on
	serviceCIDR   = "10.96.0.0/16"
	serviceIP     = "10.96.0.1"  // Service default/kubernetes
	dnsIP         = "10.96.0.10" // Service kube-system/kube-dns
	clusterDomain = "cluster.local"
	pauseImage    = "docker.io/sluice/pause:1"
	corednsUser   = "sluice:coredns"
	proxyClient   = "front-proxy-client"
)

// kubeconfig renders the kubeconfig of the user whose certificate is in pki/FILE.crt. The certificates are embedded, so
// that a copy of the file works anywhere.
func (l layout) kubeconfig(address, file string) []byte {
	read := func(name string) string {
		b, _ := os.ReadFile(l.state("pki", name)) // written just before
		return base64.StdEncoding.EncodeToString(b)
	}
	const context = "sluice-test-cluster"
	b, _ := json.MarshalIndent(map[string]any{ // strings and maps always marshal
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []any{map[string]any{"name": context, "cluster": map[string]any{
			"server": "https://" + address, "certificate-authority-data": read("ca.crt"),
		}}},
		"users": []any{map[string]any{"name": file, "user": map[string]any{
			"client-certificate-data": read(file + ".crt"), "client-key-data": read(file + ".key"),
		}}},
		"contexts":        []any{map[string]any{"name": context, "context": map[string]any{"cluster": context, "user": file}}},
		"current-context": context,
	}, "", "  ")
	return append(b, '\n')
}

// configs are the files that the programs read, as templates over configValues.
func configs() map[string]string {
	return map[string]string{
		"audit.yaml":             auditPolicy,
		"containerd.toml":        containerdConfig,
		"kubelet.yaml":           kubeletConfig,
		"kube-proxy.yaml":        kubeProxyConfig,
		"Corefile":               corefile,
		"resolv.conf":            "nameserver " + dnsIP + "\n",
		"cni/10-sluice.conflist": cniConfig,
	}
}

type configValues struct {
	Name, Dir, Logs, Run, Socket, Snapshotter         string
	NodeIP, PodCIDR, DNSIP, ClusterDomain, PauseImage string
}

// writeConfigs renders the configuration files.
func (l layout) writeConfigs() error {
	if err := os.MkdirAll(l.state("config", "cni"), 0o755); err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	for name, text := range configs() {
		b, err := l.render(name, text)
		if err != nil {
			return err
		}
		if err := writeFile(l.state("config", name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// render fills in one configuration template.
func (l layout) render(name, text string) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(strings.TrimPrefix(text, "\n"))
	if err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	var b bytes.Buffer
	err = t.Execute(&b, configValues{
		Name: l.name, Dir: l.state(), Logs: l.path("logs"), Run: l.runDir(), Socket: l.containerdSocket(), Snapshotter: snapshotter(l.dir),
		NodeIP: nodeIP, PodCIDR: podCIDR, DNSIP: dnsIP, ClusterDomain: clusterDomain, PauseImage: pauseImage,
	})
	if err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// auditPolicy logs what stories count: the writes to what scales and routes. A scale subresource is listed per group,
// because a rule without a group matches the core group only.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
omitManagedFields: true
rules:
- level: Request
  verbs: [create, update, patch, delete, deletecollection]
  resources:
  - {group: "", resources: [services, "*/scale"]}
  - {group: apps, resources: ["*/scale"]}
  - {group: autoscaling, resources: [horizontalpodautoscalers, horizontalpodautoscalers/status]}
  - {group: discovery.k8s.io, resources: [endpointslices]}
  - {group: sluice.dev, resources: [functions, functions/status, "*/scale"]}
- level: None
`

// containerdConfig: restrict_oom_score_adj, because without CAP_SYS_RESOURCE (sandboxed machines lack it) nobody may
// lower a score below its parent's, and runc then fails with "can't get final child's PID from pipe: EOF". The pods'
// network namespaces are under the state directory, where down finds them, not mixed with others' in /run/netns. NRI is
// off because its socket has one fixed place per machine.
const containerdConfig = `
version = 3
root = "{{.Dir}}/containerd"
state = "{{.Run}}/containerd"
imports = []
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{{.Socket}}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{{.Dir}}/config/cni"
  use_internal_loopback = true

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{{.Snapshotter}}"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{{.PauseImage}}"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/containerd/opt"
`

// cniConfig uses ptp, which routes every packet between pods through the node. On a bridge the answer of a pod behind a
// Service would take the short way to the asking pod, past the connection tracking that has to undo the translation of
// the Service's address, unless the kernel has br_netfilter.
const cniConfig = `
{
  "cniVersion": "1.0.0",
  "name": "{{.Name}}",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "{{.Dir}}/cni",
        "ranges": [[{"subnet": "{{.PodCIDR}}", "rangeStart": "10.244.0.10", "gateway": "{{.NodeIP}}"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// kubeletConfig: version 1 control groups, swap and a nearly full disk must not keep a test cluster from working. Images
// are never collected, because there is no registry to pull them from again. resolvConf is ours, so that the machine's
// search domains do not reach the pods.
const kubeletConfig = `
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: "{{.Dir}}/pki/ca.crt"}
authorization: {mode: Webhook}
tlsCertFile: "{{.Dir}}/pki/kubelet.crt"
tlsPrivateKeyFile: "{{.Dir}}/pki/kubelet.key"
readOnlyPort: 0
containerRuntimeEndpoint: "unix://{{.Socket}}"
cgroupDriver: cgroupfs
cgroupRoot: "/{{.Name}}"
cgroupsPerQOS: true
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
maxPods: 200
clusterDomain: {{.ClusterDomain}}
clusterDNS: ["{{.DNSIP}}"]
resolvConf: "{{.Dir}}/config/resolv.conf"
podLogsDir: "{{.Logs}}/pods"
volumePluginDir: "{{.Dir}}/kubelet/volumeplugins"
`

// kubeProxyConfig: maxPerCore 0 leaves the machine's connection tracking table as it is, which a network namespace may
// not change.
const kubeProxyConfig = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {{.PodCIDR}}
hostnameOverride: node0
bindAddress: {{.NodeIP}}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0}
clientConnection: {kubeconfig: "{{.Dir}}/kubeconfigs/kube-proxy"}
`

// corefile answers the cluster's names. All others do not exist, and saying so at once is better than letting a pod
// wait for a name server that cannot be reached: the network has no way out. Nothing is cached, so that a Service is
// found as soon as it exists; the answers come from memory anyway.
const corefile = `
{{.ClusterDomain}} in-addr.arpa ip6.arpa {
    errors
    ready 127.0.0.1:8181
    kubernetes {{.ClusterDomain}} in-addr.arpa ip6.arpa {
        kubeconfig {{.Dir}}/kubeconfigs/coredns
        pods verified
        ttl 5
    }
}
. {
    errors
    template ANY ANY {
        rcode NXDOMAIN
    }
}
`
