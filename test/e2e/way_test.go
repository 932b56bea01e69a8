//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/kafka"
	"github.com/sluice-dev/sluice/test/load"
)

// callLimit is how long a call may take: longer than a request is held by default, so that the gate's answer is seen.
const callLimit = 70 * time.Second

// way is how calls come to a function: its mode, the door, and the protocol.
type way struct {
	mode v1alpha1.TrafficMode
	door bool // the shared door, else a ClusterIP
	grpc bool // else HTTP/1.1
	tls  bool // at the shared door
	tcp  bool // spec.traffic.protocol is TCP
}

// name is that of the story.
func (w way) name() string {
	name := string(w.mode)
	if w.door {
		name += "Door"
	}
	if w.tls {
		name += "TLS"
	}
	if w.tcp {
		name += "TCP"
	}
	if w.grpc {
		return name + "GRPC"
	}
	return name + "HTTP"
}

// function is the Function that is reached in this way.
func (w way) function(s *story, name string) *v1alpha1.Function {
	fn := direct(name)
	if w.mode == v1alpha1.Proxied {
		fn = proxied(name)
	}
	if w.door {
		fn.Spec.Traffic.Hosts = []string{s.host(name)}
	}
	if w.tls {
		fn.Spec.Traffic.TLS = &v1alpha1.TrafficTLS{SecretRef: v1alpha1.SecretRef{Name: "door"}}
	}
	if w.tcp {
		fn.Spec.Traffic.Protocol = v1alpha1.ProtocolTCP
	}
	return fn
}

// host is the name under which the shared door serves a function of the story.
func (s *story) host(name string) string { return name + "." + s.namespace + ".example.com" }

// caller sends one call that must not be sent twice, marked by id, and says why no pod has answered it.
type caller func(ctx context.Context, id string) error

// caller is a client of the function that keeps its connections.
func (w way) caller(s *story, name string, trust *x509.CertPool) (call caller, leave func()) {
	s.Helper()
	scheme := "http"
	var secured *tls.Config
	if w.tls {
		scheme = "https"
		secured = &tls.Config{RootCAs: trust, ServerName: s.host(name), MinVersion: tls.VersionTLS12}
	}
	address, host := w.address(s, name)
	if w.grpc {
		return s.grpcCaller(address, host, secured)
	}
	transport := load.NewTransport(clusterNetworks, 100)
	transport.TLSClientConfig = secured
	return httpCaller(transport, scheme+"://"+address, host), transport.CloseIdleConnections
}

// address is where the function is reached, host:port, and the Host by which it is known there, or "".
func (w way) address(s *story, name string) (address, host string) {
	s.Helper()
	port, url := "80", ""
	switch {
	case w.door:
		host, url = s.host(name), s.door()
	case w.mode == v1alpha1.Proxied:
		url = s.clusterIP("sluice-" + name)
	default:
		url = s.clusterIP(name)
	}
	if w.tls {
		port = "443"
	}
	return net.JoinHostPort(strings.TrimPrefix(url, "http://"), port), host
}

// httpCaller sends calls by POST: what net/http itself repeats of these is only what it has not begun to send.
func httpCaller(transport http.RoundTripper, url, host string) caller {
	return func(ctx context.Context, id string) error {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte("hello")))
		if err != nil {
			return err
		}
		r.Header.Set("X-Id", id)
		if host != "" {
			r.Host = host
		}
		res, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return fmt.Errorf("answer %d broke off: %w", res.StatusCode, err)
		}
		var said struct{ ID string }
		if res.StatusCode != http.StatusOK || json.Unmarshal(body, &said) != nil || said.ID != id {
			return fmt.Errorf("answer %d: %.300s", res.StatusCode, body)
		}
		return nil
	}
}

// grpcCaller has one channel for all calls.
func (s *story) grpcCaller(address, host string, secured *tls.Config) (call caller, leave func()) {
	s.Helper()
	creds := insecure.NewCredentials()
	if secured != nil {
		creds = credentials.NewTLS(secured)
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableServiceConfig()}
	if host != "" {
		options = append(options, grpc.WithAuthority(host))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		s.Fatal(err)
	}
	return func(ctx context.Context, id string) error {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-id", id), callLimit)
		defer cancel()
		in, out := wrapperspb.String(id), &wrapperspb.StringValue{}
		if err := conn.Invoke(ctx, "/function.Echo/Unary", in, out); err != nil {
			return err
		}
		if out.GetValue() != id {
			return fmt.Errorf("answer %q", out.GetValue())
		}
		return nil
	}, func() { _ = conn.Close() }
}

// asleep creates a function that is reached in this way, asleep behind its gate, whose pods tell a of what comes to them.
func (w way) asleep(s *story, name string, a *arrivals) (trust *x509.CertPool) {
	s.Helper()
	if w.tls {
		trust = s.doorSecret("door", s.host(name))
	}
	template := s.template(name)
	template.Spec.Containers[0].Args = []string{"--ids-to=" + a.address}
	s.deploy(name, 0, template)
	appProtocol := ""
	if w.grpc {
		appProtocol = "kubernetes.io/h2c"
	}
	s.serviceSpeaking(name, appProtocol)
	s.create(idleAfter(w.function(s, name), sleepIdle))
	s.awaitPhase(name, v1alpha1.Idle, 30*time.Second)
	s.awaitGate(name, true)
	return trust
}

// doorSecret creates a Secret with a certificate for the hosts, which activators may read, and returns its authority.
func (s *story) doorSecret(name string, hosts ...string) *x509.CertPool {
	s.Helper()
	s.create(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "sluice-activator-secrets"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "sluice-activator-secrets"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: v1alpha1.SystemNamespace, Name: "sluice-activator"}},
	})
	return s.secret(name, hosts...)
}

// secret does the same of one that activators may not read.
func (s *story) secret(name string, hosts ...string) *x509.CertPool {
	s.Helper()
	authority, err := kafka.NewAuthority()
	if err != nil {
		s.Fatal(err)
	}
	cert, key, err := authority.Leaf("door", hosts...)
	if err != nil {
		s.Fatal(err)
	}
	s.create(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: []byte(cert), corev1.TLSPrivateKeyKey: []byte(key)},
	})
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM([]byte(authority.PEM))
	return trust
}

// burst is calls at a rate, each sent when it is due whatever became of the others.
type burst struct {
	sent     []string
	failed   []string // in words, the first few
	failures int
	slowest  time.Duration
}

// burst sends calls for a time, and waits for all answers.
func (s *story) burst(name string, rate float64, span time.Duration, call caller) burst {
	s.Helper()
	var (
		b  burst
		mu sync.Mutex
		wg sync.WaitGroup
	)
	began := time.Now()
	for n := range int(rate * span.Seconds()) {
		due := began.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		wait(s.Context(), time.Until(due))
		if s.Context().Err() != nil {
			break
		}
		id := fmt.Sprintf("%s-%d", name, n)
		b.sent = append(b.sent, id)
		wg.Go(func() {
			err := call(s.Context(), id)
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			b.slowest = max(b.slowest, took)
			if err == nil {
				return
			}
			if b.failures++; b.failures <= 5 {
				b.failed = append(b.failed, fmt.Sprintf("%s, after %s: %v", id, took.Round(time.Millisecond), err))
			}
		})
	}
	wg.Wait()
	return b
}
