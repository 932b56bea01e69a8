package adapter

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

func TestOptionsAreChecked(t *testing.T) {
	tests := []struct {
		name, flags string
		says        string // empty: accepted
	}{
		{name: "none"},
		{name: "both", flags: "--upstream-custom-metrics=monitoring/prometheus-adapter --upstream-external-metrics=keda/keda-operator-metrics-apiserver:6443"},
		{name: "no namespace", flags: "--upstream-custom-metrics=prometheus-adapter", says: "--upstream-custom-metrics: \"prometheus-adapter\" is not NAMESPACE/SERVICE[:PORT]"},
		{name: "a URL", flags: "--upstream-external-metrics=https://keda", says: "--upstream-external-metrics"},
		{name: "no such port", flags: "--upstream-custom-metrics=a/b:0", says: "port \"0\" is not a number from 1 to 65535"},
		{name: "itself", flags: "--upstream-custom-metrics=sluice-system/sluice-adapter", says: "is this adapter's own Service"},
		{name: "a stranger and our token", flags: "--upstream-custom-metrics=a/b --upstream-insecure-skip-tls-verify", says: "--upstream-token-file"},
		{name: "a stranger and a token for it", flags: "--upstream-custom-metrics=a/b --upstream-insecure-skip-tls-verify --upstream-token-file=flags_test.go"},
		{name: "a token that is not there", flags: "--upstream-token-file=x", says: "--upstream-token-file: open x"},
		{name: "an authority that is not there", flags: "--upstream-ca-file=x", says: "--upstream-ca-file: open x"},
		{name: "verified or not", flags: "--upstream-insecure-skip-tls-verify --upstream-token-file=x --upstream-ca-file=y", says: "exclude each other"},
		{name: "before it began", flags: "--upstream-timeout=-1s", says: "--upstream-timeout: -1s is negative"},
		{name: "no port", flags: "--secure-port=0", says: "--secure-port: 0 is no port to serve on"},
		{name: "off", flags: "--external-metrics=Off"},
		{name: "neither on nor off", flags: "--external-metrics=on", says: `--external-metrics: "on" is neither Auto nor Off`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Config: &rest.Config{}, Reader: functions, Server: NewServerOptions()}
			flags := pflag.NewFlagSet("adapter", pflag.ContinueOnError)
			o.AddFlags(flags)
			o.Server.AddFlags(flags)
			if err := flags.Parse(strings.Fields(tt.flags)); err != nil {
				t.Fatal(err)
			}
			_, err := o.complete()
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %q", err, tt.says)
			}
		})
	}
}

func TestParseService(t *testing.T) {
	got, err := parseService("keda/keda-operator-metrics-apiserver:6443")
	want := serviceRef{types.NamespacedName{Namespace: "keda", Name: "keda-operator-metrics-apiserver"}, 6443}
	if err != nil || got != want || got.address() != "keda-operator-metrics-apiserver.keda.svc:6443" {
		t.Errorf("%v at %s, %v", got, got.address(), err)
	}
	if got, err = parseService("a/b"); err != nil || got.port != 443 {
		t.Errorf("%v, %v; want port 443", got, err)
	}
}
