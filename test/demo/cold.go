package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/test/load"
)

// coldStartHeader carries, in the answer to a request that was held, for how long it was.
const coldStartHeader = "Sluice-Cold-Start"

// coldStart sends one request to the sleeping function, through the Service that leads through the gate.
func (d *Demo) coldStart(ctx context.Context) error {
	service, err := d.service(ctx)
	if err != nil {
		return err
	}
	d.url = service
	transport := load.NewTransport(d.opts.Allow, 0)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return err
	}
	d.out.linef("GET %s (Service %s)", d.url, d.fn.OwnedName())
	began := time.Now()
	response, err := transport.RoundTrip(request)
	if err != nil {
		if ctx.Err() != nil {
			return &notObserved{seen: "no answer yet"}
		}
		return fmt.Errorf("request to the sleeping function: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1024))
	if err != nil {
		return fmt.Errorf("answer of the sleeping function: %w", err)
	}
	d.report.cold = time.Since(began)
	held := response.Header.Get(coldStartHeader)
	d.out.linef("%s\n%s", response.Status, strings.TrimSpace(string(body)))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the sleeping function answered %s", response.Status)
	}
	if held == "" {
		return fmt.Errorf("the answer has no header %s: the request was not held, so the function was not asleep", coldStartHeader)
	}
	d.out.linef("held by the gate: %s (header %s), end to end: %s", held, coldStartHeader, short(d.report.cold))
	return nil
}

// service returns the URL of the function's Service through the gate.
func (d *Demo) service(ctx context.Context) (string, error) {
	var s corev1.Service
	key := types.NamespacedName{Namespace: d.fn.Namespace, Name: d.fn.OwnedName()}
	if err := d.cluster.get(ctx, key, &s); err != nil {
		return "", err
	}
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return "", fmt.Errorf("service %s has no cluster IP or no port to send requests to", key)
	}
	port := s.Spec.Ports[0].Port
	if gate := d.fn.Status.Gate; gate != nil {
		for _, p := range s.Spec.Ports {
			if p.Name == gate.ServicePort {
				port = p.Port
			}
		}
	}
	return "http://" + net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(int(port))) + "/", nil
}
