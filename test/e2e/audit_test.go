//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// write is a write that the API server has accepted.
type write struct {
	Stage, Verb    string
	User           struct{ Username string }
	ObjectRef      struct{ Resource, Subresource, Namespace, Name string }
	ResponseStatus struct{ Code int }
	StageTimestamp time.Time
}

// writes are those to the story's objects that match, from the API server's audit log.
func (s *story) writes(match func(write) bool) []write {
	s.Helper()
	f, err := os.Open(s.cluster.AuditLog())
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	var found []write
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if !strings.Contains(lines.Text(), s.namespace) {
			continue
		}
		var w write
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			continue // the last line may be half written
		}
		if w.Stage == "ResponseComplete" && w.ResponseStatus.Code/100 == 2 && w.ObjectRef.Namespace == s.namespace && match(w) {
			found = append(found, w)
		}
	}
	if err := lines.Err(); err != nil {
		s.Fatal(err)
	}
	return found
}

// scaleWrites are those to a Deployment's scale.
func (s *story) scaleWrites(deployment string) []write {
	s.Helper()
	return s.writes(func(w write) bool {
		ref := w.ObjectRef
		return ref.Resource == "deployments" && ref.Subresource == "scale" && ref.Name == deployment && (w.Verb == "patch" || w.Verb == "update")
	})
}

// wakes are those of them by which an activator has woken the Deployment.
func (s *story) wakes(deployment string) []write {
	s.Helper()
	var wakes []write
	for _, w := range s.scaleWrites(deployment) {
		if w.User.Username == "system:serviceaccount:"+v1alpha1.SystemNamespace+":sluice-activator" {
			wakes = append(wakes, w)
		}
	}
	return wakes
}
