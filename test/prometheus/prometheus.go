// Package prometheus runs a real Prometheus server for tests: it finds or fetches the program, and starts and stops it
// with data of its own. Nothing is installed.
package prometheus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/test/port"
)

// startTimeout bounds how long a server may take until it answers queries.
const startTimeout = 60 * time.Second

// Find returns the path of the program: what an earlier call has put below dir, or prometheus in PATH, or else that of
// the Debian package, which is fetched and unpacked below dir. The Debian program needs nothing but libc and its loader.
func Find(ctx context.Context, dir string) (string, error) {
	dir, err := filepath.Abs(dir) // what fetches it works elsewhere
	if err != nil {
		return "", err
	}
	kept := filepath.Join(dir, "usr", "bin", "prometheus")
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	if path, err := exec.LookPath("prometheus"); err == nil {
		return path, nil
	}
	if err := fetch(ctx, dir); err != nil {
		return "", fmt.Errorf("there is no program prometheus in PATH, and its Debian package cannot be fetched "+
			"(as root: apt-get update): %w", err)
	}
	return kept, nil
}

// fetch unpacks the Debian package into dir. It works beside it and moves the result there, so that dir is complete
// whenever it exists.
func fetch(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".prometheus-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = tmp
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out[max(0, len(out)-1000):])
		}
		return nil
	}
	download := []string{"apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "prometheus"}
	if err := run(download...); err != nil {
		if os.Geteuid() != 0 {
			return err
		}
		// A machine that is new has no lists of packages, an old one has lists of what is no more.
		if err := run("apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", "update"); err != nil {
			return err
		}
		if err := run(download...); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download left %d packages, want 1", len(packages))
	}
	if err := run("dpkg-deb", "-x", packages[0], "unpacked"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "unpacked"), dir); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
		return err // what is there already is somebody else's of the same
	}
	return nil
}

// Options of a Server.
type Options struct {
	// Binary is the program. Required; see Find.
	Binary string
	// Dir takes configuration, data and log, and is the same for a server that is started again. Required.
	Dir string
	// Address to listen on, host:port. Default: a free port of loopback.
	Address string
	// Targets that are scraped every second.
	Targets []Target
	// Users who may ask, with the bcrypt hashes of their passwords. Default: everybody.
	Users map[string]string
	// TLS makes the server speak https.
	TLS *TLS
}

// Target is an address that is scraped at /metrics, and the labels that its series get.
type Target struct {
	Address string
	Labels  map[string]string
}

// TLS names files in PEM.
type TLS struct {
	// Cert and Key of the server.
	Cert, Key string
	// ClientCA is whose certificates clients must have. Default: they need none.
	ClientCA string
}

// Server is a Prometheus server that runs.
type Server struct {
	// URL of it, without a path.
	URL string
	// Address of it, host:port.
	Address string

	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	err  error         // of the process; read after done
}

// Start starts a server and returns when it answers queries. It ends with ctx, or by Stop.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{Address: o.Address, log: filepath.Join(o.Dir, "log"), done: make(chan struct{})}
	if s.Address == "" {
		free, err := port.Free(ctx, "127.0.0.1", 1)
		if err != nil {
			return nil, err
		}
		s.Address = free[0]
	}
	s.URL = "http://" + s.Address
	if o.TLS != nil {
		s.URL = "https://" + s.Address
	}
	args, err := o.arguments(s.Address)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	s.cmd = exec.CommandContext(ctx, o.Binary, args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = 20 * time.Second
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start prometheus: %w", err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	if err := s.wait(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Stop ends the server and returns when it has ended. It may be called more than once.
func (s *Server) Stop() error {
	_ = s.cmd.Cancel() // it may have ended by itself
	<-s.done
	var exit *exec.ExitError
	if s.err != nil && !errors.As(s.err, &exit) && !errors.Is(s.err, context.Canceled) {
		return fmt.Errorf("stop prometheus: %w", s.err)
	}
	return nil
}

// wait waits for the line in the log that says that queries are answered: whatever the server is asked may need
// credentials.
func (s *Server) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		said, err := os.ReadFile(s.log)
		if err != nil {
			return err
		}
		if bytes.Contains(said, []byte("Server is ready to receive web requests")) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.done:
			return fmt.Errorf("prometheus ended: %w: %s", s.err, said)
		case <-ctx.Done():
			return fmt.Errorf("prometheus does not become ready: %w: %s", context.Cause(ctx), said)
		}
	}
}

// arguments writes the server's files and returns its command line. JSON is YAML too.
func (o Options) arguments(address string) ([]string, error) {
	type object map[string]any
	var targets []object
	for _, t := range o.Targets {
		targets = append(targets, object{"targets": []string{t.Address}, "labels": t.Labels})
	}
	web := object{}
	if len(o.Users) > 0 {
		web["basic_auth_users"] = o.Users
	}
	if o.TLS != nil {
		config := object{"cert_file": o.TLS.Cert, "key_file": o.TLS.Key}
		if o.TLS.ClientCA != "" {
			config["client_ca_file"], config["client_auth_type"] = o.TLS.ClientCA, "RequireAndVerifyClientCert"
		}
		web["tls_server_config"] = config
	}
	files := map[string]object{
		"prometheus.yml": {
			"global":         object{"scrape_interval": "1s", "scrape_timeout": "1s"},
			"scrape_configs": []object{{"job_name": "functions", "static_configs": targets}},
		},
		"web.yml": web,
	}
	for name, content := range files {
		b, err := json.Marshal(content)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(o.Dir, name), b, 0o600); err != nil {
			return nil, err
		}
	}
	return []string{
		"--config.file=" + filepath.Join(o.Dir, "prometheus.yml"), "--web.config.file=" + filepath.Join(o.Dir, "web.yml"),
		"--storage.tsdb.path=" + filepath.Join(o.Dir, "data"), "--web.listen-address=" + address,
	}, nil
}
