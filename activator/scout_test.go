package activator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// apiPods is a podReader: an API of one Service and its pods, in the namespace default.
type apiPods struct {
	service corev1.Service
	reads   atomic.Int64 // of pods, one by one
	watches atomic.Int64

	mu      sync.Mutex // protects following
	pods    map[types.UID]*corev1.Pod
	streams map[*watch.RaceFreeFakeWatcher]bool
	refuse  error // of a watch
}

func newAPIPods(address string) *apiPods {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return &apiPods{
		service: corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "hello"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt(n)}},
			},
		},
		pods: map[types.UID]*corev1.Pod{}, streams: map[*watch.RaceFreeFakeWatcher]bool{},
	}
}

func (a *apiPods) Pod(_ context.Context, name types.NamespacedName) (*corev1.Pod, error) {
	a.reads.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if pod := a.pods[types.UID(name.Name)]; pod != nil {
		return pod, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("pods"), name.Name)
}

func (a *apiPods) Service(_ context.Context, name types.NamespacedName) (*corev1.Service, error) {
	if name.Namespace != a.service.Namespace || name.Name != a.service.Name {
		return nil, apierrors.NewNotFound(corev1.Resource("services"), name.Name)
	}
	return &a.service, nil
}

func (a *apiPods) WatchPods(ctx context.Context, namespace string, labels map[string]string) (watch.Interface, error) {
	if namespace != "default" || !maps.Equal(labels, a.service.Spec.Selector) {
		return nil, fmt.Errorf("watch of %v in %s", labels, namespace)
	}
	a.watches.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return nil, a.refuse
	}
	w := watch.NewRaceFreeFake()
	for _, pod := range a.pods {
		w.Add(pod)
	}
	a.streams[w] = true
	context.AfterFunc(ctx, func() { a.end(w) })
	return w, nil
}

func (a *apiPods) end(w *watch.RaceFreeFakeWatcher) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams[w] {
		delete(a.streams, w)
		w.Stop()
	}
}

// cut ends all watches, as an API server does that restarts.
func (a *apiPods) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for w := range a.streams {
		w.Stop()
	}
	clear(a.streams)
}

// watching is the number of watches that are open.
func (a *apiPods) watching() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.streams)
}

// set creates or changes the i-th pod, whose name is that of newPodSlice.
func (a *apiPods) set(i int, change ...func(*corev1.Pod)) {
	name := "hello-" + strconv.Itoa(i)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{container("a")}},
	}
	for _, c := range change {
		c(pod)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[pod.UID] = pod
	for w := range a.streams {
		w.Modify(pod)
	}
}

func withIP(ips ...string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		for _, ip := range ips {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
}

func at(address string) func(*corev1.Pod) {
	host, _, _ := net.SplitHostPort(address)
	return withIP(host)
}

func deleting(pod *corev1.Pod) { pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(1000, 0)} }

// told sets the i-th pod, the only one that is coming then, and waits until fn knows of it.
func (a *apiPods) told(t *testing.T, fn *function, i int, address string) {
	t.Helper()
	a.set(i, at(address))
	eventually(t, "the watch tells of it", func() bool { return len(fn.pods.Load().coming) == 1 })
}

func wantServed(t *testing.T, answers <-chan answer) {
	t.Helper()
	if got := <-answers; got.status != http.StatusOK {
		t.Fatalf("got %d %q", got.status, got.body)
	}
}

// scoutedPlane holds one request for a function that has no pod, and waits until its pods are watched.
func scoutedPlane(t *testing.T, api *apiPods) (p *plane, fn *function, url string, answers chan answer) {
	t.Helper()
	p = newPlane(t, nil)
	p.proxy.podReader = api
	fn = p.add(newTestFunction("hello", timeout(10*time.Second)))
	url, answers = p.gateURL(fn), make(chan answer, 1)
	go func() { answers <- get(t, url) }()
	eventually(t, "the pods are watched", func() bool { return api.watching() == 1 })
	return p, fn, url, answers
}

