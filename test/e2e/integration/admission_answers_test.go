//go:build integration

package integration

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func fallback(f v1alpha1.Fallback) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Fallback = &f }
}

func placeholder(p v1alpha1.Placeholder) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Placeholder = &p }
}

func static(all ...v1alpha1.StaticAnswer) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Static = all }
}

// asTCP makes it a function of opaque TCP.
func asTCP(edit func(*v1alpha1.Function)) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		fn.Spec.Traffic = &v1alpha1.Traffic{Mode: v1alpha1.Proxied, Protocol: v1alpha1.ProtocolTCP}
		edit(fn)
	}
}

var acceptedAnswers = map[string]func(*v1alpha1.Function){
	"a fallback":                  fallback(v1alpha1.Fallback{Name: "sorry"}),
	"a fallback's port by name":   fallback(v1alpha1.Fallback{Name: "sorry", Port: new(intstr.FromString("http"))}),
	"a fallback's port by number": fallback(v1alpha1.Fallback{Name: "sorry", Port: new(intstr.FromInt32(80))}),
	"a placeholder of defaults":   placeholder(v1alpha1.Placeholder{}),
	"a placeholder after a while": placeholder(v1alpha1.Placeholder{After: &metav1.Duration{Duration: 2 * time.Second}}),
	"static answers":              static(v1alpha1.StaticAnswer{Path: "/"}, v1alpha1.StaticAnswer{Path: "/healthz", Status: 204, Hosts: []string{"a.example"}}),
	"a fallback and static answers": func(fn *v1alpha1.Function) {
		fallback(v1alpha1.Fallback{Name: "sorry"})(fn)
		static(v1alpha1.StaticAnswer{Path: "/robots.txt", ContentType: "text/plain"})(fn)
	},
	"answers as large as may be": func(fn *v1alpha1.Function) {
		placeholder(v1alpha1.Placeholder{Body: strings.Repeat("b", 32768), ContentType: "application/" + strings.Repeat("x", 100) + "; charset=utf-8"})(fn)
		for i := range 16 {
			path := "/" + fmt.Sprint(i) + strings.Repeat("p", 1000)
			s := v1alpha1.StaticAnswer{Path: path, Body: strings.Repeat("b", 8192)}
			for j := range 16 {
				s.Hosts = append(s.Hosts, strings.Repeat("h.", 120)+fmt.Sprint(j))
			}
			fn.Spec.Activation.Static = append(fn.Spec.Activation.Static, s)
		}
	},
}

var refusedAnswers = []refusal{
	{"a fallback without a name", fallback(v1alpha1.Fallback{}), []string{"spec.activation.fallback.name"}},
	{
		"a fallback's port of no form", fallback(v1alpha1.Fallback{Name: "sorry", Port: new(intstr.FromString("Web"))}),
		[]string{"spec.activation.fallback.port must be the name of a port"},
	},
	{
		"a fallback beside a placeholder", func(fn *v1alpha1.Function) {
			fallback(v1alpha1.Fallback{Name: "sorry"})(fn)
			placeholder(v1alpha1.Placeholder{})(fn)
		},
		[]string{"spec.activation.placeholder", "spec.activation.fallback", "remove one of the two"},
	},
	{
		"a placeholder that is none", placeholder(v1alpha1.Placeholder{Status: 101}),
		[]string{"spec.activation.placeholder.status", "greater than or equal to 200"},
	},
	{"a status beyond", placeholder(v1alpha1.Placeholder{Status: 600}), []string{"spec.activation.placeholder.status", "less than or equal to 599"}},
	{
		"a body where there is none", placeholder(v1alpha1.Placeholder{Status: 204, Body: "x"}),
		[]string{"spec.activation.placeholder.body", "204", "remove it or choose another status"},
	},
	{
		"a placeholder too large", placeholder(v1alpha1.Placeholder{Body: strings.Repeat("b", 32769)}),
		[]string{"spec.activation.placeholder.body", "32768"},
	},
	{
		"a line end in a header", placeholder(v1alpha1.Placeholder{ContentType: "text/html\r\nSet-Cookie: a=b"}),
		[]string{"spec.activation.placeholder.contentType must be a media type"},
	},
	{
		"held for an hour", placeholder(v1alpha1.Placeholder{After: &metav1.Duration{Duration: time.Hour}}),
		[]string{"spec.activation.placeholder.after must be between 0s and 10m"},
	},
	{
		"a relative path", static(v1alpha1.StaticAnswer{Path: "healthz"}),
		[]string{"spec.activation.static[].path must begin with a slash"},
	},
	{"a query", static(v1alpha1.StaticAnswer{Path: "/healthz?x"}), []string{"spec.activation.static[].path", "have no query"}},
	{
		"a body of a 304", static(v1alpha1.StaticAnswer{Path: "/", Status: 304, Body: "x"}),
		[]string{"spec.activation.static[].body", "304"},
	},
	{
		"no media type", static(v1alpha1.StaticAnswer{Path: "/", ContentType: "text"}),
		[]string{"spec.activation.static[].contentType must be a media type"},
	},
	{"a host with a port", static(v1alpha1.StaticAnswer{Path: "/", Hosts: []string{"a.example:80"}}), []string{"spec.activation.static[0].hosts[0]"}},
	{"too many", static(make([]v1alpha1.StaticAnswer, 17)...), []string{"spec.activation.static", "16"}},
	{"a fallback of TCP", asTCP(fallback(v1alpha1.Fallback{Name: "sorry"})), []string{"spec.activation", "spec.traffic.protocol is TCP"}},
	{"a placeholder of TCP", asTCP(placeholder(v1alpha1.Placeholder{})), []string{"spec.activation", "spec.traffic.protocol is TCP"}},
	{"static answers of TCP", asTCP(static(v1alpha1.StaticAnswer{Path: "/"})), []string{"spec.activation", "spec.traffic.protocol is TCP"}},
	{
		"answers to nobody", func(fn *v1alpha1.Function) {
			withoutTraffic(fn)
			static(v1alpha1.StaticAnswer{Path: "/"})(fn)
		},
		[]string{"spec.activation is about requests that are held", "remove activation"},
	},
}
