package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	a, b := newLayout("/clone/a/.cluster", ""), newLayout("/clone/b/.cluster", "")
	if a.name != newLayout("/clone/a/.cluster", "/elsewhere").name {
		t.Error("one state directory has two names")
	}
	if a.name == b.name {
		t.Error("two state directories have one name")
	}
	if len(a.name) != len("sluice-")+8 || !strings.HasPrefix(a.name, "sluice-") {
		t.Errorf("name %q, want sluice- and 8 digits", a.name)
	}
	if n := len(a.containerdSocket() + ".ttrpc"); n > 107 {
		t.Errorf("containerd's socket has a path of %d bytes, and may have 107", n)
	}
}

func TestComplete(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "test/cluster/kube"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "test/cluster/kube/go.mod"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	link := filepath.Join(elsewhere, "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name             string
		wd               string
		opts             Options
		wantDir, wantBin string
		wantErr          string
	}{
		{name: "in the clone", wd: root, wantDir: root + "/.cluster", wantBin: root + "/.cluster/bin"},
		{name: "deep in the clone", wd: root + "/test/cluster", wantDir: root + "/.cluster", wantBin: root + "/.cluster/bin"},
		{name: "by a link", wd: elsewhere, opts: Options{Dir: link + "/new/.cluster"}, wantDir: root + "/new/.cluster", wantBin: link + "/.cluster/bin"},
		{name: "other state, same programs", wd: root, opts: Options{Dir: elsewhere + "/s"}, wantDir: elsewhere + "/s", wantBin: root + "/.cluster/bin"},
		{name: "no clone", wd: elsewhere, opts: Options{Dir: elsewhere + "/s"}, wantDir: elsewhere + "/s", wantBin: elsewhere + "/s/bin"},
		{name: "nothing at all", wd: elsewhere, wantErr: "no state directory"},
		{name: "control plane in the clone", wd: root, opts: Options{ControlPlaneOnly: true}, wantBin: root + "/.cluster/bin"},
		{name: "control plane elsewhere", wd: elsewhere, opts: Options{ControlPlaneOnly: true}, wantErr: "no programs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tt.wd)
			opts, _, err := complete(tt.opts)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error %v, want one with %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tt.wantDir, tt.wantBin}, []string{opts.Dir, opts.BinDir}); diff != "" {
				t.Errorf("state and programs (-want +got):\n%s", diff)
			}
		})
	}
}

// TestClaim: Down removes things in the state directory, so it must not be somebody's own.
func TestClaim(t *testing.T) {
	tests := []struct {
		name    string
		files   []string
		wantErr bool
	}{
		{name: "empty"},
		{name: "built things only", files: []string{"bin", "build", "images"}},
		{name: "a cluster's", files: []string{"lock", "kubeconfig", "state"}},
		{name: "a source tree", files: []string{"go.mod", "state"}, wantErr: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, file), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := newLayout(dir, "").claim(); (err != nil) != tt.wantErr {
				t.Errorf("claim: %v, want an error: %t", err, tt.wantErr)
			}
		})
	}
}

func TestWriteConfigs(t *testing.T) {
	l := newLayout(t.TempDir(), "/bin")
	if err := l.writeConfigs(); err != nil {
		t.Fatal(err)
	}
	contains := map[string][]string{
		"kubelet.yaml":           {`cgroupRoot: "/` + l.name + `"`, `clusterDNS: ["10.96.0.10"]`, `unix:///run/` + l.name + `/containerd.sock`, l.dir + "/logs/pods"},
		"containerd.toml":        {`root = "` + l.dir + `/state/containerd"`, `state = "/run/` + l.name + `/containerd"`, "restrict_oom_score_adj = true"},
		"kube-proxy.yaml":        {"mode: nftables", l.dir + "/state/kubeconfigs/kube-proxy"},
		"Corefile":               {"kubernetes cluster.local", l.dir + "/state/kubeconfigs/coredns"},
		"audit.yaml":             {"level: Request", "horizontalpodautoscalers", "sluice.dev"},
		"resolv.conf":            {"nameserver 10.96.0.10"},
		"cni/10-sluice.conflist": {`"type": "ptp"`},
	}
	for name := range configs() {
		b, err := os.ReadFile(l.state("config", name))
		if err != nil {
			t.Fatal(err)
		}
		if len(contains[name]) == 0 {
			t.Errorf("%s is not checked", name)
		}
		for _, want := range contains[name] {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", name, want, b)
			}
		}
		if strings.HasSuffix(name, ".conflist") && !json.Valid(b) {
			t.Errorf("%s is not JSON:\n%s", name, b)
		}
	}
}

func TestCertificates(t *testing.T) {
	l := newLayout(t.TempDir(), "/bin")
	if err := l.makePKI("127.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(l.state("pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	tests := []struct {
		file, user, group, host string
	}{
		{file: "apiserver", user: "kube-apiserver", host: "kubernetes.default.svc"},
		{file: "apiserver", user: "kube-apiserver", host: "127.0.0.1"},
		{file: "apiserver", user: "kube-apiserver", host: "10.96.0.1"},
		{file: "kubelet", user: "node0", host: "10.244.0.1"},
		{file: "admin", user: "admin", group: "system:masters"},
		{file: "node", user: "system:node:node0", group: "system:nodes"},
		{file: "proxy-client", user: "front-proxy-client"},
	}
	for _, tt := range tests {
		t.Run(tt.file+" "+tt.host, func(t *testing.T) {
			pair, err := tls.LoadX509KeyPair(l.state("pki", tt.file+".crt"), l.state("pki", tt.file+".key"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: tt.host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err != nil {
				t.Error(err)
			}
			if got := pair.Leaf.Subject.CommonName; got != tt.user {
				t.Errorf("user %q, want %q", got, tt.user)
			}
			if got := strings.Join(pair.Leaf.Subject.Organization, ","); got != tt.group {
				t.Errorf("groups %q, want %q", got, tt.group)
			}
		})
	}
	for _, path := range []string{l.path("kubeconfig"), l.state("kubeconfigs", "kube-proxy")} {
		b, err := os.ReadFile(path)
		if err != nil || !json.Valid(b) || !strings.Contains(string(b), `"https://127.0.0.1:6443"`) {
			t.Errorf("%s: %v\n%s", path, err, b)
		}
	}
}

// TestShellFiles runs them in a shell, in a directory whose name needs quoting.
func TestShellFiles(t *testing.T) {
	l := newLayout(filepath.Join(t.TempDir(), "it's a clone"), "/nowhere")
	if err := l.writeShellFiles(); err != nil {
		t.Fatal(err)
	}
	script := `. "$1" && printf '%s\n' "$KUBECONFIG" "$SLUICE_NETNS" "${PATH%%:*}"`
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", l.path("env")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := l.path("kubeconfig") + "\n" + l.name + "\n" + l.path("bin") + "\n"
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	out, err = exec.CommandContext(t.Context(), l.path("bin", "kubectl"), "version").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is not up") {
		t.Errorf("kubectl without a cluster: %v, %s; want it to say that none is up", err, out)
	}
}
