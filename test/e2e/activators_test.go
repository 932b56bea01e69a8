//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/load"
)

// activatorsRoll: both activators are replaced, one after the other, under load on new connections and on kept ones, with
// long requests and WebSockets in them and requests held by them: none fails.
func activatorsRoll(s *story) {
	host := s.host("hello")
	s.workload("hello", 2)
	s.create(proxied("hello", host))
	s.asleep(idleAfter(proxied("cold"), 2*time.Second))
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	url, cold, door := s.clusterIP("sluice-hello"), s.clusterIP("sluice-cold"), s.door()

	stops := []func(){
		s.steadyLoad(url, 60, false), s.steadyLoad(url, 40, true), s.hostLoad(door, host, 20, true),
	}
	var others sync.WaitGroup
	for range 4 { // with four, it is all but certain that each activator has some of each
		others.Go(func() {
			if said := call(s.Context(), url+"/?delay=12s", "").ok(); said != "" {
				s.Errorf("a request longer than the activator goes on accepting: %s", said)
			}
		})
		others.Go(func() {
			if said := call(s.Context(), cold, "").ok(); said != "" {
				s.Errorf("a request that is held: %s", said)
			}
		})
		ws := s.webSocket(strings.TrimPrefix(url, "http://"))
		others.Go(func() {
			if err := echoFor(ws, 15*time.Second); err != nil {
				s.Errorf("a WebSocket that goes on for 15 s: %v", err)
			}
		})
	}
	gone := make(chan struct{})
	others.Go(func() {
		for {
			if said := call(s.Context(), cold, "").ok(); said != "" {
				s.Errorf("a request to a function that sleeps now and then: %s", said)
			}
			select {
			case <-gone:
				return
			case <-s.Context().Done():
				return
			case <-time.After(8 * time.Second): // in which it goes to sleep
			}
		}
	})
	old := s.activators()
	s.restart("sluice-activator")
	for _, pod := range old {
		eventually(s.T, 120*time.Second, "activator "+pod.Name+" to be gone", func(ctx context.Context) string {
			err := s.client.Get(ctx, client.ObjectKeyFromObject(&pod), &corev1.Pod{})
			if apierrors.IsNotFound(err) {
				return ""
			}
			return "it is still there"
		})
	}
	close(gone)
	s.awaitRollout(s.T, "sluice-activator", 2)
	s.mustAnswer(cold, "")
	others.Wait()
	for _, stop := range stops {
		stop()
	}
}

// webSocket opens one to the sample function at address.
func (s *story) webSocket(address string) *websocket.Conn {
	s.Helper()
	config, err := websocket.NewConfig("ws://"+address+"/ws", "http://"+address)
	if err != nil {
		s.Fatal(err)
	}
	ws, err := config.DialContext(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = ws.Close() })
	return ws
}

// echoFor has each message come back, several a second, and closes the WebSocket in the end.
func echoFor(ws *websocket.Conn, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		_ = ws.SetDeadline(time.Now().Add(5 * time.Second))
		sent, got := time.Now().Format(time.RFC3339Nano), ""
		if err := websocket.Message.Send(ws, sent); err != nil {
			return err
		}
		if err := websocket.Message.Receive(ws, &got); err != nil {
			return err
		}
		if got != sent {
			return fmt.Errorf("%q came back as %q", sent, got)
		}
		<-time.After(200 * time.Millisecond)
	}
	return ws.Close()
}

// noticed is how soon new connections are not led to an activator any more that was killed.
const noticed = 5 * time.Second

