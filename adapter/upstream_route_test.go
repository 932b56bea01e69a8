package adapter

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// routeWorld is a namespace with function hello, whose Deployment has another name and whose Service it shares with
// function twin. Pod hello-1 counts its own requests.
var routeWorld = fakeReader{
	named("hello"): {
		labels: map[string]string{"team": "a"}, metrics: []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds, "queue_depth"},
		workload: deployment("hello-v2", map[string]string{"app": "hello"}),
		service:  service("shared", map[string]string{"app": "shared"}),
		pods:     []fakePod{{name: "hello-1", labels: map[string]string{"app": "hello"}}},
	},
	named("twin"): {
		metrics:  []string{v1alpha1.RequestsPerSecond},
		workload: deployment("twin", map[string]string{"app": "twin"}),
		service:  service("shared", map[string]string{"app": "shared"}),
	},
}

func TestWhoseAQuestionIs(t *testing.T) {
	const (
		ours    = "ours"
		theirs  = "theirs"
		library = "library" // answers itself: no question of a value, or one that is not well formed
		custom  = "/apis/custom.metrics.k8s.io/v1beta2/"
		ns      = custom + "namespaces/default/"
		ext     = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/"
	)
	tests := []struct{ name, path, want string }{
		{"a function", ns + "functions.sluice.dev/hello/requests_per_second", ours},
		{"a function that is not there", ns + "functions.sluice.dev/nobody/requests_per_second", ours},
		{"a function's metric that nobody has", ns + "functions.sluice.dev/hello/zzz", ours},
		{"all functions", ns + "functions.sluice.dev/*/zzz", ours},
		{"all functions of all namespaces", custom + "functions.sluice.dev/*/requests_per_second", ours},

		{"its workload", ns + "deployments.apps/hello-v2/requests_per_second", ours},
		{"its workload, a reserved name that nobody counts", ns + "deployments.apps/hello-v2/request_duration_seconds", ours},
		{"its workload, its query", ns + "deployments.apps/hello-v2/queue_depth", ours},
		{"its workload, another metric", ns + "deployments.apps/hello-v2/cpu_temperature", theirs},
		{"another workload", ns + "deployments.apps/other/requests_per_second", theirs},
		{"a workload of the function's name", ns + "deployments.apps/hello/requests_per_second", theirs},
		{"another kind of its workload's name", ns + "statefulsets.apps/hello-v2/requests_per_second", theirs},
		{"its workload's name in another namespace", custom + "namespaces/other/deployments.apps/hello-v2/requests_per_second", theirs},
		{"a Service of two, a reserved name", ns + "services/shared/requests_per_second", ours},
		{"a Service of two, the query of one", ns + "services/shared/queue_depth", ours},
		{"a Service of two, another metric", ns + "services/shared/zzz", theirs},

		{"its pod", ns + "pods/hello-1/requests_per_second", ours},
		{"its pod, another metric", ns + "pods/hello-1/memory", theirs},
		{"another pod", ns + "pods/other-1/requests_per_second", theirs},
		{"by Kubeless", ns + "functions.kubeless.io/hello/requests_per_second", ours},
		{"another function of Kubeless", ns + "functions.kubeless.io/other/requests_per_second", theirs},

		{"pods by a selector that matches one of ours", ns + "pods/*/requests_per_second?labelSelector=app%3Dhello", ours},
		{"pods by a selector that matches none of ours", ns + "pods/*/requests_per_second?labelSelector=app%3Dother", theirs},
		{"pods, another metric", ns + "pods/*/memory?labelSelector=app%3Dhello", theirs},
		{"pods in a namespace without functions", custom + "namespaces/other/pods/*/requests_per_second", theirs},
		{"workloads, a query that the match has", ns + "deployments.apps/*/queue_depth?labelSelector=app%3Dhello", ours},
		{"workloads, a query that only the other has", ns + "deployments.apps/*/queue_depth?labelSelector=app%3Dtwin", theirs},
		{"workloads of another kind", ns + "statefulsets.apps/*/requests_per_second", theirs},
		{"Services by a selector", ns + "services/*/requests_per_second?labelSelector=app%3Dshared", ours},
		{"by Kubeless and a selector", ns + "functions.kubeless.io/*/requests_per_second?labelSelector=team%3Da", ours},
		{"workloads of all namespaces", custom + "deployments.apps/*/queue_depth?labelSelector=app%3Dhello", ours},

		{"a namespace, reserved", ns + "metrics/requests_per_second", ours},
		{"a namespace, another metric", ns + "metrics/quota_used", theirs},
		{"a node", custom + "nodes/a/requests_per_second", theirs},
		{"all nodes", custom + "nodes/*/requests_per_second", theirs},

		{"external of a function", ext + "queue_depth?labelSelector=function%3Dhello", ours},
		{"external of one of several", ext + "queue_depth?labelSelector=function+in+(x,hello)", ours},
		{"external, reserved", ext + "requests_in_flight?labelSelector=function%3Dhello", ours},
		{"external of a function, another metric", ext + "s0-kafka-orders?labelSelector=function%3Dhello", theirs},
		{"external of a function that is not there", ext + "queue_depth?labelSelector=function%3Dnobody", theirs},
		{"external of a function elsewhere", "/apis/external.metrics.k8s.io/v1beta1/namespaces/other/queue_depth?labelSelector=function%3Dhello", theirs},
		{"external, all but a function", ext + "queue_depth?labelSelector=function%21%3Dhello", theirs},
		{"external of KEDA", ext + "s0-cron?labelSelector=scaledobject.keda.sh%2Fname%3Dx", theirs},
		{"external without a selector", ext + "requests_per_second", theirs},

		{"a selector that cannot be read", ns + "pods/*/memory?labelSelector=a+b", library},
		{"a path that leads elsewhere", ns + "pods/../memory", library},
		{"a path that leads elsewhere, encoded", ns + "pods/%2e%2e/memory", library},
		{"a path with a hole", custom + "namespaces//pods/other-1/memory", library},
		{"more than a metric", ns + "pods/other-1/memory/more", library},
		{"more than an external metric", ext + "s0-cron/more", library},
		{"another verb", custom + "proxy/namespaces/default/pods/other-1/memory", library},
		{"another verb, external", "/apis/external.metrics.k8s.io/v1beta1/proxy/namespaces/default/s0-cron", library},
		{"a watch", ns + "pods/*/memory?watch=true", library},
		{"discovery", "/apis/custom.metrics.k8s.io/v1beta2", library},
		{"no metric", ns + "pods/hello-1", library},
		{"another group", "/apis/metrics.k8s.io/v1beta1/nodes/a", library},
	}
	resolver := request.RequestInfoFactory{APIPrefixes: sets.NewString("apis")}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, tt.path, nil)
			info, err := resolver.NewRequestInfo(r)
			if err != nil {
				t.Fatal(err)
			}
			got := library
			if q, ok := ask(info, r.URL.Query()); ok {
				got = theirs
				if q.ours(routeWorld) {
					got = ours
				}
			}
			if got != tt.want {
				t.Errorf("%s is %s, want %s", tt.path, got, tt.want)
			}
		})
	}
}

