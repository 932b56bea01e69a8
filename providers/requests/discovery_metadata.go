package requests

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	metadataclient "k8s.io/client-go/metadata"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/sluice-dev/sluice/providers"
)

// metadata is the uid and the labels of all objects of one kind, as a watch of their metadata tells them. It is a
// store of its own, and not an informer's, because it holds every pod of the cluster: an informer's object takes three
// times as much.
type metadata struct {
	changed func(types.NamespacedName) // called after a change that can be seen, but not for what is there at first

	mu      sync.RWMutex // protects following
	objects map[types.NamespacedName]described
	synced  bool
}

// described is what is kept of an object.
type described struct {
	uid      types.UID
	labels   string    // as labels.Set writes them, which is always in the same order
	appeared time.Time // when the watch told of it; zero for what was there at first
}

var _ toolscache.TransformingStore = (*metadata)(nil)

// follow keeps the metadata of resource, of the objects that the field selector picks, until ctx ends.
func (m *metadata) follow(ctx context.Context, client metadataclient.Interface, resource schema.GroupVersionResource, fields string) {
	objects := client.Resource(resource)
	source := toolscache.ToListWatcherWithWatchListSemantics(&toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields
			return objects.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields
			return objects.Watch(ctx, o)
		},
	}, client)
	toolscache.NewReflectorWithOptions(source, &metav1.PartialObjectMetadata{}, m, toolscache.ReflectorOptions{
		Name: "metadata of " + resource.Resource,
	}).RunWithContext(ctx)
}

// find fills in o, whose name is that of name. One with another uid is another object that has the name now, as pods of
// StatefulSets do: of the one that is meant nothing is known any more.
func (m *metadata) find(name types.NamespacedName, uid types.UID, o *providers.Object) {
	m.mu.RLock()
	found, ok := m.objects[name]
	m.mu.RUnlock()
	if !ok || uid != "" && found.uid != uid {
		return
	}
	o.Exists = true
	if found.labels == "" {
		return
	}
	o.Labels = map[string]string{}
	for label := range strings.SplitSeq(found.labels, ",") {
		key, value, _ := strings.Cut(label, "=")
		o.Labels[key] = value
	}
}

// age is how long the object has been known: for ages what was there at first, and no time at all what is not known.
func (m *metadata) age(name types.NamespacedName, uid types.UID) time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if found, ok := m.objects[name]; ok && found.uid == uid {
		return time.Since(found.appeared)
	}
	return 0
}

func (m *metadata) hasSynced() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced
}

// Add, Update, Delete and Replace are those of a toolscache.ReflectorStore.
func (m *metadata) Add(object any) error { return m.Update(object) }

func (m *metadata) Update(object any) error {
	if o, ok := object.(*metav1.PartialObjectMetadata); ok {
		name, now := keep(o)
		m.mu.Lock()
		was, known := m.objects[name]
		now.since(was)
		if m.objects == nil {
			m.objects = map[types.NamespacedName]described{}
		}
		m.objects[name] = now
		m.mu.Unlock()
		if !known || was != now { // most events are of the status
			m.changed(name)
		}
	}
	return nil
}

func (m *metadata) Delete(object any) error {
	if o, ok := object.(*metav1.PartialObjectMetadata); ok {
		name, _ := keep(o)
		m.mu.Lock()
		delete(m.objects, name)
		m.mu.Unlock()
		m.changed(name)
	}
	return nil
}

func (m *metadata) Replace(list []any, _ string) error {
	now := make(map[types.NamespacedName]described, len(list))
	for _, object := range list {
		if o, ok := object.(*metav1.PartialObjectMetadata); ok {
			name, d := keep(o)
			now[name] = d
		}
	}
	m.mu.Lock()
	was, again := m.objects, m.synced
	if again {
		for name, d := range now {
			d.since(was[name])
			now[name] = d
		}
	}
	m.objects, m.synced = now, true
	m.mu.Unlock()
	if !again {
		return nil
	}
	gone := maps.Clone(was)
	for name, d := range now {
		if before, known := was[name]; !known || before != d {
			m.changed(name)
		}
		delete(gone, name)
	}
	for name := range gone {
		m.changed(name)
	}
	return nil
}

// Resync has nothing to do.
func (m *metadata) Resync() error { return nil }

// Transformer strips the objects of a first list before they have all come.
func (m *metadata) Transformer() toolscache.TransformFunc {
	return func(object any) (any, error) {
		if o, ok := object.(*metav1.PartialObjectMetadata); ok {
			o.ObjectMeta = stripped(&o.ObjectMeta)
		}
		return object, nil
	}
}

// since takes from what was known of the name when the object appeared; now, if that was another one.
func (d *described) since(was described) {
	if d.appeared = was.appeared; was.uid != d.uid {
		d.appeared = time.Now()
	}
}

// keep takes what is kept of o.
func keep(o *metav1.PartialObjectMetadata) (types.NamespacedName, described) {
	return types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, described{uid: o.UID, labels: labels.Set(o.Labels).String()}
}
