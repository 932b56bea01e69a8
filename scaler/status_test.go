package scaler

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// The status is to be read by people: no more digits than they can use.
func TestShownValue(t *testing.T) {
	tests := []struct {
		value float64
		want  string
	}{
		{53.228, "53"}, {9.96, "10"}, {10.5, "11"}, {4.26, "4300m"}, {0.04, "0"}, {0.06, "100m"}, {0, "0"}, {123456.7, "123457"},
	}
	for _, tt := range tests {
		if got := shownValue(tt.value).String(); got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.value, got, tt.want)
		}
	}
}

// Nothing is read while a function sleeps, so that its status shows no value; one that is left from before goes with
// the next write, but is no reason for one.
func TestNoValuesWhileIdle(t *testing.T) {
	target := resource.MustParse("50")
	want := []v1alpha1.MetricStatus{{Name: "requests_per_second", Target: &target}, {Name: "requests_in_flight"}}
	inStory(t, awakeWorld(newFunction("hello")), func(s *story) {
		s.metrics("hello", 0, 53.228)
		s.reconcile("hello")
		if got := s.function("hello").Status.Metrics[0].Value.String(); got != "53" {
			s.Errorf("awake: rate %s, want 53", got)
		}
		s.fallAsleep("hello")
		if diff := cmp.Diff(want, s.function("hello").Status.Metrics); diff != "" {
			s.Errorf("asleep (-want +got):\n%s", diff)
		}

		fn := s.function("hello")
		fn.Status.Metrics[0].Value = resource.NewQuantity(53, resource.DecimalSI)
		if err := s.Status().Update(s.Context(), fn); err != nil {
			s.Fatal(err)
		}
		s.restart()
		s.writes = nil
		s.pass(time.Hour)
		s.reconcile("hello")
		s.wroteNothing()
		s.respec("hello", func(spec *v1alpha1.FunctionSpec) { spec.Scale.MaxReplicas++ })
		s.reconcile("hello")
		if diff := cmp.Diff(want, s.function("hello").Status.Metrics); diff != "" {
			s.Errorf("after another write (-want +got):\n%s", diff)
		}

		// Awake again, and not read yet: nothing is made up.
		s.scale("hello", 1)
		s.reconcile("hello")
		if got := s.function("hello").Status.Metrics[0].Value; got != nil {
			s.Errorf("waking: rate %s, want none", got)
		}
	})
}
