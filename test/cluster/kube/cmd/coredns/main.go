// Command coredns is CoreDNS with the few plugins that cluster DNS needs. It is a program of its own, not a part of
// kube, because CoreDNS defines flags (-p, -conf, ...) on the process-wide flag set, which kubectl's would collide with.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which plugins are called is CoreDNS's own (its plugin.cfg). A Corefile cannot change it.
	dnsserver.Directives = []string{"ready", "errors", "template", "kubernetes"}
	coremain.Run()
}
