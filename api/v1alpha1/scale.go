package v1alpha1

import (
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// WakePatch is a JSON patch of the scale subresource that takes a workload from zero to n replicas in one write. Its
// test matches only while replicas is zero, which the API server omits; so it never overwrites what somebody else
// scaled to.
func WakePatch(n int32) []byte {
	return fmt.Appendf(nil, `[{"op":"test","path":"/spec","value":{}},{"op":"add","path":"/spec/replicas","value":%d}]`, n)
}

// PatchTestFailed tells whether err is the API server's word that a test in a JSON patch did not match and nothing was
// changed. It is a 422 without details; an admission policy's refusal, a 422 as well, names the object or a cause.
func PatchTestFailed(err error) bool {
	if !apierrors.IsInvalid(err) {
		return false
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || (details.Name == "" && len(details.Causes) == 0)
}
