package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	point  string
	fstype string
}

// parseMounts reads the format of /proc/self/mountinfo (proc_pid_mountinfo(5)), in the order of mounting.
func parseMounts(mountinfo string) ([]mount, error) {
	var mounts []mount
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(tail) < 1 {
			return nil, fmt.Errorf("parsing mountinfo line %q", line)
		}
		mounts = append(mounts, mount{point: unescape(fields[4]), fstype: tail[0]})
	}
	return mounts, nil
}

// unescape undoes the kernel's \ooo for blanks, tabs, newlines and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func readMounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return parseMounts(string(b))
}

// below lists the mount points at or below any of dirs, the last mounted first, which is the order to unmount in.
func below(mounts []mount, dirs ...string) []string {
	var points []string
	for _, m := range slices.Backward(mounts) {
		point := strings.TrimSuffix(m.point, "//deleted")
		for _, dir := range dirs {
			if point == dir || strings.HasPrefix(point, dir+"/") {
				points = append(points, point)
				break
			}
		}
	}
	return points
}

// unmountBelow unmounts everything at and below dirs: kubelet's bind mount of its root on itself and its tmpfs volumes,
// containerd's root file systems, shm and the pods' network namespaces. A removal that ran before would delete what is
// mounted there.
func unmountBelow(ctx context.Context, dirs ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// Again until none is left: mounts stack, and propagation makes copies.
	return poll(ctx, "mounts to go away", 20*time.Millisecond, func(context.Context) error {
		mounts, err := readMounts()
		if err != nil {
			return err
		}
		points := below(mounts, dirs...)
		for _, point := range points {
			if err := unmount(point); err != nil {
				return err
			}
		}
		if len(points) > 0 {
			return fmt.Errorf("%d remained, the first at %s", len(points), points[0])
		}
		return nil
	})
}

// cgroupMounts lists the roots of the control group hierarchies: one under version 2, one per controller under 1.
func cgroupMounts(mounts []mount) []string {
	var roots []string
	for _, m := range mounts {
		if (m.fstype == "cgroup" || m.fstype == "cgroup2") && !slices.Contains(roots, m.point) {
			roots = append(roots, m.point)
		}
	}
	return roots
}

// makeCgroups creates the control group that kubelet puts the pods in, in every hierarchy: kubelet refuses to start when
// its cgroupRoot does not exist.
func (l layout) makeCgroups() error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	roots := cgroupMounts(mounts)
	if len(roots) == 0 {
		return errors.New("no control groups are mounted below /sys/fs/cgroup: pods cannot be run here")
	}
	for _, root := range roots {
		group := filepath.Join(root, l.name)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return fmt.Errorf("creating control group: %w", err)
		}
		// Version 2: a child gets only the controllers that its parent hands down. One at a time, for a write with
		// one unknown name changes nothing; which of them exist depends on the kernel.
		for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"} {
			_ = writeExisting(filepath.Join(root, "cgroup.subtree_control"), "+"+controller)
		}
		// Version 1: a new cpuset has no CPUs and no memory, and no process can enter it before it has.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(root, file)); err == nil {
				if err := writeExisting(filepath.Join(group, file), strings.TrimSpace(string(b))); err != nil {
					return fmt.Errorf("setting up control group: %w", err)
				}
			}
		}
	}
	return nil
}

// writeExisting writes a control file, which cannot be created.
func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// contained lists the processes in the cluster's control groups: those of the containers.
func (l layout) contained() []identity {
	var found []identity
	l.eachCgroup(func(dir string) {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(b)) {
			// Zombies stay listed until they are reaped; only the living count.
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				if id, err := identify(pid); err == nil && id.alive() {
					found = append(found, id)
				}
			}
		}
	})
	return found
}

// eachCgroup calls fn for every control group of the cluster, parents before children.
func (l layout) eachCgroup(fn func(dir string)) {
	mounts, _ := readMounts()
	for _, root := range cgroupMounts(mounts) {
		_ = filepath.WalkDir(filepath.Join(root, l.name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				fn(path)
			}
			return nil // gone meanwhile
		})
	}
}

// removeCgroups removes the cluster's control groups once their last processes are gone from the kernel's tables.
func (l layout) removeCgroups(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return poll(ctx, "control groups to be empty", 20*time.Millisecond, func(context.Context) error {
		var dirs []string
		l.eachCgroup(func(dir string) { dirs = append(dirs, dir) })
		var last error
		for _, dir := range slices.Backward(dirs) {
			// Remove, not RemoveAll: the files of a control group cannot be deleted, its directory can.
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				last = err
			}
		}
		return last
	})
}

// removeShimSockets removes the sockets of this cluster's shims. containerd puts them all into /run/containerd/s, under
// the hash of its own address and the container, whatever its state directory is; a killed shim leaves its socket there.
func (l layout) removeShimSockets() {
	files, _ := filepath.Glob(filepath.Join(l.runDir(), "containerd", "io.containerd.runtime.v2.task", "*", "*", "bootstrap.json"))
	for _, file := range files {
		var bootstrap struct {
			Address string `json:"address"`
		}
		b, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(b, &bootstrap) != nil {
			continue
		}
		if path, ok := strings.CutPrefix(bootstrap.Address, "unix://"); ok && strings.HasPrefix(path, "/run/containerd/s/") {
			_ = os.Remove(path)
		}
	}
}

// removeStrays removes what kubelet and CNI keep at fixed places outside of the state directory.
func (l layout) removeStrays() {
	// kubelet links the log of each container here, into its podLogsDir.
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, l.dir+"/") {
			_ = os.Remove(link)
		}
	}
	// libcni caches each pod's result here, by the network's name.
	results, _ := filepath.Glob("/var/lib/cni/results/" + l.name + "-*")
	for _, result := range results {
		_ = os.Remove(result)
	}
}
