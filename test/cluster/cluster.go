package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options say where a cluster lives and what runs in it. The zero value is the full cluster of the repository that the
// working directory belongs to.
type Options struct {
	// Dir is the state directory, created when missing; it must be on a local file system. Default: ".cluster" at
	// the repository's root, or with ControlPlaneOnly a new temporary directory, which Stop removes.
	Dir string

	// Root is the root of the repository, whose sources the programs are built from. Default: the nearest directory
	// at or above the working directory, else above Dir, that holds test/cluster/kube/go.mod. Where there is none,
	// the programs must be in BinDir already.
	Root string

	// BinDir is where the programs are built. Default: ".cluster/bin" at the repository's root, else "bin" in Dir.
	BinDir string

	// ControlPlaneOnly starts etcd, kube-apiserver and kube-controller-manager only, on free loopback ports of the
	// caller's network namespace. It needs Linux and Go, not root. Default false: the full cluster.
	ControlPlaneOnly bool

	// ControllerManagerArgs are added to the flags of kube-controller-manager, such as
	// "--horizontal-pod-autoscaler-sync-period=5s" (default there: 15s). Nil takes a running cluster as it is;
	// anything else restarts its controller manager if that has other flags.
	ControllerManagerArgs []string

	// ReadyTimeout bounds the wait for a started cluster to be ready, without the time to build it, and for one whose
	// processes all live to answer; Start replaces it after that. Default 2m.
	ReadyTimeout time.Duration

	// Log receives a line for each step, and during long steps a line at least every 20 s. Default: none.
	Log io.Writer
}

// Cluster is a cluster that is up. Its methods are safe for concurrent use.
type Cluster struct {
	layout
	netns string // the network namespace's name, empty with ControlPlaneOnly
	temp  bool   // dir was made by Start and goes away with the cluster
	log   io.Writer
}

// Start returns the cluster of opts once it is ready: the API server, the controllers and, in the full cluster, the node
// and cluster DNS. It builds the programs if their sources changed (a cold build takes minutes), attaches to a cluster
// that is up already, and replaces one that is half dead. A caller inside the cluster's network namespace can only attach.
// The cluster outlives ctx and the calling process; it ends by Stop or Down.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	opts, l, err := complete(opts)
	if err != nil {
		return nil, err
	}
	if opts.ControlPlaneOnly {
		return startControlPlane(ctx, opts, l)
	}
	return startFull(ctx, opts, l)
}

// Attach returns the full cluster of opts if it is up and ready. It starts, builds and changes nothing.
func Attach(ctx context.Context, opts Options) (*Cluster, error) {
	opts, l, err := complete(opts)
	if err != nil {
		return nil, err
	}
	if err := checkHost(); err != nil {
		return nil, err
	}
	rec, err := l.loadRecord()
	if err != nil {
		return nil, err
	}
	c := &Cluster{layout: l, netns: l.name, log: opts.Log}
	if err := c.attach(ctx, rec, opts.ReadyTimeout); err != nil {
		return nil, fmt.Errorf("the cluster of %s: %w", l.dir, err)
	}
	return c, nil
}

// Down ends the cluster of opts and removes all that it left on the machine: processes, mounts, control groups, the
// network namespace and its state, whatever part of it is still alive. The built programs and the logs stay. A cluster
// that is not up is no error.
func Down(ctx context.Context, opts Options) error {
	if opts.ControlPlaneOnly && opts.Dir == "" {
		return errors.New("ending a control plane: Options.Dir is needed to find it")
	}
	opts, l, err := complete(opts)
	if err != nil {
		return err
	}
	if !opts.ControlPlaneOnly {
		if err := checkHost(); err != nil {
			return err
		}
	}
	// Somebody may have removed the directory of a cluster that still runs: its name alone finds the rest.
	if _, err := os.Stat(l.dir); errors.Is(err, os.ErrNotExist) {
		defer func() { _ = os.RemoveAll(l.dir) }()
	}
	if err := l.claim(); err != nil {
		return err
	}
	unlock, err := l.lock(ctx, opts.Log)
	if err != nil {
		return err
	}
	defer unlock()
	return l.down(ctx, opts.Log)
}

// Build compiles the programs that the cluster of opts needs into BinDir, unless they are up to date.
func Build(ctx context.Context, opts Options) error {
	opts, _, err := complete(opts)
	if err != nil {
		return err
	}
	return build(ctx, opts)
}

// Stop is [Down] for this cluster. With ControlPlaneOnly and a temporary state directory it removes that as well.
func (c *Cluster) Stop(ctx context.Context) error {
	if err := c.claim(); err != nil {
		return err
	}
	unlock, err := c.lock(ctx, c.log)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.down(ctx, c.log); err != nil {
		return err
	}
	if c.temp {
		return os.RemoveAll(c.dir)
	}
	return nil
}

// Dir is the absolute path of the state directory.
func (c *Cluster) Dir() string { return c.dir }

// BinDir is the absolute path of the directory with the programs; the kube binary in it runs kubectl as well
// ("kube kubectl ...").
func (c *Cluster) BinDir() string { return c.bin }

