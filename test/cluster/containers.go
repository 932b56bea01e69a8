package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/test/cluster/image"
)

// makePauseImage writes the image of the pause program, which holds each pod's namespaces, and returns its path.
func (l layout) makePauseImage(opts Options) (string, error) {
	tar := l.path("images", "pause.tar")
	if err := os.MkdirAll(filepath.Dir(tar), 0o755); err != nil {
		return "", fmt.Errorf("making the pause image: %w", err)
	}
	err := image.Write(tar, image.Options{Name: pauseImage, Binary: filepath.Join(opts.BinDir, "pause")})
	if err != nil {
		return "", fmt.Errorf("making the pause image: %w", err)
	}
	return tar, nil
}

// ctr runs containerd's client in the namespace of kubelet's images, and returns its output.
func (l layout) ctr(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--address", l.containerdSocket(), "--namespace", "k8s.io"}, args...)
	cmd := exec.CommandContext(ctx, l.program("ctr"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args[4:], " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// waitContainerd waits until containerd serves images.
func (c *Cluster) waitContainerd(ctx context.Context, rec *record) error {
	return c.wait(ctx, rec, "containerd", func(ctx context.Context) error {
		if _, err := os.Stat(c.containerdSocket()); err != nil {
			return err
		}
		_, err := c.ctr(ctx, "images", "list", "--quiet")
		return err
	})
}

// loadImage imports an archive and waits until kubelet can see its images: the CRI plugin learns of an import by an
// event, and labels the image once it knows it. A pod started before that would try to pull from a registry.
func (l layout) loadImage(ctx context.Context, tar string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	names, err := image.Names(tar)
	if err != nil {
		return fmt.Errorf("loading image %s: %w", tar, err)
	}
	if _, err := l.ctr(ctx, "images", "import", "--snapshotter", snapshotter(l.dir), tar); err != nil {
		return fmt.Errorf("loading image %s: %w", tar, err)
	}
	for _, name := range names {
		err := poll(ctx, "kubelet to see image "+name, 50*time.Millisecond, func(ctx context.Context) error {
			out, err := l.ctr(ctx, "images", "list", "name=="+name)
			if err == nil && !strings.Contains(out, "io.cri-containerd.image=managed") {
				err = errors.New("containerd's CRI plugin has not seen it yet")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// installPackages installs the Debian packages whose programs are missing.
func installPackages(ctx context.Context, log io.Writer) error {
	missing := missingPackages(exists)
	if len(missing) == 0 {
		return nil
	}
	if !exists("/usr/bin/apt-get") {
		return fmt.Errorf("the programs of %s are missing, and there is no apt-get to install them: install them, or use any cluster of yours with `make install`", strings.Join(missing, ", "))
	}
	fmt.Fprintf(log, "installing %s with apt-get\n", strings.Join(missing, ", "))
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=120", "-q", "-y"}, args...)...)
		cmd.Env = []string{"PATH=" + systemPath, "DEBIAN_FRONTEND=noninteractive"}
		if err := lookPath(cmd); err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, out[max(0, len(out)-1000):])
		}
		return nil
	}
	install := append([]string{"install", "--no-install-recommends"}, missing...)
	if !freshLists() {
		fmt.Fprintln(log, "updating the package lists first")
		if err := apt("update"); err != nil {
			return err
		}
		return apt(install...)
	}
	if err := apt(install...); err != nil {
		// Fresh by their age only: the mirror may have dropped a version meanwhile.
		return errors.Join(apt("update"), apt(install...))
	}
	return nil
}

// missingPackages lists the Debian packages of which a file that is needed does not exist.
func missingPackages(exists func(path string) bool) []string {
	var missing []string
	for _, need := range []struct {
		pkg   string
		files []string
	}{
		{"runc", []string{"/usr/sbin/runc"}}, // Debian's has seccomp, which a plain `go build` of the module lacks
		{"containernetworking-plugins", []string{"/usr/lib/cni/ptp", "/usr/lib/cni/host-local", "/usr/lib/cni/portmap"}},
		{"nftables", []string{"/usr/sbin/nft"}},
		{"iproute2", []string{"/usr/sbin/ip", "/sbin/ip", "/bin/ip"}},
	} {
		var found int
		for _, file := range need.files {
			if exists(file) {
				found++
			}
		}
		// ip is in one of several places; of the others all files are needed.
		if found == 0 || need.pkg != "iproute2" && found < len(need.files) {
			missing = append(missing, need.pkg)
		}
	}
	return missing
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// freshLists reports whether apt has package lists of the last day.
func freshLists() bool {
	lists, _ := filepath.Glob("/var/lib/apt/lists/*_Packages*")
	info, err := os.Stat("/var/lib/apt/lists")
	return len(lists) > 0 && err == nil && time.Since(info.ModTime()) < 24*time.Hour
}

// lookPath makes cmd run the program that its own PATH finds; exec.Command looked in the caller's.
func lookPath(cmd *exec.Cmd) error {
	for _, dir := range filepath.SplitList(systemPath) {
		if path := filepath.Join(dir, cmd.Args[0]); exists(path) {
			cmd.Path, cmd.Err = path, nil
			return nil
		}
	}
	return fmt.Errorf("%s is not installed (not in %s)", cmd.Args[0], systemPath)
}
