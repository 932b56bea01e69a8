//go:build cluster

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/test/cluster/image"
)

// testLog passes a cluster's progress on to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// fullOptions are those of a cluster of the test's own, beside whatever cluster the clone has up.
func fullOptions(t *testing.T) Options {
	t.Helper()
	if err := checkHost(); err != nil {
		t.Fatal(err) // with the remedy
	}
	// Not t.TempDir: a failed Down must not be hidden by its removal. The path is longer than a socket's may be.
	dir, err := os.MkdirTemp("", "sluice-test-"+strings.Repeat("long", 20)) //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Dir: dir, Log: testLog{t}}
	t.Cleanup(func() {
		if err := Down(context.Background(), opts); err != nil {
			t.Errorf("Down: %v", err)
		}
		if !t.Failed() { // the logs
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return opts
}

// pids are the recorded processes by name.
func (c *Cluster) pids(t *testing.T) map[string]int {
	t.Helper()
	rec, err := c.loadRecord()
	if err != nil {
		t.Fatal(err)
	}
	pids := make(map[string]int)
	for _, p := range rec.Processes {
		pids[p.Name] = p.PID
	}
	return pids
}

// kubectl runs kubectl as a person would, from outside of the network namespace.
func (c *Cluster) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.path("bin", "kubectl"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "KUBECONFIG=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// web is a program for pods: an HTTP server.
const web = `package main

import (
	"fmt"
	"net"
	"net/http"
)

func main() {
	fmt.Println("serving")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		addrs, err := net.LookupHost(r.FormValue("name"))
		fmt.Fprint(w, addrs, err)
	})
	panic(http.ListenAndServe(":8080", nil))
}
`

// loadWeb builds web, makes its image and loads it.
func loadWeb(t *testing.T, c *Cluster) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module web\n\ngo 1.26\n", "main.go": web} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := goCommand(t.Context(), dir, "build", "-o", "web", ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	tar := filepath.Join(dir, "web.tar")
	const name = "docker.io/sluice/web:test"
	if err := image.Write(tar, image.Options{Name: name, Binary: filepath.Join(dir, "web")}); err != nil {
		t.Fatal(err)
	}
	if err := c.LoadImage(t.Context(), tar); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFullCluster is the life of a cluster: up, up again, a pod, DNS, an attack with kill -9, down, and up anew.
func TestFullCluster(t *testing.T) {
	opts := fullOptions(t)
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	pids := c.pids(t)

	begin := time.Now()
	again, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("second Start: %v", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("second Start took %s, want it to attach", took)
	}
	if diff := cmp.Diff(pids, again.pids(t)); diff != "" {
		t.Errorf("processes after the second Start (-first +second):\n%s", diff)
	}
	if err := inNetns(c.Netns(), func() error { _, err := Attach(t.Context(), opts); return err }); err != nil {
		t.Errorf("Attach inside of the network namespace: %v", err)
	}

	checkPod(t, c, loadWeb(t, c))
	checkAudit(t, c)

	// Every second process, and with them the parents of others.
	var killed int
	for _, pid := range c.pids(t) {
		if killed++; killed%2 == 0 {
			kill(t, pid)
		}
	}
	if err := Down(t.Context(), opts); err != nil {
		t.Fatalf("Down of a half dead cluster: %v", err)
	}
	checkNothingLeft(t, c)

	c, err = Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("Start after Down: %v", err)
	}
	// The other way round: Start itself replaces what is half dead.
	kill(t, c.pids(t)["kube-apiserver"])
	kill(t, c.pids(t)["containerd"])
	c, err = Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("Start over a half dead cluster: %v", err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, c)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

// checkPod runs a pod to Ready behind a Service, and asks it for its view of DNS.
func checkPod(t *testing.T, c *Cluster, imageName string) {
	t.Helper()
	c.kubectl(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec:
  securityContext: {runAsNonRoot: true}
  containers:
  - name: web
    image: %s
    imagePullPolicy: Never
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`, imageName), "apply", "-f", "-")
	c.kubectl(t, "", "wait", "--for=condition=Ready", "pod/web-0", "--timeout=60s")
	ip := strings.TrimSpace(c.kubectl(t, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))

	if got := fetch(t, c, "http://"+ip+"/"); got != "hello" {
		t.Errorf("GET through the Service: %q, want hello", got)
	}
	// A short name takes the pod's search domains; the Service's own address comes back.
	for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local"} {
		if got, want := fetch(t, c, "http://"+ip+"/lookup?name="+name), "["+ip+"] <nil>"; got != want {
			t.Errorf("lookup of %s in the pod: %s, want %s", name, got, want)
		}
	}
	if got := fetch(t, c, "http://"+ip+"/lookup?name=elsewhere.example"); !strings.Contains(got, "no such host") {
		t.Errorf("lookup of a foreign name in the pod: %s, want it not to exist", got)
	}
	if err := dnsReady(t.Context(), c.Netns()); err != nil {
		t.Errorf("lookup from the network namespace: %v", err)
	}
	if got := strings.TrimSpace(c.kubectl(t, "", "logs", "web-0")); got != "serving" {
		t.Errorf("kubectl logs: %q, want serving", got)
	}
}

// fetch gets url from inside of the network namespace. kube-proxy takes up to a second to learn of a ready pod.
func fetch(t *testing.T, c *Cluster, url string) string {
	t.Helper()
	transport := &http.Transport{DialContext: dialer(c.Netns())}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var body []byte
	err := poll(ctx, url, 100*time.Millisecond, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// checkAudit finds one write in the audit log at once, and not what is not logged.
func checkAudit(t *testing.T, c *Cluster) {
	t.Helper()
	c.kubectl(t, "", "create", "deployment", "audited", "--image=none", "--replicas=0")
	c.kubectl(t, "", "scale", "deployment", "audited", "--replicas=0")
	b, err := os.ReadFile(c.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for line := range strings.Lines(string(b)) {
		var event struct {
			Verb          string
			ObjectRef     struct{ Resource, Subresource, Name string }
			RequestObject json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		if event.ObjectRef.Name == "audited" {
			got[event.Verb+" "+event.ObjectRef.Resource+"/"+event.ObjectRef.Subresource]++
			if len(event.RequestObject) == 0 {
				t.Error("the audit log lacks the request's body")
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"patch deployments/scale": 1}, got); diff != "" {
		t.Errorf("audited writes (-want +got):\n%s", diff)
	}
}

// checkNothingLeft looks at the system, not at the cluster's own records.
func checkNothingLeft(t *testing.T, c *Cluster) {
	t.Helper()
	for _, p := range append(c.marked(), c.contained()...) {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		t.Errorf("process %d is left: %q", p.PID, cmdline)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mountinfo)) {
		if strings.Contains(line, c.dir+"/") || strings.Contains(line, c.name) {
			t.Errorf("mount is left: %s", line)
		}
	}
	for _, pattern := range []string{
		"/run/netns/" + c.name, "/run/" + c.name, "/var/lib/" + c.name, "/sys/fs/cgroup/" + c.name, "/sys/fs/cgroup/*/" + c.name,
		"/var/lib/cni/results/" + c.name + "-*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			t.Errorf("%s is left", path)
		}
	}
}
