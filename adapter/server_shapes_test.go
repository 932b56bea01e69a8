package adapter

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	custommetricsv1beta1 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta1"
	custommetricsv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalmetricsv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// shape is a read whose answer is compared with a file of that name.
type shape struct {
	name, path string
	code       int
}

const defaultNamespace = "/namespaces/default/"

var customShapes = []shape{
	{name: "discovery", path: "", code: http.StatusOK},
	{name: "one", path: defaultNamespace + "functions.sluice.dev/awake/requests_per_second", code: http.StatusOK},
	{name: "idle", path: defaultNamespace + "functions.sluice.dev/idle/requests_in_flight", code: http.StatusOK},
	{name: "idle-seconds", path: defaultNamespace + "functions.sluice.dev/awake/idle_seconds", code: http.StatusOK},
	{name: "query", path: defaultNamespace + "functions.sluice.dev/awake/queue_depth", code: http.StatusOK},
	{name: "all", path: defaultNamespace + "functions.sluice.dev/*/requests_per_second", code: http.StatusOK},
	{name: "all-namespaces", path: "/functions.sluice.dev/*/requests_per_second", code: http.StatusOK},
	{name: "none", path: defaultNamespace + "functions.sluice.dev/*/requests_per_second?labelSelector=app=zzz", code: http.StatusOK},
	{name: "no-metric-labels", path: defaultNamespace + "functions.sluice.dev/*/requests_per_second?metricLabelSelector=a=b", code: http.StatusOK},
	{name: "deployment", path: defaultNamespace + "deployments.apps/awake-v2/requests_per_second", code: http.StatusOK},
	{name: "deployments", path: defaultNamespace + "deployments.apps/*/requests_per_second?labelSelector=tier=web", code: http.StatusOK},
	{name: "statefulset", path: defaultNamespace + "statefulsets.apps/idle/requests_per_second", code: http.StatusOK},
	{name: "service", path: defaultNamespace + "services/front/requests_per_second", code: http.StatusOK},
	{name: "kubeless", path: defaultNamespace + "functions.kubeless.io/awake/requests_per_second", code: http.StatusOK},
	{name: "pod", path: defaultNamespace + "pods/awake-1/requests_per_second", code: http.StatusOK},
	{name: "pods", path: defaultNamespace + "pods/*/requests_per_second?labelSelector=app=a", code: http.StatusOK},
	{name: "namespace", path: "/namespaces/shop/metrics/requests_per_second", code: http.StatusOK},

	{name: "unknown", path: defaultNamespace + "functions.sluice.dev/stale/requests_per_second", code: http.StatusServiceUnavailable},
	{name: "unknown-pods", path: defaultNamespace + "pods/*/requests_per_second?labelSelector=app=stale", code: http.StatusServiceUnavailable},
	{name: "unknown-namespace", path: defaultNamespace + "metrics/requests_per_second", code: http.StatusServiceUnavailable},
	{name: "no-function", path: defaultNamespace + "functions.sluice.dev/nobody/requests_per_second", code: http.StatusNotFound},
	{name: "no-metric", path: defaultNamespace + "functions.sluice.dev/awake/latency", code: http.StatusNotFound},
	{name: "no-pods", path: defaultNamespace + "pods/*/requests_per_second?labelSelector=app=zzz", code: http.StatusNotFound},
	{name: "no-owner", path: defaultNamespace + "deployments.apps/nobody/requests_per_second", code: http.StatusNotFound},
	{name: "ambiguous", path: defaultNamespace + "services/shared/requests_per_second", code: http.StatusNotFound},
	{name: "no-sum", path: "/namespaces/shop/metrics/request_duration_seconds", code: http.StatusNotFound},
	{name: "no-namespace", path: "/functions.sluice.dev/awake/requests_per_second", code: http.StatusNotFound},
	{name: "bad-selector", path: defaultNamespace + "functions.sluice.dev/*/requests_per_second?labelSelector=a%20b", code: http.StatusBadRequest},
	{name: "bad-metric-selector", path: defaultNamespace + "functions.sluice.dev/*/requests_per_second?metricLabelSelector=a%20b", code: http.StatusBadRequest},
}

var externalShapes = []shape{
	{name: "discovery", path: "", code: http.StatusOK},
	{name: "one", path: defaultNamespace + "requests_per_second?labelSelector=function%3Dawake", code: http.StatusOK},
	{name: "query", path: defaultNamespace + "queue_depth?labelSelector=function%3Dawake", code: http.StatusOK},
	{name: "several", path: "/namespaces/shop/requests_per_second?labelSelector=function+in+(cart,pay)", code: http.StatusOK},
	{name: "unknown", path: defaultNamespace + "requests_per_second?labelSelector=function+in+(awake,stale)", code: http.StatusServiceUnavailable},
	{name: "no-function", path: defaultNamespace + "requests_per_second?labelSelector=function%3Dnobody", code: http.StatusNotFound},
	{name: "none", path: "/namespaces/empty/requests_per_second", code: http.StatusNotFound},
	{name: "other-label", path: defaultNamespace + "requests_per_second?labelSelector=app%3Da", code: http.StatusBadRequest},
	{name: "bad-selector", path: defaultNamespace + "requests_per_second?labelSelector=a%20b", code: http.StatusBadRequest},
	{name: "watch", path: defaultNamespace + "requests_per_second?watch=true", code: http.StatusMethodNotAllowed},
}

