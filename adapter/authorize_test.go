package adapter

import (
	"context"
	"errors"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// reviews answers by what is asked, "namespace/name", and notes the questions.
type reviews struct {
	answers map[string]authorizer.Decision
	err     error
	asked   []string
}

func (r *reviews) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	key := a.GetNamespace() + "/" + a.GetName()
	if !a.IsResourceRequest() {
		key = a.GetPath()
	}
	r.asked = append(r.asked, a.GetUser().GetName()+" "+a.GetVerb()+" "+a.GetResource()+"/"+a.GetSubresource()+" "+key)
	return r.answers[key], "", r.err
}

func TestBroadFirst(t *testing.T) {
	const all, one = "u get functions.sluice.dev/requests_per_second /", "u get functions.sluice.dev/requests_per_second default/hello"
	read := authorizer.AttributesRecord{
		User: &user.DefaultInfo{Name: "u"}, Verb: "get", APIGroup: "custom.metrics.k8s.io", APIVersion: "v1beta2",
		Namespace: "default", Resource: "functions.sluice.dev", Subresource: "requests_per_second", Name: "hello", ResourceRequest: true,
	}
	path := authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "u"}, Verb: "get", Path: "/metrics"}
	allow, deny, none := authorizer.DecisionAllow, authorizer.DecisionDeny, authorizer.DecisionNoOpinion
	for _, tt := range []struct {
		name    string
		a       authorizer.Attributes
		answers map[string]authorizer.Decision
		err     error
		want    authorizer.Decision
		asked   []string
	}{
		{name: "who may read all may read one", a: read, answers: map[string]authorizer.Decision{"/": allow}, want: allow, asked: []string{all}},
		{
			name: "who may read one", a: read, answers: map[string]authorizer.Decision{"/": none, "default/hello": allow},
			want: allow, asked: []string{all, one},
		},
		{
			name: "a denial of all is none of the one", a: read, answers: map[string]authorizer.Decision{"/": deny, "default/hello": allow},
			want: allow, asked: []string{all, one},
		},
		{name: "nobody", a: read, answers: map[string]authorizer.Decision{"/": none, "default/hello": none}, want: none, asked: []string{all, one}},
		{
			name: "an error is no leave", a: read, answers: map[string]authorizer.Decision{"/": allow}, err: errors.New("down"),
			want: authorizer.Decision(0), asked: []string{all, one},
		},
		{name: "what is not a resource is asked once", a: path, answers: map[string]authorizer.Decision{"/metrics": allow}, want: allow, asked: []string{"u get / /metrics"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &reviews{answers: tt.answers, err: tt.err}
			got, _, err := broadFirst(authorizer.AuthorizerFunc(r.authorize)).Authorize(t.Context(), tt.a)
			if tt.err != nil {
				if !errors.Is(err, tt.err) {
					t.Errorf("got error %v, want %v", err, tt.err)
				}
			} else if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if diff := gocmp.Diff(tt.asked, r.asked); diff != "" {
				t.Errorf("questions (-want +got):\n%s", diff)
			}
		})
	}
}

// rule is one of RBAC: of a ClusterRoleBinding where it has no namespace, of all objects where it has no names.
type rule struct {
	namespace, subresource string
	names                  []string
}

// rbac decides as the API server's RBAC does (plugin/pkg/auth/authorizer/rbac of k8s.io/kubernetes), by what attributes
// of objects matter to it.
type rbac []rule

func (rules rbac) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	for _, r := range rules {
		if (r.namespace == "" || r.namespace == a.GetNamespace()) && (r.subresource == "*" || r.subresource == a.GetSubresource()) &&
			(len(r.names) == 0 || slices.Contains(r.names, a.GetName())) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// TestBroadFirstAllowsWhatRBACDoes goes through all pairs of rules, and all that may be asked.
func TestBroadFirstAllowsWhatRBACDoes(t *testing.T) {
	var rules []rule
	for _, namespace := range []string{"", "a", "b"} {
		for _, subresource := range []string{"*", "rate", "lag"} {
			for _, names := range [][]string{nil, {"x"}, {"x", "y"}, {"*"}} {
				rules = append(rules, rule{namespace, subresource, names})
			}
		}
	}
	allowed, refused := 0, 0
	ask := func(world rbac, a authorizer.Attributes) {
		want, _, _ := world.authorize(t.Context(), a)
		got, _, err := broadFirst(authorizer.AuthorizerFunc(world.authorize)).Authorize(t.Context(), a)
		if err != nil || got != want {
			t.Fatalf("by %+v, %s/%s/%s is %v, %v; RBAC says %v", world, a.GetNamespace(), a.GetName(), a.GetSubresource(), got, err, want)
		}
		if got == authorizer.DecisionAllow {
			allowed++
		} else {
			refused++
		}
	}
	for i, first := range rules {
		for _, second := range rules[i:] {
			for _, namespace := range []string{"", "a", "b"} {
				for _, name := range []string{"", "x", "y", "*"} {
					for _, subresource := range []string{"rate", "lag"} {
						ask(rbac{first, second}, authorizer.AttributesRecord{
							User: &user.DefaultInfo{Name: "u"}, Verb: "get", Namespace: namespace, Resource: "functions.sluice.dev",
							Subresource: subresource, Name: name, ResourceRequest: true,
						})
					}
				}
			}
		}
	}
	if allowed == 0 || refused == 0 {
		t.Errorf("%d allowed, %d refused: nothing was shown", allowed, refused)
	}
}
