// Package image makes container images without a container engine: one layer that holds one static Go program, in a
// docker-archive that containerd imports. The same program gives the same bytes, whenever and wherever it is made.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"
)

// User is the user and group that the program runs as: "nonroot" of the distroless images, a number because the image
// has no /etc/passwd.
const User = "65532:65532"

// Options describe an image.
type Options struct {
	// Name is the full reference, such as "docker.io/sluice/adapter:dev". Pods must name the same one, with
	// imagePullPolicy Never or IfNotPresent.
	Name string

	// Binary is the path of the program, a static Linux executable. It becomes the entrypoint, under its base name
	// in the image's root directory.
	Binary string

	// Architecture of the image in Go's terms. Default: that of the binary.
	Architecture string
}

// Write makes the image and writes its docker-archive to tarPath, in one step.
func Write(tarPath string, opts Options) error {
	if opts.Name == "" {
		return errors.New("making an image: no name")
	}
	program, err := os.ReadFile(opts.Binary)
	if err != nil {
		return fmt.Errorf("making image %s: %w", opts.Name, err)
	}
	arch, err := checkStatic(program)
	if err != nil {
		return fmt.Errorf("making image %s: %s: %w", opts.Name, opts.Binary, err)
	}
	if opts.Architecture == "" {
		opts.Architecture = arch
	}
	archive, err := build(opts, program)
	if err != nil {
		return fmt.Errorf("making image %s: %w", opts.Name, err)
	}
	tmp := tarPath + ".tmp"
	if err := os.WriteFile(tmp, archive, 0o644); err != nil {
		return fmt.Errorf("making image %s: %w", opts.Name, err)
	}
	if err := os.Rename(tmp, tarPath); err != nil {
		return fmt.Errorf("making image %s: %w", opts.Name, err)
	}
	return nil
}

// manifest is an entry of manifest.json.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// build makes the archive: configuration, layer, manifest.
func build(opts Options, program []byte) ([]byte, error) {
	name := filepath.Base(opts.Binary)
	var layer bytes.Buffer
	if err := writeTar(&layer, file{name, 0o755, program}); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": opts.Architecture,
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC().Format(time.RFC3339),
		"config":       map[string]any{"Entrypoint": []string{path.Join("/", name)}, "User": User, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer.Bytes())}},
		"history":      []any{map[string]any{"created": time.Unix(0, 0).UTC().Format(time.RFC3339), "created_by": "sluice test/cluster/image"}},
	})
	if err != nil {
		return nil, err
	}
	m := manifest{Config: digest(config) + ".json", RepoTags: []string{opts.Name}, Layers: []string{digest(layer.Bytes()) + ".tar"}}
	list, err := json.Marshal([]manifest{m})
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	err = writeTar(&archive, file{m.Config, 0o644, config}, file{m.Layers[0], 0o644, layer.Bytes()}, file{"manifest.json", 0o644, list})
	return archive.Bytes(), err
}

type file struct {
	name string
	mode int64
	data []byte
}

// writeTar writes files that all belong to root and are all from 1970.
func writeTar(w io.Writer, files ...file) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// checkStatic tells the architecture of a program that runs in an image without any library.
func checkStatic(program []byte) (arch string, err error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", fmt.Errorf("not a Linux program (build it with GOOS=linux): %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("linked dynamically, and the image has no libraries: build it with CGO_ENABLED=0")
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	default:
		return "", fmt.Errorf("built for %v: amd64 and arm64 are known", f.Machine)
	}
}

// Names lists the references in the docker-archive at tarPath.
func Names(tarPath string) ([]string, error) {
	f, err := os.Open(tarPath)
	if err != nil {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	defer func() { _ = f.Close() }()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("reading image %s: no manifest.json in it, so it is not a docker-archive", tarPath)
		}
		if err != nil {
			return nil, fmt.Errorf("reading image %s: %w", tarPath, err)
		}
		if h.Name != "manifest.json" {
			continue
		}
		var manifests []manifest
		if err := json.NewDecoder(io.LimitReader(t, 1<<20)).Decode(&manifests); err != nil {
			return nil, fmt.Errorf("reading image %s: manifest.json: %w", tarPath, err)
		}
		var names []string
		for _, m := range manifests {
			names = append(names, m.RepoTags...)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("reading image %s: it has no name", tarPath)
		}
		return names, nil
	}
}