// The EndpointSlices are late: what is held goes to a pod before they tell of it, and so does what comes after that, when
// nobody watches any more.
func TestPodIsFoundAheadOfItsEndpointSlice(t *testing.T) {
	address := serveEcho(t)
	api := newAPIPods(address)
	p, fn, url, answers := scoutedPlane(t, api)
	api.set(0) // has no address yet
	api.set(0, at(address))
	if got := <-answers; got.status != http.StatusOK || got.header.Get(headerColdStart) == "" {
		t.Fatalf("got %d %q, want the pod's answer and %s", got.status, got.body, headerColdStart)
	}
	eventually(t, "nobody watches any more", func() bool { return api.watching() == 0 && p.proxy.scouts.Load() == 0 })
	if n := api.reads.Load(); n != 0 {
		t.Errorf("pods read one by one: %d, want 0: the watch has told of them", n)
	}
	pod := fn.pods.Load().ready[0]
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"before its EndpointSlice", func() {}},
		{"of the Service, without it", func() { p.table.setSlice(newPodSlice("hello", 1, refusing(t), false)) }},
		{"not ready", func() { p.table.setSlice(newPodSlice("hello", 0, address, false)) }},
		{"ready", func() { p.table.setSlice(newPodSlice("hello", 0, address, true)) }},
	} {
		step.do()
		if got := get(t, url); got.status != http.StatusOK || got.header.Get(headerColdStart) != "" {
			t.Errorf("%s: got %d, %s %q, want an answer of the pod at once", step.what, got.status, headerColdStart, got.header.Get(headerColdStart))
		}
		if s := fn.pods.Load(); len(s.ready) != 1 || s.ready[0] != pod {
			t.Errorf("%s: the pod is another one", step.what)
		}
	}
	if n := p.wakes.Load(); n != 1 {
		t.Errorf("patches: %d, want 1", n)
	}
	p.table.removeSlice(newPodSlice("hello", 0, address, true))
	if s := fn.pods.Load(); len(s.ready) != 0 {
		t.Error("a pod that its EndpointSlice has lost is still sent to: the EndpointSlice has the last word")
	}
	if len(fn.early) != 0 {
		t.Errorf("%d pods are remembered that nobody needs", len(fn.early))
	}
}

// serveEcho is the address of a pod.
func serveEcho(t *testing.T) string {
	t.Helper()
	address := refusing(t)
	serveAt(t, address, http.HandlerFunc(echo))
	return address
}

// What must not be sent to although it has an address. Each case ends with a pod that may.
func TestPodsThatScoutsPassOver(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"ends":            deleting,
		"has failed":      func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"has succeeded":   func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"other family":    func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "::1"}} },
		"needs a kubelet": func(p *corev1.Pod) { p.Spec.Containers[0].StartupProbe = &corev1.Probe{} },
	} {
		t.Run(name, func(t *testing.T) {
			address := serveEcho(t)
			api := newAPIPods(address)
			_, fn, _, answers := scoutedPlane(t, api)
			api.set(0, at(address), change)
			api.set(1, at(address))
			if got := <-answers; got.status != http.StatusOK {
				t.Fatalf("got %d %q", got.status, got.body)
			}
			for _, p := range fn.pods.Load().ready {
				if p.name.Name != "hello-1" {
					t.Errorf("pod %s takes requests", p.name)
				}
			}
		})
	}
}

// A pod that the EndpointSlices have had and do not have any more ends, whatever an older event of the watch says.
func TestEndpointSlicesHaveTheLastWord(t *testing.T) {
	address := refusing(t)
	api := newAPIPods(address)
	p, fn, _, answers := scoutedPlane(t, api)
	coming := func() int { return len(fn.pods.Load().coming) }
	api.told(t, fn, 0, address)
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	p.table.removeSlice(newPodSlice("hello", 0, address, false))
	if coming() != 0 {
		t.Error("the watch outvotes the EndpointSlices")
	}
	api.set(0, at(address)) // as it was before
	api.set(1, at(address))
	eventually(t, "the watch tells of the next", func() bool { return coming() == 1 })
	if name := fn.pods.Load().coming[0].name.Name; name != "hello-1" {
		t.Errorf("pod %s is back", name)
	}
	api.set(1, at(address), deleting)
	eventually(t, "it ends", func() bool { return coming() == 0 })
	serveAt(t, address, http.HandlerFunc(echo))
	api.set(2, at(address))
	wantServed(t, answers)
}

