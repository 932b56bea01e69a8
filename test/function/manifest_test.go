package main

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// What the Deployment and the Service in function.yaml must agree on. Strict decoding finds misspelt fields. The Function
// beside them is checked by the demo, which reads it.
func TestManifest(t *testing.T) {
	file, err := os.ReadFile("function.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := bytes.Split(file, []byte("\n---\n"))
	if len(docs) != 3 {
		t.Fatalf("%d documents, want 3", len(docs))
	}
	var deployment appsv1.Deployment
	var service corev1.Service
	for i, into := range []any{&deployment, &service} {
		if err := yaml.UnmarshalStrict(docs[i], into); err != nil {
			t.Fatalf("document %d: %v", i, err)
		}
	}

	labels := deployment.Spec.Template.Labels
	if diff := cmp.Diff(labels, deployment.Spec.Selector.MatchLabels); diff != "" {
		t.Errorf("the Deployment does not select its own pods:\n%s", diff)
	}
	if diff := cmp.Diff(labels, service.Spec.Selector); diff != "" {
		t.Errorf("the Service does not select the Deployment's pods:\n%s", diff)
	}
	if deployment.Spec.Replicas != nil {
		t.Error("the Deployment sets replicas: applying the file again would undo what Sluice scaled")
	}
	c := deployment.Spec.Template.Spec.Containers[0]
	stop := c.Lifecycle.PreStop.Sleep.Seconds
	grace := *deployment.Spec.Template.Spec.TerminationGracePeriodSeconds
	_, opts, err := parse(nil, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if drain := int64(opts.Drain / time.Second); stop+drain >= grace {
		t.Errorf("preStop %d s and drain %d s do not fit into the grace period of %d s", stop, drain, grace)
	}
}
