//go:build cluster

package cluster

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"
)

// TestControlPlane needs no root. The controllers run: a namespace gets its service account. A flag that is added
// restarts the controller manager alone.
func TestControlPlane(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Fatal(checkHost())
	}
	opts := Options{ControlPlaneOnly: true, Log: testLog{t}}
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			if err := c.Stop(context.Background()); err != nil {
				t.Errorf("Stop: %v", err)
			}
		}
	})
	before := c.pids(t)
	opts.Dir = c.Dir()
	opts.ControllerManagerArgs = []string{"--horizontal-pod-autoscaler-sync-period=5s"}
	if _, err := Start(t.Context(), opts); err != nil {
		t.Fatalf("second Start: %v", err)
	}
	after := c.pids(t)
	if before["kube-controller-manager"] == after["kube-controller-manager"] {
		t.Error("kube-controller-manager still has its old flags")
	}
	if before["kube-apiserver"] != after["kube-apiserver"] {
		t.Error("kube-apiserver was restarted")
	}
	programs := []string{"kube-apiserver", "kube-controller-manager"}
	if err := c.StopPrograms(t.Context(), programs...); err != nil {
		t.Fatal(err)
	}
	if err := c.StartPrograms(t.Context(), programs...); err != nil {
		t.Fatal(err)
	}
	anew := c.pids(t)
	for _, name := range programs {
		if anew[name] == after[name] {
			t.Errorf("%s was not stopped and started", name)
		}
	}
	if anew["etcd"] != after["etcd"] {
		t.Error("etcd was restarted")
	}
	if err := c.StartPrograms(t.Context(), "etcd"); err == nil {
		t.Error("StartPrograms of a program that runs: no error")
	}
	if err := c.StopPrograms(t.Context(), "kube-apisever"); err == nil {
		t.Error("StopPrograms of a program that there is not: no error")
	}
	if err := c.LoadImage(t.Context(), "none.tar"); err == nil {
		t.Error("LoadImage without a node: no error")
	}
	kill(t, after["etcd"])
	if err := c.Stop(t.Context()); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	stopped = true
	if left := c.marked(); len(left) > 0 {
		t.Errorf("%d processes are left", len(left))
	}
	if exists(c.Dir()) {
		t.Errorf("%s is left", c.Dir())
	}
}

// TestAggregation: an extension API server on this host, outside of the cluster, is reached through a Service of type
// ExternalName, by the name in its certificate, and learns who asks.
func TestAggregation(t *testing.T) {
	c, err := Start(t.Context(), Options{ControlPlaneOnly: true, Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	var asking string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/apis/echo.test/v1/who" {
			asking = r.Header.Get("X-Remote-User")
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"echo.test/v1","resources":[]}`)
	}))
	ca, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.issue(leaf{file: "adapter", user: "adapter", hosts: []string{"echo.default.svc"}}); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(ca.dir+"/adapter.crt", ca.dir+"/adapter.key")
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	addr, ok := server.Listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("listening on %v", server.Listener.Addr())
	}

	rec, err := c.loadRecord()
	if err != nil {
		t.Fatal(err)
	}
	api, err := c.newClient(c.Netns(), rec.APIServer)
	if err != nil {
		t.Fatal(err)
	}
	defer api.close()
	type object = map[string]any
	if err := api.apply(t.Context(), "/api/v1/namespaces/default/services/echo", object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"name": "echo"},
		"spec": object{"type": "ExternalName", "externalName": "localhost"},
	}); err != nil {
		t.Fatal(err)
	}
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	if err := api.apply(t.Context(), "/apis/apiregistration.k8s.io/v1/apiservices/v1.echo.test", object{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": object{"name": "v1.echo.test"},
		"spec": object{
			"group": "echo.test", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100, "caBundle": bundle,
			"service": object{"namespace": "default", "name": "echo", "port": addr.Port},
		},
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = poll(ctx, "the aggregated API", 50*time.Millisecond, func(ctx context.Context) error {
		return api.get(ctx, "/apis/echo.test/v1/who", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // waits for the handlers
	if asking != "admin" {
		t.Errorf("the extension API server was asked by %q, want admin", asking)
	}
}
