package activator

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
)

func TestProbesOfEachKind(t *testing.T) {
	httpOK := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }
	grpcServer := func(t *testing.T, status healthpb.HealthCheckResponse_ServingStatus) string {
		t.Helper()
		srv, h := grpc.NewServer(), health.NewServer()
		h.SetServingStatus("shop", status)
		healthpb.RegisterHealthServer(srv, h)
		ln := listen(t)
		go func() { _ = srv.Serve(ln) }()
		t.Cleanup(srv.Stop)
		return ln.Addr().String()
	}
	grpcProbe := func(t *testing.T, address, service string) corev1.Probe {
		return corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: portOfAddress(t, address).IntVal, Service: &service}}}
	}
	getAt := func(t *testing.T, address string) corev1.Probe { return httpGet("/", portOfAddress(t, address)) }
	tests := []struct {
		name  string
		probe func(t *testing.T) (address string, p corev1.Probe)
		want  string // in the error, "" for a success
	}{
		{"HTTP", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, httpOK)
			return a, getAt(t, a)
		}, ""},
		{"HTTP 500", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", 500) })
			return a, getAt(t, a)
		}, "500"},
		{"nobody listens", func(t *testing.T) (string, corev1.Probe) {
			a := refusing(t)
			return a, getAt(t, a)
		}, "no connection"},
		{"redirect on the same host to a failure", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/" {
					http.Redirect(w, r, "/down", http.StatusFound)
					return
				}
				http.Error(w, "", http.StatusServiceUnavailable)
			})
			return a, getAt(t, a)
		}, "/down answered 503"},
		{"redirect to another host is a success", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
			})
			return a, getAt(t, a)
		}, ""},
		{"redirects without end", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) })
			return a, getAt(t, a)
		}, "redirected 10 times"},
		{"HTTPS, whatever the certificate", func(t *testing.T) (string, corev1.Probe) {
			srv := httptest.NewUnstartedServer(http.HandlerFunc(httpOK))
			_ = srv.Listener.Close()
			srv.Listener = listen(t)
			srv.StartTLS()
			t.Cleanup(srv.Close)
			p := getAt(t, srv.Listener.Addr().String())
			p.HTTPGet.Scheme = corev1.URISchemeHTTPS
			return srv.Listener.Addr().String(), p
		}, ""},
		{"it accepts and never answers", func(t *testing.T) (string, corev1.Probe) {
			ln := listen(t)
			t.Cleanup(func() { _ = ln.Close() })
			return ln.Addr().String(), getAt(t, ln.Addr().String())
		}, "deadline exceeded"},
		{"no HTTP", func(t *testing.T) (string, corev1.Probe) {
			ln := listen(t)
			go func() {
				for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
					fmt.Fprint(conn, "220 hello\r\n")
					_ = conn.Close()
				}
			}()
			t.Cleanup(func() { _ = ln.Close() })
			return ln.Addr().String(), getAt(t, ln.Addr().String())
		}, "container a: "},
		{"TCP", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, httpOK)
			return a, tcpSocket(int(portOfAddress(t, a).IntVal))
		}, ""},
		{"gRPC", func(t *testing.T) (string, corev1.Probe) {
			a := grpcServer(t, healthpb.HealthCheckResponse_SERVING)
			return a, grpcProbe(t, a, "shop")
		}, ""},
		{"gRPC, not serving", func(t *testing.T) (string, corev1.Probe) {
			a := grpcServer(t, healthpb.HealthCheckResponse_NOT_SERVING)
			return a, grpcProbe(t, a, "shop")
		}, "serving status 2"},
		{"gRPC, unknown service", func(t *testing.T) (string, corev1.Probe) {
			a := grpcServer(t, healthpb.HealthCheckResponse_SERVING)
			return a, grpcProbe(t, a, "other")
		}, `gRPC status "5"`},
		{"gRPC at an HTTP/1 server", func(t *testing.T) (string, corev1.Probe) {
			a := newPod(t, httpOK)
			return a, grpcProbe(t, a, "")
		}, "container a: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address, p := tt.probe(t)
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			plan := planProbe(&corev1.PodSpec{Containers: []corev1.Container{container("a", readiness(p))}}, host, 8080)
			if len(plan.checks) != 1 {
				t.Fatalf("plan %+v, want one check", plan)
			}
			plan.checks[0].timeout = time.Minute
			if strings.Contains(tt.want, "deadline") {
				plan.checks[0].timeout = 200 * time.Millisecond
			}
			conn, err := plan.checks[0].run(t.Context(), time.Minute)
			if conn != nil {
				defer conn.Close()
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestHealthStatusOfForeignBytes(t *testing.T) {
	for in, want := range map[string]int64{
		"": -1, "\x00\x00\x00\x00\x00": 0, "\x00\x00\x00\x00\x02\x08\x01": 1, "\x00\x00\x00\x00\x02\x08\x02": 2,
		"\x01\x00\x00\x00\x02\x08\x01": -1, "\x00\x00\x00\x00\x03\x08\x01": -1, "\x00\x00\x00\x00\x01\x08": -1,
		"\x00\x00\x00\x00\x05\x12\x01x\x08\x01": 1, "\x00\xff\xff\xff\xff\x08\x01": -1,
	} {
		if got := healthStatus([]byte(in)); got != want {
			t.Errorf("healthStatus(%q): got %d, want %d", in, got, want)
		}
	}
}

func FuzzHealthStatus(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x02\x08\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := healthStatus(b); got < -1 || got > 1<<31 {
			t.Errorf("got %d", got)
		}
	})
}
