package adapter

import (
	"context"

	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// broadFirst asks whether the caller may do it to every object of every namespace before it asks about the one.
//
// The delegated authorizer remembers 8,192 answers, one for each caller, verb, metric and object. The
// HorizontalPodAutoscaler controller reads every function by turns, so that with more functions than that no answer is
// still there when it comes round again, and each read costs a SubjectAccessReview. It may read all of them, and of
// that there is one answer for each metric. An empty name and an empty namespace mean all of them in a
// SubjectAccessReview (k8s.io/api/authorization/v1, ResourceAttributes), so who may do that may do the one.
//
// A caller who may not costs one more review for each metric, which is remembered as any denial is.
func broadFirst(next authorizer.Authorizer) authorizer.AuthorizerFunc {
	return func(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		if a.IsResourceRequest() && (a.GetNamespace() != "" || a.GetName() != "") {
			decision, reason, err := next.Authorize(ctx, authorizer.AttributesRecord{
				User: a.GetUser(), Verb: a.GetVerb(), APIGroup: a.GetAPIGroup(), APIVersion: a.GetAPIVersion(),
				Resource: a.GetResource(), Subresource: a.GetSubresource(), ResourceRequest: true,
			})
			if err == nil && decision == authorizer.DecisionAllow {
				return decision, reason, nil
			}
		}
		return next.Authorize(ctx, a)
	}
}