// activatorKilled: one of two activators is killed with kill -9 under load. What was inside it, in flight or held, gets an
// error of its connection at once; so do connections that are led to it until Kubernetes has noticed. Whatever goes
// through the other one is answered.
func activatorKilled(s *story) {
	s.workload("hello", 2)
	s.create(proxied("hello"))
	template := s.template("cold")
	template.Spec.Containers[0].Args = []string{"--start-delay=6s"} // so long requests are held
	s.deploy("cold", 0, template)
	s.service("cold")
	s.create(proxied("cold"))
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	s.awaitPhase("cold", v1alpha1.Idle, 30*time.Second)
	killed, other := s.activators()[0], s.activators()[1]
	port := func(pod corev1.Pod, function string) string {
		return fmt.Sprintf("http://%s:%d", pod.Status.PodIP, s.function(function).Status.Gate.Port)
	}
	stopOther := s.steadyLoad(port(other, "hello"), 40, true)
	service := s.offer(s.clusterIP("sluice-hello"), "", 60, false)

	var wg sync.WaitGroup
	ended := make(chan time.Time, 6) // of what was inside the killed one
	for _, inside := range []struct{ what, function, path string }{{"in flight", "hello", "/?delay=8s"}, {"held", "cold", "/"}} {
		for range 3 {
			wg.Go(func() {
				a := call(s.Context(), port(killed, inside.function)+inside.path, "")
				ended <- time.Now()
				if a.err == nil || !brokenOff(a.err) {
					s.Errorf("%s at the activator that was killed: %s; want an error of its connection", inside.what, a)
				}
			})
			wg.Go(func() {
				if said := call(s.Context(), port(other, inside.function)+inside.path, "").ok(); said != "" {
					s.Errorf("%s at the other activator: %s", inside.what, said)
				}
			})
		}
	}
	eventually(s.T, 10*time.Second, "requests to be held and in flight", func(ctx context.Context) string {
		if n := s.activatorSum(ctx, v1alpha1.ActivatorHeld, "cold"); n < 6 {
			return fmt.Sprintf("%v held", n)
		}
		return ""
	})
	at := time.Now() // before the signal: the kernel may cut the connections before it returns
	s.signal(killed.UID, "activator", syscall.SIGKILL)
	eventually(s.T, 60*time.Second, "the killed activator to be back", func(ctx context.Context) string {
		var pod corev1.Pod
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(&killed), &pod); err != nil {
			return err.Error()
		}
		if c := pod.Status.ContainerStatuses[0]; c.RestartCount == killed.Status.ContainerStatuses[0].RestartCount || !c.Ready {
			return fmt.Sprintf("%d restarts, ready %v", c.RestartCount, c.Ready)
		}
		return ""
	})
	s.Logf("the killed activator was back after %s", time.Since(at).Round(100*time.Millisecond))
	wg.Wait()
	close(ended)
	for end := range ended {
		if late := end.Sub(at); late < 0 || late > time.Second {
			s.Errorf("a request inside the killed activator ended %s after the kill", late)
		}
	}
	stopOther()
	r, err := service.stop()
	if err != nil {
		s.Fatal(err)
	}
	s.tellLost(r, at.Sub(service.began))
	s.mustAnswer(s.clusterIP("sluice-hello"), "")
}

// tellLost checks what a load on the Service has lost by a kill.
func (s *story) tellLost(r load.Result, kill time.Duration) {
	s.Helper()
	inside, refused, last := 0, 0, time.Duration(0)
	for _, f := range r.Failures {
		since := f.Due - kill
		switch {
		case f.Kind == load.Cut && since < noticed:
			inside++
		case f.Kind == load.Refused && since >= -time.Second && since < noticed:
			refused, last = refused+1, max(last, since)
		default:
			s.Errorf("through the Service, %s from the kill: %s", since.Round(time.Millisecond), f)
		}
	}
	s.Logf("through the Service: %d requests, %d cut off, %d refused until %s after the kill, max %s",
		r.Sent, inside, refused, last.Round(time.Millisecond), r.Latency.Max)
	if r.Failed() > len(r.Failures) {
		s.Errorf("%d requests failed", r.Failed())
	}
}

// brokenOff tells whether a request ended by the end of its connection, or found none.
func brokenOff(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, net.ErrClosed, http.ErrServerClosed},
		func(target error) bool { return errors.Is(err, target) })
}