// What the EndpointSlices have said holds when the watch has to begin again, perhaps at an API server that is behind.
func TestEndpointSlicesHaveTheLastWordWhenWatchedAgain(t *testing.T) {
	address := refusing(t)
	api := newAPIPods(address)
	p, fn, _, answers := scoutedPlane(t, api)
	coming := func() int { return len(fn.pods.Load().coming) }
	api.told(t, fn, 0, address)
	p.table.setSlice(newPodSlice("hello", 0, address, false))
	p.table.removeSlice(newPodSlice("hello", 0, address, false))
	api.cut()
	eventually(t, "it is watched again", func() bool { return api.watching() == 1 })
	api.set(1, at(address))
	eventually(t, "the watch tells of the next", func() bool { return coming() > 0 })
	if s := fn.pods.Load(); coming() != 1 || s.coming[0].name.Name != "hello-1" {
		t.Errorf("pod %s is back", s.coming[0].name)
	}
	serveAt(t, address, http.HandlerFunc(echo))
	wantServed(t, answers)
}

// All who waited leave while a patch is under way, and somebody comes before it is answered: the same waker goes on, with another
// scout.
func TestScoutOfTheNextWake(t *testing.T) {
	address := serveEcho(t)
	api := newAPIPods(address)
	patches, result := make(chan struct{}, 100), make(chan struct{})
	p := newPlane(t, func(types.NamespacedName, int32) (bool, error) {
		patches <- struct{}{}
		<-result
		return false, nil
	})
	answerAll := sync.OnceFunc(func() { close(result) })
	t.Cleanup(answerAll)
	p.proxy.podReader = api
	fn := p.add(newTestFunction("hello", timeout(time.Minute)))
	url := p.gateURL(fn)
	ctx, leave := context.WithCancel(t.Context())
	first := newRequest(t, http.MethodGet, url, nil).WithContext(ctx)
	left := make(chan struct{})
	go func() {
		defer close(left)
		if res, err := http.DefaultTransport.RoundTrip(first); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-patches
	result <- struct{}{}
	eventually(t, "the pods are watched", func() bool { return api.watching() == 1 })
	<-patches // again, as there is no pod
	leave()
	<-left
	eventually(t, "nobody watches any more", func() bool { return api.watching() == 0 })
	answers := make(chan answer, 1)
	go func() { answers <- get(t, url) }()
	eventually(t, "the next is held", func() bool { return held(fn) == 1 })
	answerAll()
	eventually(t, "the pods are watched again", func() bool { return api.watching() == 1 })
	api.set(0, at(address))
	wantServed(t, answers)
}

// Whose the pods of a limit are may be another thing when those that only a scout knew are no longer counted: who waits is then
// handed on.
func TestScoutEndsWhoseArePods(t *testing.T) {
	p := newPlane(t, nil)
	self, other := &peer{name: "self", ip: "127.0.0.1", admin: refusing(t), ready: true}, &peer{name: "other", ip: "127.0.0.1", admin: refusing(t), ready: true}
	p.proxy.peers.set.Store(&peerSet{self: self, others: []*peer{other}, owners: []*peer{self, other}})
	fn := p.add(newTestFunction("hello", limited(1)))
	address := refusing(t)
	host, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	named := func(i int) string { return "hello-" + strconv.Itoa(i) + "/" + address }
	owners := []string{"self", "other"}
	listed, early := 0, 1
	for divide([]string{named(listed)}, owners)[0] != 1 {
		listed++
	}
	for early == listed || divide([]string{named(listed), named(early)}, owners)[0] != 0 {
		early++
	}
	fn.beginEarly()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello-" + strconv.Itoa(early), UID: types.UID("hello-" + strconv.Itoa(early))}}
	fn.setEarly(earlyPod{of: pathsOf(fn.object.Load()), object: pod, endpoint: v1alpha1.PodEndpoint{
		UID: pod.UID, Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, Address: host, Port: int32(n),
	}})
	p.table.setSlice(newPodSlice("hello", listed, address, true))
	w := &waiter{since: time.Now(), released: make(chan struct{})}
	if _, err := fn.queue.join(1, w); err != nil {
		t.Fatal(err)
	}
	fn.letGo()
	select {
	case <-w.released:
		t.Fatal("a place at a pod of which the other activator was not asked yet")
	default:
	}
	fn.endEarly()
	select {
	case <-w.released:
		if !w.pod.peer {
			t.Error("it is not handed on")
		}
		fn.leave(w.pod)
	default:
		t.Error("who waits for a pod that is the other activator's now is left waiting")
	}
}

// The watch breaks off, and a pod is gone meanwhile.
func TestScoutWatchesAgain(t *testing.T) {
	address := refusing(t)
	api := newAPIPods(address)
	_, fn, _, answers := scoutedPlane(t, api)
	api.told(t, fn, 0, address)
	api.mu.Lock()
	clear(api.pods)
	api.mu.Unlock()
	api.cut()
	eventually(t, "it is watched again", func() bool { return api.watching() == 1 && len(fn.pods.Load().coming) == 0 })
	serveAt(t, address, http.HandlerFunc(echo))
	api.set(1, at(address))
	wantServed(t, answers)
}

// A function that changes its Service while it is woken has none of the former one's pods.
func TestScoutOfAFormerService(t *testing.T) {
	address := refusing(t)
	api := newAPIPods(address)
	p, fn, _, answers := scoutedPlane(t, api)
	api.told(t, fn, 0, address)
	p.table.setFunction(newTestFunction("hello", timeout(10*time.Second), func(f *v1alpha1.Function) { f.Spec.Traffic.Service.Name = "other" }))
	if n := len(fn.pods.Load().coming); n != 0 {
		t.Errorf("%d pods of the former Service are probed", n)
	}
	api.set(1, at(address))
	other := serveEcho(t)
	p.table.setSlice(newPodSlice("other", 0, other, true))
	wantServed(t, answers)
	if n := len(fn.pods.Load().coming); n != 0 {
		t.Errorf("%d pods of the former Service are probed", n)
	}
}

// Where there is nothing to watch, or it is not allowed, a wake goes by the EndpointSlices.
func TestWakeWithoutScout(t *testing.T) {
	for name, change := range map[string]func(*apiPods){
		"no selector":   func(a *apiPods) { a.service.Spec.Selector = nil },
		"no such port":  func(a *apiPods) { a.service.Spec.Ports[0].Name = "other" },
		"external name": func(a *apiPods) { a.service.Spec.Type = corev1.ServiceTypeExternalName },
		"no Service":    func(a *apiPods) { a.service.Name = "other" },
		"forbidden":     func(a *apiPods) { a.refuse = apierrors.NewForbidden(corev1.Resource("pods"), "", nil) },
		"error":         func(a *apiPods) { a.refuse = errors.New("as of a test") },
	} {
		t.Run(name, func(t *testing.T) {
			address := serveEcho(t)
			api := newAPIPods(address)
			change(api)
			p := newPlane(t, nil)
			p.proxy.podReader = api
			fn := p.add(newTestFunction("hello"))
			url, answers := p.gateURL(fn), make(chan answer, 1)
			go func() { answers <- get(t, url) }()
			eventually(t, "it is held", func() bool { return held(fn) == 1 })
			p.pods("hello", address)
			if got := <-answers; got.status != http.StatusOK {
				t.Fatalf("got %d %q", got.status, got.body)
			}
		})
	}
}

func TestEndpointOf(t *testing.T) {
	named := intstr.FromString("web")
	pod := func(ips ...string) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}},
			{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8081, Protocol: corev1.ProtocolTCP}}},
		}}}
		withIP(ips...)(p)
		return p
	}
	for _, tt := range []struct {
		name     string
		pod      *corev1.Pod
		families []corev1.IPFamily
		port     intstr.IntOrString
		want     string
	}{
		{"port by number", pod("10.0.0.1"), []corev1.IPFamily{corev1.IPv4Protocol}, intstr.FromInt(8080), "10.0.0.1:8080"},
		{"port by name and protocol", pod("10.0.0.1"), []corev1.IPFamily{corev1.IPv4Protocol}, named, "10.0.0.1:8081"},
		{"port that there is not", pod("10.0.0.1"), []corev1.IPFamily{corev1.IPv4Protocol}, intstr.FromString("grpc"), ""},
		{"no address", pod(), []corev1.IPFamily{corev1.IPv4Protocol}, named, ""},
		{"IPv6", pod("10.0.0.1", "fd00::1"), []corev1.IPFamily{corev1.IPv6Protocol}, named, "[fd00::1]:8081"},
		{"both families", pod("fd00::1", "10.0.0.1"), []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, named, "10.0.0.1:8081"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service := &corev1.Service{Spec: corev1.ServiceSpec{IPFamilies: tt.families}}
			ep := endpointOf(tt.pod, service, &corev1.ServicePort{Protocol: corev1.ProtocolTCP, TargetPort: tt.port})
			got := ""
			if ep.Address != "" {
				got = net.JoinHostPort(ep.Address, strconv.Itoa(int(ep.Port)))
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
