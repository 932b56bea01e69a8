package cluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const mountinfo = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 22 0:25 / /sys/fs/cgroup/cpu rw,nosuid shared:5 - cgroup cgroup rw,cpu
31 22 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 22 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
40 22 8:1 /x /state/kubelet rw shared:1 - ext4 /dev/vda rw
41 40 0:50 / /state/kubelet/pods/1/volumes/token rw shared:2 - tmpfs tmpfs rw
42 22 0:51 / /stately rw - tmpfs tmpfs rw
43 22 0:4 net:[1] /run/sluice-1/netns/cni-1//deleted rw - nsfs nsfs rw
44 22 0:52 / /state/with\040blank rw master:1 propagate_from:2 - tmpfs tmpfs rw
`

func TestMounts(t *testing.T) {
	mounts, err := parseMounts(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	// The last mounted first; the neighbour with the same beginning is not below.
	want := []string{"/state/with blank", "/run/sluice-1/netns/cni-1", "/state/kubelet/pods/1/volumes/token", "/state/kubelet"}
	if diff := cmp.Diff(want, below(mounts, "/state", "/run/sluice-1")); diff != "" {
		t.Errorf("mounts below (-want +got):\n%s", diff)
	}
	want = []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"}
	if diff := cmp.Diff(want, cgroupMounts(mounts)); diff != "" {
		t.Errorf("control group hierarchies (-want +got):\n%s", diff)
	}
	if _, err := parseMounts("22 27 0:21\n"); err == nil {
		t.Error("a line that is cut short: no error")
	}
}

// FuzzUnescape: what the kernel escapes comes back.
func FuzzUnescape(f *testing.F) {
	f.Add("/plain")
	f.Add("/a b\\c\td\n")
	f.Add(`\04`)
	kernel := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, path string) {
		if got := unescape(kernel.Replace(path)); got != path {
			t.Errorf("unescape(%q) = %q", kernel.Replace(path), got)
		}
		unescape(path) // must not panic on anything else
	})
}
