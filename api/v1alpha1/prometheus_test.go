package v1alpha1

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func TestExpand(t *testing.T) {
	tests := []struct{ name, query, want string }{
		{name: "nothing to fill in", query: `sum(rate(x{a="b"}[1m]))`, want: `sum(rate(x{a="b"}[1m]))`},
		{
			name:  "both, more than once",
			query: `sum(q{namespace="{{.Namespace}}",pod=~"{{.Function}}-.*"}) / sum(r{function="{{.Function}}"})`,
			want:  `sum(q{namespace="shop",pod=~"hello-.*"}) / sum(r{function="hello"})`,
		},
		{name: "spaces inside", query: `q{a="{{ .Namespace }}/{{  .Function}}"}`, want: `q{a="shop/hello"}`},
		{name: "beside the braces of a selector", query: `q{{{.Function}}}`, want: `q{hello}`},
		{name: "another field stays", query: `q{a="{{.Name}}"}`, want: `q{a="{{.Name}}"}`},
		{name: "a longer name stays", query: `q{a="{{.Functions}}"}`, want: `q{a="{{.Functions}}"}`},
		{name: "an action stays", query: `{{range .Function}}{{end}}`, want: `{{range .Function}}{{end}}`},
		{name: "no dot, no close", query: `{{Function}} {{.Function}`, want: `{{Function}} {{.Function}`},
		{name: "not across lines", query: "{{\n.Function}}", want: "{{\n.Function}}"},
		{name: "not again in what was filled in", query: `{{.{{.Function}}}}`, want: `{{.hello}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := PrometheusMetric{Query: tt.query}
			if diff := cmp.Diff(tt.want, m.Expand(types.NamespacedName{Namespace: "shop", Name: "hello"})); diff != "" {
				t.Error("-want +got:\n" + diff)
			}
		})
	}
}

// The longest query that is admitted cannot grow beyond what its names allow.
func TestExpandIsBounded(t *testing.T) {
	m := PrometheusMetric{Query: strings.Repeat("{{.Function}}", 4096/13)}
	fn := types.NamespacedName{Namespace: "shop", Name: strings.Repeat("f", 63)}
	if got, most := len(m.Expand(fn)), 4096/13*63; got != most {
		t.Errorf("expands to %d bytes, want %d", got, most)
	}
}
