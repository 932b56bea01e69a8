package cluster

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestVersions: the programs must say the version that they are, and the staging modules be those released with it.
func TestVersions(t *testing.T) {
	b, err := os.ReadFile("kube/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\tk8s.io/kubernetes "+kubernetesVersion+"\n") {
		t.Errorf("kube/go.mod does not require k8s.io/kubernetes %s", kubernetesVersion)
	}
	staging := strings.Replace(kubernetesVersion, "v1.", "v0.", 1)
	replaced := regexp.MustCompile(`(?m)^\t(k8s\.io/\S+) => (\S+) (\S+)$`).FindAllStringSubmatch(string(b), -1)
	if len(replaced) < 30 {
		t.Errorf("%d staging modules are replaced, want more than 30", len(replaced))
	}
	for _, m := range replaced {
		if m[1] != m[2] || m[3] != staging {
			t.Errorf("%s is replaced by %s %s, want its own %s", m[1], m[2], m[3], staging)
		}
	}
	if flags := versionFlags(); !strings.Contains(flags, "version.gitMajor=1 ") || !strings.Contains(flags, "version.gitMinor=37 ") {
		t.Errorf("linker flags %s lack the version's parts", flags)
	}
}

func TestProgress(t *testing.T) {
	p := &progress{name: "kube", total: 2000, begin: time.Now()}
	for _, line := range []string{
		"go: downloading k8s.io/api v0.37.2",
		"k8s.io/api/core/v1",
		"k8s.io/api/apps/v1",
		"# k8s.io/api/apps/v1",
		"./x.go:1:2: undefined: y",
	} {
		p.add(line)
	}
	want := "building kube: 0s, 2 of at most 2000 packages, 1 modules fetched, at k8s.io/api/apps/v1"
	if diff := cmp.Diff(want, p.String()); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"# k8s.io/api/apps/v1", "./x.go:1:2: undefined: y"}, p.messages); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// TestBuildStep builds a small program twice: the second time nothing is to do, until its source changes.
func TestBuildStep(t *testing.T) {
	sources, bin := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(sources, "m", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module m\n\ngo 1.26\n")
	write("go.sum", "")
	write("cmd/x/main.go", "package main\n\nfunc main() {}\n")
	s := buildStep{name: "x", module: "m", packages: []string{"./cmd/x"}, outputs: []string{"x"}}
	if s.upToDate(sources, bin) {
		t.Fatal("up to date before it was built")
	}
	var log strings.Builder
	if err := s.run(t.Context(), sources, bin, &log); err != nil {
		t.Fatal(err)
	}
	if !s.upToDate(sources, bin) {
		t.Error("not up to date after it was built")
	}
	write("cmd/x/main.go", "package main\n\nfunc main() { undefined() }\n")
	if s.upToDate(sources, bin) {
		t.Error("up to date although its source changed")
	}
	if err := s.run(t.Context(), sources, bin, &log); err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("error %v, want what the compiler says", err)
	}
}

func TestMissingPackages(t *testing.T) {
	all := []string{"/usr/sbin/runc", "/usr/lib/cni/ptp", "/usr/lib/cni/host-local", "/usr/lib/cni/portmap", "/usr/sbin/nft", "/bin/ip"}
	tests := []struct {
		name    string
		without string
		want    []string
	}{
		{name: "all are there"},
		{name: "no runc", without: "/usr/sbin/runc", want: []string{"runc"}},
		{name: "one CNI plugin less", without: "/usr/lib/cni/ptp", want: []string{"containernetworking-plugins"}},
		{name: "no ip", without: "/bin/ip", want: []string{"iproute2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := missingPackages(func(path string) bool {
				for _, have := range all {
					if have == path && path != tt.without {
						return true
					}
				}
				return false
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("missing packages (-want +got):\n%s", diff)
			}
		})
	}
}
