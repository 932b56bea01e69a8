package adapter

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// fakeReader has a value or an error for each function and metric.
type fakeReader map[types.NamespacedName]fakeFunction

type fakeFunction struct {
	labels            map[string]string
	metrics           []string
	value             providers.Value
	err               error
	workload, service providers.Object
	pods              []fakePod
	lag               *providers.ConsumerLag
}

type fakePod struct {
	name   string
	labels map[string]string
	value  providers.Value
	err    error
}

func (r fakeReader) Info(name types.NamespacedName) (providers.Info, error) {
	fn, ok := r[name]
	if !ok {
		return providers.Info{}, providers.ErrNoFunction
	}
	return providers.Info{
		Name: name, Labels: fn.labels, Metrics: fn.metrics, Workload: fn.workload, Service: fn.service,
	}, nil
}

func (r fakeReader) ConsumerLag(name types.NamespacedName, metric string) (providers.ConsumerLag, error) {
	fn, ok := r[name]
	switch {
	case !ok:
		return providers.ConsumerLag{}, providers.ErrNoFunction
	case fn.lag == nil || fn.lag.Consumer.Metric(v1alpha1.KafkaLag) != metric:
		return providers.ConsumerLag{}, &providers.Unknown{Reason: providers.NoMetric}
	}
	return *fn.lag, nil
}

func (r fakeReader) List(namespace string) []providers.Info {
	var infos []providers.Info
	for name := range r {
		if namespace == "" || name.Namespace == namespace {
			info, _ := r.Info(name)
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b providers.Info) int { return cmp.Compare(a.Name.String(), b.Name.String()) })
	return infos
}

func (r fakeReader) Value(name types.NamespacedName, metric string) (providers.Value, error) {
	fn, ok := r[name]
	switch {
	case !ok:
		return providers.Value{}, providers.ErrNoFunction
	case fn.err == nil && !slices.Contains(fn.metrics, metric):
		return providers.Value{}, &providers.Unknown{Reason: providers.NoMetric, Detail: "there is no metric " + metric}
	case metric == v1alpha1.IdleSeconds:
		return providers.Value{Value: fn.value.Value, At: fn.value.At}, fn.err
	}
	return fn.value, fn.err
}

func (r fakeReader) Owner(namespace string, resource schema.GroupResource, name string) (providers.Info, error) {
	var found []providers.Info
	for _, fn := range r.List(namespace) {
		for _, o := range []providers.Object{fn.Workload, fn.Service} {
			if o.Resource == resource && o.Name == name {
				found = append(found, fn)
			}
		}
	}
	switch len(found) {
	case 0:
		return providers.Info{}, providers.ErrNoFunction
	case 1:
		return found[0], nil
	}
	ambiguous := &providers.Ambiguous{}
	for _, fn := range found {
		ambiguous.Functions = append(ambiguous.Functions, fn.Name)
	}
	return providers.Info{}, ambiguous
}

func (r fakeReader) Pods(namespace string) []providers.PodInfo {
	var infos []providers.PodInfo
	for _, fn := range r.List(namespace) {
		for _, pod := range r[fn.Name].pods {
			infos = append(infos, providers.PodInfo{
				Pod: providers.Object{Kind: podKind, Resource: pods, Name: pod.name, Labels: pod.labels, Exists: true}, Function: fn.Name,
			})
		}
	}
	slices.SortFunc(infos, func(a, b providers.PodInfo) int { return cmp.Compare(a.Pod.Name, b.Pod.Name) })
	return infos
}

func (r fakeReader) PodValue(namespace, name, metric string) (providers.Value, error) {
	for _, fn := range r.List(namespace) {
		for _, pod := range r[fn.Name].pods {
			switch {
			case pod.name != name:
			case !slices.Contains(ofPods, metric):
				return providers.Value{}, &providers.Unknown{Reason: providers.NoMetric, Detail: "there is no metric " + metric + " of a pod"}
			default:
				return pod.value, pod.err
			}
		}
	}
	return providers.Value{}, providers.ErrNoPod
}

func named(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func deployment(name string, labels map[string]string) providers.Object {
	return providers.Object{
		Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
		Resource: schema.GroupResource{Group: "apps", Resource: "deployments"}, Name: name, Labels: labels, Exists: true,
	}
}

func service(name string, labels map[string]string) providers.Object {
	return providers.Object{
		Kind:     schema.GroupVersionKind{Version: "v1", Kind: "Service"},
		Resource: schema.GroupResource{Resource: "services"}, Name: name, Labels: labels, Exists: true,
	}
}

var (
	at     = time.Date(2026, 11, 23, 6, 30, 15, 0, time.UTC)
	silent = &providers.Unknown{
		Reason: providers.Stale, Source: "pod 10.0.0.7:8080", Age: 7200 * time.Millisecond, Err: errors.New("i/o timeout"),
	}
)

// functions are a world of one awake, one idle, one unknown and one uncounted function. In namespace shop all is known:
// two functions, of which one has pods that count, and a third that only has a query.
var functions = fakeReader{
	named("awake"): {
		labels: map[string]string{"app": "a"}, metrics: append(slices.Clone(reserved), "queue_depth"),
		value:    providers.Value{Value: 12.3456, At: at, Window: 30 * time.Second},
		workload: deployment("awake-v2", map[string]string{"tier": "web"}),
		service:  service("front", map[string]string{"tier": "web"}),
		pods: []fakePod{
			{name: "awake-1", labels: map[string]string{"app": "a"}, value: providers.Value{Value: 8, At: at, Window: 30 * time.Second}},
			{name: "awake-2", labels: map[string]string{"app": "a"}, err: silent},
			{name: "awake-3", labels: map[string]string{"app": "a"}, value: providers.Value{Value: 4.3456, At: at, Window: 12 * time.Second}},
		},
	},
	named("idle"): {
		metrics: reserved, value: providers.Value{At: at, Window: 29600 * time.Millisecond},
		workload: providers.Object{
			Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"},
			Resource: schema.GroupResource{Group: "apps", Resource: "statefulsets"}, Name: "idle", Exists: true,
		},
		service: service("shared", nil),
	},
	named("stale"): {
		labels: map[string]string{"app": "a"}, metrics: reserved, err: silent,
		workload: deployment("stale", map[string]string{"tier": "web"}),
		service:  service("shared", nil),
		pods:     []fakePod{{name: "stale-1", labels: map[string]string{"app": "stale"}, err: silent}},
	},
	named("uncounted"): {
		metrics: []string{v1alpha1.RequestsPerSecond, v1alpha1.IdleSeconds},
		err:     &providers.Unknown{Reason: providers.NotCounted, Remedy: "name a gauge in spec.traffic.podMetrics.inFlight"},
		workload: providers.Object{
			Kind:     schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"},
			Resource: schema.GroupResource{Group: "apps", Resource: "deployments"}, Name: "gone",
		},
	},
	{Namespace: "other", Name: "awake"}: {metrics: reserved, value: providers.Value{Value: 1, At: at}},
	{Namespace: "shop", Name: "cart"}: {
		metrics: reserved, value: providers.Value{Value: 2.5, At: at.Add(-2 * time.Second), Window: time.Minute},
		workload: deployment("cart", nil),
	},
	{Namespace: "shop", Name: "orders"}: {
		metrics: []string{"queue_depth"}, value: providers.Value{Value: 1000, At: at},
	},
	{Namespace: "shop", Name: "pay"}: {
		metrics: reserved, value: providers.Value{Value: 40, At: at, Window: 30 * time.Second}, workload: deployment("pay", nil),
	},
}
