package kafka

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed pom.xml
var pom []byte

// Find returns Kafka's class path: jars that an earlier call has put below dir, or else those of pom.xml, which Maven
// fetches there. Java, and where jars are missing Maven, are installed where they are missing and we are root on Debian.
func Find(ctx context.Context, dir string) (classPath string, err error) {
	if err := install(ctx, "java", "default-jre-headless"); err != nil {
		return "", err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// Another pom.xml is another directory, so that a change of version is seen.
	lib := filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(pom))[:12])
	if _, err := os.Stat(lib); errors.Is(err, os.ErrNotExist) {
		if err := fetch(ctx, lib); err != nil {
			return "", fmt.Errorf("fetch Kafka's jars: %w", err)
		}
	}
	jars, err := filepath.Glob(filepath.Join(lib, "*.jar"))
	if err != nil || len(jars) == 0 {
		return "", fmt.Errorf("there are no jars in %s: remove it", lib)
	}
	return strings.Join(jars, string(filepath.ListSeparator)), nil
}

// fetch has Maven copy the jars into lib. It works beside it and moves the result there, so that lib is complete
// whenever it exists.
func fetch(ctx context.Context, lib string) error {
	if err := install(ctx, "mvn", "maven"); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(lib), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(lib), ".kafka-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	file, made := filepath.Join(tmp, "pom.xml"), filepath.Join(tmp, "lib")
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return err
	}
	if err := run(ctx, nil, "mvn", "-q", "-B", "-f", file, "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+made); err != nil {
		return err
	}
	if err := os.Rename(made, lib); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
		return err // what is there already is somebody else's of the same
	}
	return nil
}

// install sees to it that program is there: by its Debian package where that is allowed, by an error that names it elsewhere.
func install(ctx context.Context, program, debian string) error {
	_, missing := exec.LookPath(program)
	if missing == nil {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("there is no program %s; install it (Debian: apt-get install --no-install-recommends default-jre-headless maven): %w", program, missing)
	}
	apt := []string{"apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"}
	quiet := []string{"DEBIAN_FRONTEND=noninteractive"}
	if err := run(ctx, quiet, append(apt, "update")...); err != nil {
		return err
	}
	return run(ctx, quiet, append(apt, "install", "-y", "--no-install-recommends", debian)...)
}

func run(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(out))
	}
	return nil
}

// tail is the end of a program's output, where it says why it failed.
func tail(out []byte) []byte { return out[max(0, len(out)-2000):] }
