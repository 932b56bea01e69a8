package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"time"
)

// client talks to the API server as the administrator. It is a few calls of net/http rather than client-go so that
// this package, which stories import beside a client-go of theirs, requires nothing of Kubernetes.
type client struct {
	base string
	http *http.Client
}

// newClient returns a client of the API server at address (host:port), reached from inside the network namespace.
func (l layout) newClient(netns, address string) (*client, error) {
	pair, err := tls.LoadX509KeyPair(l.state("pki", "admin.crt"), l.state("pki", "admin.key"))
	if err != nil {
		return nil, fmt.Errorf("loading the administrator's certificate: %w", err)
	}
	pem, err := os.ReadFile(l.state("pki", "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("loading the authority's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &client{
		base: "https://" + address,
		http: &http.Client{
			Timeout: 10 * time.Second,
			Transport: &http.Transport{
				DialContext:     dialer(netns),
				TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS12},
			},
		},
	}, nil
}

// close ends the idle connections and with them their goroutines.
func (c *client) close() { c.http.CloseIdleConnections() }

// get fetches path and, if into is not nil, decodes the answer into it. Any status but 200 is an error.
func (c *client) get(ctx context.Context, path string, into any) error {
	return c.do(ctx, http.MethodGet, path, "", nil, into)
}

// apply creates the object at path or makes it as given (server-side apply).
func (c *client) apply(ctx context.Context, path string, object any) error {
	return c.do(ctx, http.MethodPatch, path+"?fieldManager=test-cluster&force=true", "application/apply-patch+yaml", object, nil)
}

func (c *client) do(ctx context.Context, method, path, contentType string, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return err // names method and URL already
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		var status struct{ Message string } // of a metav1.Status; /readyz answers in plain text
		if json.Unmarshal(answer, &status) != nil {
			status.Message = string(answer[:min(len(answer), 300)])
		}
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, status.Message)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// apiReady asks whether the API server serves everything, bootstrap roles included.
func (c *client) apiReady(ctx context.Context) error { return c.get(ctx, "/readyz", nil) }

// controllersReady asks whether the controllers run: they have made what every pod needs, a service account and the
// authority's certificate.
func (c *client) controllersReady(ctx context.Context) error {
	const namespace = "/api/v1/namespaces/default/"
	if err := c.get(ctx, namespace+"serviceaccounts/default", nil); err != nil {
		return err
	}
	return c.get(ctx, namespace+"configmaps/kube-root-ca.crt", nil)
}

// nodeReady asks whether pods can be scheduled to the node.
func (c *client) nodeReady(ctx context.Context) error {
	var node struct {
		Spec struct {
			Taints []struct{ Key string }
		}
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := c.get(ctx, "/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("node %s has taint %s", nodeName, node.Spec.Taints[0].Key)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return nil
		}
		if c.Type == "Ready" {
			return fmt.Errorf("node %s is not ready: %s", nodeName, c.Message)
		}
	}
	return fmt.Errorf("node %s has no Ready condition yet", nodeName)
}

// dnsReady looks a Service up through the cluster's DNS Service, so it proves kube-proxy and CoreDNS both.
func dnsReady(ctx context.Context, netns string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	dial := dialer(netns)
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, net.JoinHostPort(dnsIP, "53"))
	}}
	// The final dot keeps the caller's search domains out.
	addrs, err := r.LookupHost(ctx, "kubernetes.default.svc."+clusterDomain+".")
	if err != nil {
		return err
	}
	if !slices.Contains(addrs, serviceIP) {
		return errors.New("cluster DNS answered " + fmt.Sprint(addrs) + " instead of " + serviceIP)
	}
	return nil
}

// applyDNS creates what makes CoreDNS, a process on the node, the cluster's DNS: its permissions, and a Service without a
// selector whose EndpointSlice names the node.
func (c *client) applyDNS(ctx context.Context) error {
	type object = map[string]any
	meta := func(name string) object { return object{"name": name} }
	const rbac = "/apis/rbac.authorization.k8s.io/v1/"
	port := func(name, protocol string) object { return object{"name": name, "protocol": protocol, "port": 53} }
	ports := []any{port("dns", "UDP"), port("dns-tcp", "TCP")}
	watch := []any{"list", "watch", "get"}
	objects := []struct {
		path   string
		object object
	}{
		{rbac + "clusterroles/" + corednsUser, object{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta(corednsUser),
			"rules": []any{
				object{"apiGroups": []any{""}, "resources": []any{"services", "pods", "namespaces", "nodes", "endpoints"}, "verbs": watch},
				object{"apiGroups": []any{"discovery.k8s.io"}, "resources": []any{"endpointslices"}, "verbs": watch},
			},
		}},
		{rbac + "clusterrolebindings/" + corednsUser, object{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta(corednsUser),
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": corednsUser},
			"subjects": []any{object{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": corednsUser}},
		}},
		{"/api/v1/namespaces/kube-system/services/kube-dns", object{
			"apiVersion": "v1", "kind": "Service", "metadata": object{"name": "kube-dns", "labels": object{"k8s-app": "kube-dns"}},
			"spec": object{"clusterIP": dnsIP, "ports": ports},
		}},
		{"/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-node", object{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
			"metadata": object{"name": "kube-dns-node", "labels": object{
				"kubernetes.io/service-name":             "kube-dns",
				"endpointslice.kubernetes.io/managed-by": "test-cluster.sluice.dev",
			}},
			"endpoints": []any{object{"addresses": []any{nodeIP}, "conditions": object{"ready": true}, "nodeName": nodeName}},
			"ports":     ports,
		}},
	}
	for _, o := range objects {
		if err := c.apply(ctx, o.path, o.object); err != nil {
			return fmt.Errorf("setting up cluster DNS: %w", err)
		}
	}
	return nil
}
