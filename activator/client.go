package activator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// clientQPS and clientBurst are the budget of one client, in requests.
const (
	clientQPS   = 200 // per second
	clientBurst = 400
)

// newClient makes a client with connections and a budget of its own, so that a burst of what it does neither waits
// behind anything else nor delays it.
func newClient(cfg *rest.Config, path string, gv schema.GroupVersion, accept string) (*rest.RESTClient, *http.Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = clientQPS, clientBurst
	cfg.RateLimiter = nil
	if cfg.Dial == nil {
		// client-go gives clients with equal credentials the same connection of HTTP/2, but for those that dial by
		// themselves.
		cfg.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	cfg.APIPath = path
	cfg.GroupVersion = &gv
	cfg.NegotiatedSerializer = clientgoscheme.Codecs.WithoutConversion()
	cfg.ContentType, cfg.AcceptContentTypes = "application/json", accept
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, nil, err
	}
	client, err := rest.RESTClientForConfigAndClient(cfg, httpClient)
	return client, httpClient, err
}

// podClient is the podReader that asks Kubernetes.
type podClient struct {
	client *rest.RESTClient
	http   *http.Client
}

func newPodClient(cfg *rest.Config) (*podClient, error) {
	client, httpClient, err := newClient(cfg, "/api", corev1.SchemeGroupVersion, "application/vnd.kubernetes.protobuf,application/json")
	if err != nil {
		return nil, fmt.Errorf("make the client for pods: %w", err)
	}
	return &podClient{client: client, http: httpClient}, nil
}

// Pod implements podReader.
func (c *podClient) Pod(ctx context.Context, name types.NamespacedName) (*corev1.Pod, error) {
	return read(ctx, c.client, "pods", name, &corev1.Pod{})
}

// Service implements podReader.
func (c *podClient) Service(ctx context.Context, name types.NamespacedName) (*corev1.Service, error) {
	return read(ctx, c.client, "services", name, &corev1.Service{})
}

// WatchPods implements podReader.
func (c *podClient) WatchPods(ctx context.Context, namespace string, set map[string]string) (watch.Interface, error) {
	w, err := c.client.Get().Namespace(namespace).Resource("pods").
		VersionedParams(&metav1.ListOptions{Watch: true, LabelSelector: labels.Set(set).String(), ResourceVersion: "0"}, clientgoscheme.ParameterCodec).
		MaxRetries(0). // the caller repeats
		Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch the pods of %s that have %s: %w", namespace, labels.Set(set), err)
	}
	return w, nil
}

// read reads an object. resourceVersion 0 lets the API server answer from its cache.
func read[T runtime.Object](ctx context.Context, client *rest.RESTClient, resource string, name types.NamespacedName, into T) (T, error) {
	err := client.Get().Namespace(name.Namespace).Resource(resource).Name(name.Name).
		VersionedParams(&metav1.GetOptions{ResourceVersion: "0"}, clientgoscheme.ParameterCodec).
		MaxRetries(0). // the caller repeats
		Do(ctx).Into(into)
	if err != nil {
		var none T
		return none, fmt.Errorf("read %s %s: %w", strings.TrimSuffix(resource, "s"), name, err)
	}
	return into, nil
}

func (c *podClient) close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }

// secretClient is the secretReader that asks Kubernetes.
type secretClient struct {
	client *rest.RESTClient
	http   *http.Client
}

func newSecretClient(cfg *rest.Config) (*secretClient, error) {
	client, httpClient, err := newClient(cfg, "/api", corev1.SchemeGroupVersion, "application/vnd.kubernetes.protobuf,application/json")
	if err != nil {
		return nil, fmt.Errorf("make the client for secrets: %w", err)
	}
	return &secretClient{client: client, http: httpClient}, nil
}

// Secret implements secretReader.
func (c *secretClient) Secret(ctx context.Context, name types.NamespacedName) (*corev1.Secret, error) {
	return read(ctx, c.client, "secrets", name, &corev1.Secret{})
}

func (c *secretClient) close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }
