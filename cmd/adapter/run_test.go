package main

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/adapter"
)

func TestFlags(t *testing.T) {
	tests := []struct {
		name, flags string
		says        string // empty: accepted
		drain       time.Duration
	}{
		{name: "none", drain: 5 * time.Second},
		{name: "a drain", flags: "--drain-delay=20s", drain: 20 * time.Second},
		{name: "no drain, which adapter.Options has below zero", flags: "--drain-delay=0s", drain: -1},
		{name: "all the time", flags: "--activator-interval=0s", says: "--activator-interval: 0s is less than 100ms"},
		{name: "pods, all the time", flags: "--pod-interval=99ms", says: "--pod-interval: 99ms is less than 100ms"},
		{name: "queries, all the time", flags: "--query-interval=-1s", says: "--query-interval: -1s is less than 100ms"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := options{adapter: adapter.Options{Server: adapter.NewServerOptions()}}
			flags := pflag.NewFlagSet("adapter", pflag.ContinueOnError)
			o.addFlags(flags)
			if err := flags.Parse(strings.Fields(tt.flags)); err != nil {
				t.Fatal(err)
			}
			err := o.complete()
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %q", err, tt.says)
			}
			if err == nil && o.adapter.DrainDelay != tt.drain {
				t.Errorf("drain delay %s, want %s", o.adapter.DrainDelay, tt.drain)
			}
		})
	}
}