// Kubeconfig is the path of the administrator's kubeconfig. In the full cluster its server, https://127.0.0.1:6443, is
// reached from inside the network namespace only.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// Netns is the name of the cluster's network namespace, as under /run/netns. It is empty with ControlPlaneOnly.
func (c *Cluster) Netns() string { return c.netns }

// AuditLog is the path of the API server's audit log: one JSON object (audit.k8s.io/v1 Event) per write to scale
// subresources, HorizontalPodAutoscalers, Services, EndpointSlices and Functions, with the request's body, written
// before the request is answered.
func (c *Cluster) AuditLog() string { return c.path("logs", "audit.log") }

// LogDir is the directory with one log file per program.
func (c *Cluster) LogDir() string { return c.path("logs") }

// LoadImage imports the docker-archive at tarPath, such as package image writes, and returns once pods can run it.
func (c *Cluster) LoadImage(ctx context.Context, tarPath string) error {
	if c.netns == "" {
		return fmt.Errorf("loading image %s: a control plane without a node runs no containers", tarPath)
	}
	return c.loadImage(ctx, tarPath)
}

// layout is where the parts of one cluster lie. All of it follows from the state directory.
type layout struct {
	dir  string // the state directory, absolute
	bin  string // the programs
	name string // names the network namespace and the control group
}

// newLayout derives the layout of the cluster whose state directory is dir, an absolute path.
func newLayout(dir, bin string) layout {
	sum := sha256.Sum256([]byte(dir))
	return layout{dir: dir, bin: bin, name: "sluice-" + hex.EncodeToString(sum[:4])}
}

// path is the path of a file in the state directory.
func (l layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

// state is the path of a file of what ends with the cluster.
func (l layout) state(elem ...string) string {
	return l.path(append([]string{"state"}, elem...)...)
}

// claim creates the state directory. What Down removes in it must be a cluster's, so it refuses a directory that holds
// things of these names and never was a cluster's; all others in it are safe.
func (l layout) claim() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return fmt.Errorf("creating the state directory: %w", err)
	}
	if exists(l.path("lock")) {
		return nil
	}
	for _, name := range append(stateFiles(), "logs") {
		if exists(l.path(name)) {
			return fmt.Errorf("%s is not the state directory of a cluster, and %s in it would be removed: choose another directory", l.dir, name)
		}
	}
	return nil
}

// program is the path of a built program.
func (l layout) program(name string) string { return filepath.Join(l.bin, name) }

// runDir holds sockets, whose paths may have 107 bytes at most, and containerd's state.
func (l layout) runDir() string { return "/run/" + l.name }

// netnsPath is the file that names the network namespace.
func (l layout) netnsPath() string { return "/run/netns/" + l.name }

// kubeletDir is kubelet's root. It makes sockets below it, and a state directory's path may be too long for them.
func (l layout) kubeletDir() string { return "/var/lib/" + l.name }

// containerdSocket is where containerd listens.
func (l layout) containerdSocket() string { return filepath.Join(l.runDir(), "containerd.sock") }

// complete fills in the defaults of opts and derives the layout.
func complete(opts Options) (Options, layout, error) {
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if opts.ReadyTimeout == 0 {
		opts.ReadyTimeout = 2 * time.Minute
	}
	if opts.Root == "" {
		opts.Root = findRoot(opts.Dir)
	}
	if opts.Dir == "" && !opts.ControlPlaneOnly {
		if opts.Root == "" {
			return opts, layout{}, errors.New("no state directory: the working directory is in no clone of the repository, so name one (-dir, Options.Dir)")
		}
		opts.Dir = filepath.Join(opts.Root, ".cluster")
	}
	if opts.BinDir == "" {
		switch {
		case opts.Root != "":
			opts.BinDir = filepath.Join(opts.Root, ".cluster", "bin")
		case opts.Dir != "":
			opts.BinDir = filepath.Join(opts.Dir, "bin")
		default:
			return opts, layout{}, errors.New("no programs: the working directory is in no clone of the repository, so name its root (Options.Root) or their directory (Options.BinDir)")
		}
	}
	for _, p := range []*string{&opts.Dir, &opts.Root, &opts.BinDir} {
		if *p == "" {
			continue // a control plane without a directory gets a temporary one
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return opts, layout{}, fmt.Errorf("absolute path of %s: %w", *p, err)
		}
		*p = abs
	}
	// The same directory must get the same name whichever link it is reached by.
	if opts.Dir != "" {
		opts.Dir = realPath(opts.Dir)
	}
	return opts, newLayout(opts.Dir, opts.BinDir), nil
}

// realPath resolves the links in an absolute path, of which the last elements need not exist.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(realPath(parent), filepath.Base(path))
	}
	return path
}

// findRoot returns the root of the repository at or above the working directory, else above dir, or "".
func findRoot(dir string) string {
	starts := []string{dir}
	if wd, err := os.Getwd(); err == nil {
		starts = []string{wd, dir}
	}
	for _, at := range starts {
		at, err := filepath.Abs(at)
		if err != nil {
			continue
		}
		for ; ; at = filepath.Dir(at) {
			if _, err := os.Stat(filepath.Join(at, "test", "cluster", "kube", "go.mod")); err == nil {
				return at
			}
			if at == filepath.Dir(at) {
				break
			}
		}
	}
	return ""
}
