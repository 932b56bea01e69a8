package image_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/test/cluster/image"
)

// program builds a small Go program for goos.
func program(t *testing.T, goos string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module x\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() {}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", "x", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+goos, "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "x")
}

func TestWrite(t *testing.T) {
	const name = "docker.io/sluice/x:dev"
	binary := program(t, "linux")
	var archives [2][]byte
	for i := range archives {
		tar := filepath.Join(t.TempDir(), "x.tar")
		if err := image.Write(tar, image.Options{Name: name, Binary: binary}); err != nil {
			t.Fatal(err)
		}
		names, err := image.Names(tar)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{name}, names); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
		if archives[i], err = os.ReadFile(tar); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same program gave two different images")
	}
	for _, want := range []string{`"Entrypoint":["/x"]`, `"User":"65532:65532"`, `"architecture":"amd64"`} {
		if !bytes.Contains(archives[0], []byte(want)) {
			t.Errorf("the configuration lacks %s", want)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, binary, want string
	}{
		{name: "dynamic", binary: shell, want: "CGO_ENABLED=0"},
		{name: "of another system", binary: program(t, "windows"), want: "GOOS=linux"},
		{name: "missing", binary: filepath.Join(t.TempDir(), "none"), want: "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tar := filepath.Join(t.TempDir(), "x.tar")
			err := image.Write(tar, image.Options{Name: "x:dev", Binary: tt.binary})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if _, err := os.Stat(tar); err == nil {
				t.Error("an archive was written")
			}
		})
	}
}
