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
// that there is one answer for each metric.
//
// An empty name and an empty namespace mean all of them in a SubjectAccessReview (k8s.io/api/authorization/v1,
// ResourceAttributes). RBAC only ever allows: what it allows without a name or namespace is by a rule that names no
// objects and is bound to the whole cluster, which allows the one as well. An authorizer that takes single objects out
// of such a rule, as a webhook may, is asked about the one by the API server that a read comes through; of a read that
// comes to the adapter's own port it is not.
//
// A denial of all decides nothing, and is remembered as one of all: who may not costs one more review for each metric.
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
