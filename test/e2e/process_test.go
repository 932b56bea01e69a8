//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// process is the directory in /proc of the process of that name in a pod, which runs on this machine.
func (s *story) process(pod types.UID, name string) string {
	s.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		s.Fatal(err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		group, _ := os.ReadFile(file) // a process that has ended meanwhile is none that is looked for
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		if bytes.Contains(group, []byte("pod"+pod)) && strings.TrimSpace(string(comm)) == name {
			return dir
		}
	}
	s.Fatalf("no process %s in the control groups of pod %s", name, pod)
	return ""
}

// signal sends a signal to the process of that name in a pod.
func (s *story) signal(pod types.UID, name string, sig syscall.Signal) {
	s.Helper()
	pid, err := strconv.Atoi(filepath.Base(s.process(pod, name)))
	if err != nil {
		s.Fatal(err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		s.Fatalf("signal %s to %s of pod %s: %v", sig, name, pod, err)
	}
}

// freeze stops a process where it is, until thaw.
func (s *story) freeze(pod types.UID, name string) (thaw func()) {
	s.Helper()
	s.signal(pod, name, syscall.SIGSTOP)
	thaw = sync.OnceFunc(func() { s.signal(pod, name, syscall.SIGCONT) })
	s.Cleanup(thaw)
	eventually(s.T, 5*time.Second, "the process to stand still", func(context.Context) string {
		stat, err := os.ReadFile(filepath.Join(s.process(pod, name), "stat"))
		if err != nil {
			return err.Error()
		}
		if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
			return string(stat)
		}
		return ""
	})
	return thaw
}

// pods are those of the story with this label app.
func (s *story) pods(app string) []corev1.Pod {
	s.Helper()
	var pods corev1.PodList
	if err := s.client.List(s.Context(), &pods, client.InNamespace(s.namespace), client.MatchingLabels{"app": app}); err != nil {
		s.Fatal(err)
	}
	return pods.Items
}

// awaitNoPod waits until the last pod of app has ended. Until then an activator that has not heard of its end may send it what
// comes, and be answered.
func (s *story) awaitNoPod(app string) {
	s.Helper()
	eventually(s.T, 60*time.Second, "the last pod of "+app+" to end", func(context.Context) string {
		if n := len(s.pods(app)); n > 0 {
			return fmt.Sprintf("there are %d", n)
		}
		return ""
	})
}

// deleteAPod deletes one of the pods of app, as an eviction does.
func (s *story) deleteAPod(app string) {
	s.Helper()
	pods := s.pods(app)
	if len(pods) == 0 {
		s.Fatal("no pod of ", app)
	}
	if err := s.client.Delete(s.Context(), &pods[0]); err != nil {
		s.Fatal(err)
	}
}

// activators are the two that run.
func (s *story) activators() []corev1.Pod {
	s.Helper()
	var pods corev1.PodList
	if err := s.client.List(s.Context(), &pods, client.InNamespace(v1alpha1.SystemNamespace),
		client.MatchingLabels{"app.kubernetes.io/name": "sluice-activator"}); err != nil {
		s.Fatal(err)
	}
	if len(pods.Items) != 2 {
		s.Fatalf("%d activators; want 2", len(pods.Items))
	}
	return pods.Items
}
