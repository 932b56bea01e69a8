package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// kubernetesVersion is what the programs say they are. It must be that of k8s.io/kubernetes in kube/go.mod: without it
// the API server reports "v0.0.0-master+$Format:%H$", and clients that parse the version fail.
const kubernetesVersion = "v1.37.2"

// buildStep compiles one or more programs of one module.
type buildStep struct {
	name     string   // names the step in the log, and its stamp
	module   string   // directory of the module, below test/cluster
	packages []string // main packages
	outputs  []string // the programs that come out
	ldflags  string
}

// buildSteps lists what to build: for the control plane alone, or for the full cluster.
func buildSteps(controlPlaneOnly bool) []buildStep {
	steps := []buildStep{{
		name: "kube", module: "kube", packages: []string{"./cmd/kube"}, outputs: []string{"kube"}, ldflags: versionFlags(),
	}}
	if controlPlaneOnly {
		return steps
	}
	const containerd = "github.com/containerd/containerd/v2/cmd/"
	return append(steps,
		buildStep{name: "coredns", module: "kube", packages: []string{"./cmd/coredns"}, outputs: []string{"coredns"}},
		buildStep{
			name: "containerd", module: "containerd",
			packages: []string{containerd + "containerd", containerd + "containerd-shim-runc-v2", containerd + "ctr"},
			outputs:  []string{"containerd", "containerd-shim-runc-v2", "ctr"},
		},
		buildStep{name: "pause", module: ".", packages: []string{"./pause"}, outputs: []string{"pause"}},
	)
}

// versionFlags makes the linker set the version, in both packages that hold one.
func versionFlags() string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, set := range []string{"gitVersion=" + kubernetesVersion, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean", "gitCommit=unknown"} {
			flags = append(flags, "-X "+pkg+"."+set)
		}
	}
	return strings.Join(flags, " ")
}

// build compiles the programs whose sources changed since they were built.
func build(ctx context.Context, opts Options) error {
	steps := buildSteps(opts.ControlPlaneOnly)
	if opts.Root == "" {
		// No sources, as for a test binary that runs elsewhere: what is there will do.
		for _, s := range steps {
			if missing := s.missing(opts.BinDir); missing != "" {
				return fmt.Errorf("%s is missing, and its sources are not found: run in a clone of the repository or set Options.Root", missing)
			}
		}
		return nil
	}
	sources := filepath.Join(opts.Root, "test", "cluster")
	if !slices.ContainsFunc(steps, func(s buildStep) bool { return !s.upToDate(sources, opts.BinDir) }) {
		return nil
	}
	if err := os.MkdirAll(opts.BinDir, 0o755); err != nil {
		return fmt.Errorf("building: %w", err)
	}
	// Clusters of several state directories share the programs.
	unlock, err := lockFile(ctx, filepath.Join(opts.BinDir, ".lock"), opts.Log)
	if err != nil {
		return err
	}
	defer unlock()
	for i, s := range steps {
		if s.upToDate(sources, opts.BinDir) {
			continue
		}
		fmt.Fprintf(opts.Log, "building %s (step %d of %d)\n", s.name, i+1, len(steps))
		begin := time.Now()
		if err := s.run(ctx, sources, opts.BinDir, opts.Log); err != nil {
			return fmt.Errorf("building %s: %w", s.name, err)
		}
		fmt.Fprintf(opts.Log, "built %s in %s\n", s.name, time.Since(begin).Round(time.Second))
	}
	return nil
}

// missing returns the path of an output that does not exist, or "".
func (s buildStep) missing(bin string) string {
	for _, output := range s.outputs {
		if path := filepath.Join(bin, output); !exists(path) {
			return path
		}
	}
	return ""
}

func (s buildStep) stamp(bin string) string { return filepath.Join(bin, "."+s.name+".stamp") }

// upToDate reports whether the outputs were built from the sources as they are. The stamp of an earlier build says so in
// a millisecond; asking the go command would take seconds, for thousands of packages.
func (s buildStep) upToDate(sources, bin string) bool {
	want, err := s.fingerprint(sources)
	if err != nil {
		return false
	}
	got, err := os.ReadFile(s.stamp(bin))
	return err == nil && string(got) == want && s.missing(bin) == ""
}