// shapes are all, by the prefix of their paths, which is also the directory of their files.
var shapes = map[string][]shape{
	"custom.metrics.k8s.io/v1beta1": customShapes, "custom.metrics.k8s.io/v1beta2": customShapes,
	"external.metrics.k8s.io/v1beta1": externalShapes,
}

// TestShapes compares what is served with files, because other programs read it by these shapes.
func TestShapes(t *testing.T) {
	r := start(t, nil)
	for prefix, shapes := range shapes {
		for _, tt := range shapes {
			t.Run(prefix+"/"+tt.name, func(t *testing.T) {
				code, body := r.try("/apis/"+prefix+tt.path, "good")
				if code != tt.code {
					t.Errorf("status %d, want %d: %s", code, tt.code, body)
				}
				var got bytes.Buffer
				if err := json.Indent(&got, []byte(body), "", "  "); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				golden(t, filepath.Join("testdata", filepath.FromSlash(prefix), tt.name+".json"), got.Bytes())
			})
		}
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	got = append(bytes.TrimSpace(got), '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./adapter -update", err)
	}
	if diff := gocmp.Diff(string(want), string(got)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// TestProtobuf: what protobuf says, which is what the HorizontalPodAutoscaler's controller asks for, is what JSON says.
func TestProtobuf(t *testing.T) {
	r := start(t, nil)
	decode := func(t *testing.T, path, accept string) runtime.Object {
		t.Helper()
		resp := r.ask(path, "good", accept)
		if got := resp.header.Get("Content-Type"); got != accept {
			t.Fatalf("Content-Type %q, want %q: %s", got, accept, resp.body)
		}
		object, _, err := apiserver.Codecs.UniversalDeserializer().Decode([]byte(resp.body), nil, nil)
		if err != nil {
			t.Fatalf("%v: %q", err, resp.body)
		}
		object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		return object
	}
	for prefix, shapes := range shapes {
		for _, tt := range shapes {
			t.Run(prefix+"/"+tt.name, func(t *testing.T) {
				want := decode(t, "/apis/"+prefix+tt.path, "application/json")
				got := decode(t, "/apis/"+prefix+tt.path, "application/vnd.kubernetes.protobuf")
				if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Error("-JSON +protobuf:\n" + diff)
				}
				answers := false
				switch got.(type) {
				case *custommetricsv1beta1.MetricValueList, *custommetricsv1beta2.MetricValueList,
					*externalmetricsv1beta1.ExternalMetricValueList, *metav1.APIResourceList:
					answers = true
				}
				if answers != (tt.code == http.StatusOK) {
					t.Errorf("status %d is a %T", tt.code, got)
				}
			})
		}
	}
}

// TestTables: kubectl get asks for tables, which these APIs do not have; it takes a list as well.
func TestTables(t *testing.T) {
	r := start(t, nil)
	for prefix, path := range map[string]string{
		"custom.metrics.k8s.io/v1beta2":   defaultNamespace + "functions.sluice.dev/awake/requests_per_second",
		"external.metrics.k8s.io/v1beta1": defaultNamespace + "requests_per_second?labelSelector=function%3Dawake",
	} {
		accept := "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
		if got := r.ask("/apis/"+prefix+path, "good", accept); got.code != http.StatusOK || !strings.Contains(got.body, "ValueList") {
			t.Errorf("%s: status %d: %s", prefix, got.code, got.body)
		}
	}
}

// TestHPAClient asks as the HorizontalPodAutoscaler's controller does, with its own clients.
func TestHPAClient(t *testing.T) {
	r := start(t, nil)
	client, err := discovery.NewDiscoveryClientForConfig(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	// The aggregation layer takes discovery in its aggregated form, as this client does.
	_, resources, err := client.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, list := range resources {
		listed[list.GroupVersion] = len(list.APIResources)
	}
	all := len(functionMetrics{}.ListAllMetrics())
	want := map[string]int{
		"custom.metrics.k8s.io/v1beta1": all, "custom.metrics.k8s.io/v1beta2": all, "external.metrics.k8s.io/v1beta1": len(reserved),
	}
	if diff := gocmp.Diff(want, listed); diff != "" {
		t.Error("resources, -want +got:\n" + diff)
	}
	deploymentKind := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	kinds := []schema.GroupVersionKind{functionKind, kubelessKind, podKind, deploymentKind}
	var versions []schema.GroupVersion
	for _, kind := range kinds {
		versions = append(versions, kind.GroupVersion())
	}
	mapper := apimeta.NewDefaultRESTMapper(versions)
	for _, kind := range kinds {
		mapper.Add(kind, apimeta.RESTScopeNamespace)
	}
	root := custom_metrics.NewForConfig(r.config("good"), mapper, custom_metrics.NewAvailableAPIsGetter(client))
	metrics := root.NamespacedMetrics("default")
	function := functionKind.GroupKind()
	for kind, name := range map[schema.GroupVersionKind]string{functionKind: "awake", kubelessKind: "awake", deploymentKind: "awake-v2"} {
		v, err := metrics.GetForObject(kind.GroupKind(), name, v1alpha1.RequestsPerSecond, labels.Everything())
		if err != nil || v.Value.MilliValue() != 12346 || !v.Timestamp.Time.Equal(at) || *v.WindowSeconds != 30 {
			t.Errorf("value of %s = %+v, %v", kind, v, err)
		}
	}
	// The words are those of the HPA's condition, behind "unable to fetch metrics from custom metrics API: ".
	_, err = metrics.GetForObject(function, "stale", v1alpha1.RequestsPerSecond, labels.Everything())
	if !apierrors.IsServiceUnavailable(err) || err.Error() != "requests_per_second of Function default/stale is unknown: "+
		"stale: the last answer of pod 10.0.0.7:8080 is 7.2s old: i/o timeout" {
		t.Errorf("error = %v, want the reason in words", err)
	}
	list, err := metrics.GetForObjects(function, labels.Everything(), v1alpha1.RequestsPerSecond, labels.Everything())
	if err != nil || len(list.Items) != 2 {
		t.Errorf("list = %+v, %v; want the two that are known", list, err)
	}
	list, err = metrics.GetForObjects(podKind.GroupKind(), selector(t, "app=a"), v1alpha1.RequestsPerSecond, labels.Everything())
	if err != nil || len(list.Items) != 2 || *list.Items[1].WindowSeconds != 12 {
		t.Errorf("pods = %+v, %v; want the two that are known", list, err)
	}
	v, err := root.RootScopedMetrics().GetForObject(namespaceKind.GroupKind(), "shop", v1alpha1.RequestsPerSecond, labels.Everything())
	if err != nil || v.Value.MilliValue() != 42500 {
		t.Errorf("value of a namespace = %+v, %v", v, err)
	}
	external, err := external_metrics.NewForConfig(r.config("good"))
	if err != nil {
		t.Fatal(err)
	}
	items, err := external.NamespacedMetrics("shop").List(v1alpha1.RequestsPerSecond, selector(t, "function in (cart, pay)"))
	if err != nil || len(items.Items) != 2 || items.Items[1].Value.MilliValue() != 40000 || items.Items[0].Timestamp.Time != at.Add(-2*time.Second).Local() {
		t.Errorf("external = %+v, %v", items, err)
	}
}

// FuzzPath: whatever is asked for, the answer is a value with its time or one line of words, and no internal error.
func FuzzPath(f *testing.F) {
	for _, shapes := range [][]shape{customShapes, externalShapes} {
		for _, s := range shapes {
			f.Add("custom.metrics.k8s.io/v1beta2" + s.path)
			f.Add("external.metrics.k8s.io/v1beta1" + s.path)
		}
	}
	f.Add("custom.metrics.k8s.io/v1beta1/namespaces/default/namespaces/x/requests_per_second")
	f.Add("custom.metrics.k8s.io/v1beta1/namespaces//metrics/requests_per_second")
	f.Add("custom.metrics.k8s.io/v1beta1/namespaces/*/functions.sluice.dev/*/requests_per_second")
	f.Add("custom.metrics.k8s.io/v1beta1/pods/*/requests_per_second/more?fieldSelector=metadata.name%3Dx")
	r := start(f, nil)
	f.Fuzz(func(t *testing.T, path string) {
		asking := *r
		asking.t = t
		got := asking.ask("/apis/"+path, "good", "application/json")
		if got.code == 0 || got.code >= 300 && got.code < 400 {
			t.Skip() // no path, or one that the client is sent to in another form
		}
		if got.code >= 500 && got.code != http.StatusServiceUnavailable {
			t.Fatalf("%q: status %d: %s", path, got.code, got.body)
		}
		var answer struct {
			Message string
			Items   []struct{ Timestamp time.Time }
		}
		if json.Unmarshal([]byte(got.body), &answer) != nil {
			return // the words of a router that knows no such path
		}
		if strings.Contains(answer.Message, "\n") {
			t.Errorf("%q: more than one line: %q", path, answer.Message)
		}
		for _, item := range answer.Items {
			if item.Timestamp.IsZero() {
				t.Errorf("%q: a value without a time: %s", path, got.body)
			}
		}
	})
}