// FuzzForwardedIsWhatWasAuthorized: what the upstream makes of a path is what the caller was authorized for.
func FuzzForwardedIsWhatWasAuthorized(f *testing.F) {
	for _, path := range []string{
		ownRead, othersRead, "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/s0-cron?labelSelector=a%3Db",
		customPath + "pods/a%2Fb/memory", customPath + "pods/../memory", customPath + "pods/%2e%2e/memory?a=b;c", customPath + "metrics/quota%3Fx",
		"/apis/custom.metrics.k8s.io/v1beta2/nodes/a%23/memory", "/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/status/b/c",
	} {
		f.Add(path)
	}
	resolver := request.RequestInfoFactory{APIPrefixes: sets.NewString("apis")}
	u := newTestUpstream(f, &otherAdapter{})
	f.Fuzz(func(t *testing.T, path string) {
		asked, err := url.ParseRequestURI(path)
		if err != nil {
			t.Skip()
		}
		r := &http.Request{Method: http.MethodGet, URL: asked}
		authorized, err := resolver.NewRequestInfo(r)
		if err != nil {
			t.Skip()
		}
		if _, ok := ask(authorized, asked.Query()); !ok {
			return
		}
		forwarded, err := (&forward{upstream: u, caller: r}).request(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		there, err := url.ParseRequestURI(forwarded.URL.RequestURI())
		if err != nil {
			t.Fatal(err)
		}
		got, err := resolver.NewRequestInfo(&http.Request{Method: http.MethodGet, URL: there})
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(authorized, got); diff != "" {
			t.Errorf("-authorized +asked for:\n%s", diff)
		}
		if diff := gocmp.Diff(asked.Query(), there.Query()); diff != "" {
			t.Errorf("-authorized +asked for:\n%s", diff)
		}
	})
}