// fingerprint covers everything that decides what comes out: the compiler, the flags, the modules' versions and the
// sources of our own.
func (s buildStep) fingerprint(sources string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), s.args("", nil))
	files := []string{"go.mod", "go.sum"}
	for _, pkg := range s.packages {
		if strings.HasPrefix(pkg, "./") {
			own, err := filepath.Glob(filepath.Join(sources, s.module, pkg, "*.go"))
			if err != nil {
				return "", err
			}
			for _, path := range own {
				files = append(files, filepath.Join(pkg, filepath.Base(path)))
			}
		}
	}
	for _, file := range files {
		if s.module == "." && strings.HasPrefix(file, "go.") {
			continue // our own module's versions do not reach into the pause program
		}
		b, err := os.ReadFile(filepath.Join(sources, s.module, file))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", file, len(b), b)
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n", nil
}

// args are the go command's, to build into the directory out.
func (s buildStep) args(out string, more []string) []string {
	args := append([]string{
		"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + s.ldflags), "-o", out + string(filepath.Separator),
	}, more...)
	return append(args, s.packages...)
}

// run builds into a directory beside the outputs and moves them over: a program that runs keeps its old file.
func (s buildStep) run(ctx context.Context, sources, bin string, log io.Writer) error {
	want, err := s.fingerprint(sources)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(bin, ".build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	module := filepath.Join(sources, s.module)
	list := goCommand(ctx, module, append([]string{"list", "-deps"}, s.packages...)...)
	packages, _ := list.Output() // only for the progress lines
	p := &progress{name: s.name, total: bytes.Count(packages, []byte("\n")), begin: time.Now()}
	cmd := goCommand(ctx, module, s.args(tmp, []string{"-v"})...) // -v names each package as it is compiled
	if err := p.watch(cmd, log); err != nil {
		return err
	}
	for _, output := range s.outputs {
		if err := os.Rename(filepath.Join(tmp, output), filepath.Join(bin, output)); err != nil {
			return err
		}
	}
	return writeFile(s.stamp(bin), []byte(want), 0o644)
}

// goCommand is a go command in a module of ours. GOFLAGS and a workspace of the caller's would change what is built.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on")
	// Interrupted, the go command ends its compilers and cleans up; killed, it would leave both behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// progressPause is the longest time without a line while a step runs.
const progressPause = 15 * time.Second

// progress turns the output of `go build -v` into progress lines.
type progress struct {
	name  string
	total int // packages at most; those that are cached are not compiled
	begin time.Time

	mu       sync.Mutex // protects following
	compiled int
	fetched  int
	last     string
	messages []string
}

// watch runs cmd and writes a line every progressPause. Its error has what the compiler said.
func (p *progress) watch(cmd *exec.Cmd, log io.Writer) error {
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: Go 1.26 or newer is needed, in PATH", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.add(lines.Text())
		}
	}()
	tick := time.NewTicker(progressPause)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
			fmt.Fprintln(log, p)
		case <-done:
			running = false
		}
	}
	if err := cmd.Wait(); err != nil {
		return errors.New(strings.Join(append(p.messages[max(0, len(p.messages)-30):], "go build: "+err.Error()), "\n"))
	}
	return nil
}

// add takes one line of output: a package that is compiled, a module that is fetched, or else a message.
func (p *progress) add(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case strings.HasPrefix(line, "go: downloading "):
		p.fetched++
	case !strings.ContainsAny(line, " \t:#") && line != "":
		p.compiled++
		p.last = line
	default:
		p.messages = append(p.messages, line)
	}
}

// String is the progress line.
func (p *progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := ""
	if p.total > 0 {
		of = " of at most " + strconv.Itoa(p.total)
	}
	line := fmt.Sprintf("building %s: %s, %d%s packages", p.name, time.Since(p.begin).Round(time.Second), p.compiled, of)
	if p.fetched > 0 {
		line += fmt.Sprintf(", %d modules fetched", p.fetched)
	}
	if p.last != "" {
		line += ", at " + p.last
	}
	return line
}
