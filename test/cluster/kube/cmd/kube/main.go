// Command kube is etcd and every Kubernetes program of the test cluster in one binary. It is one because the programs
// share nearly all of their packages: linking them separately costs minutes and 600 MB.
//
// The program is chosen by the name that the binary is called by (a symbolic link), else by the first argument:
//
//	kube kube-apiserver --etcd-servers=...
//	ln -s kube kubectl && ./kubectl get pods
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // time zones of CronJobs

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's authentication plugins
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client-go's metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	"k8s.io/kubectl/pkg/cmd"
	kubectl "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// programs is every program of this binary by its usual name. Each sees os.Args as if it were the binary itself.
func programs() map[string]func() int {
	command := func(newCommand func() *cobra.Command) func() int {
		return func() int { return cli.Run(newCommand()) }
	}
	return map[string]func() int{
		"etcd":                    func() int { etcdmain.Main(os.Args); return 0 },
		"kube-apiserver":          command(apiserver.NewAPIServerCommand),
		"kube-controller-manager": command(controllermanager.NewControllerManagerCommand),
		"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
		"kube-proxy":              command(func() *cobra.Command { return proxy.NewProxyCommand() }),
		"kubelet":                 command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
		"kubectl":                 runKubectl,
	}
}

func main() {
	all := programs()
	os.Args[0] = filepath.Base(os.Args[0])
	run, ok := all[os.Args[0]]
	if !ok && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run, ok = all[os.Args[0]]
	}
	if !ok {
		names := make([]string, 0, len(all))
		for name := range all {
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: kube PROGRAM [ARGUMENT...]\nprograms: %s\n", strings.Join(names, " "))
		os.Exit(2)
	}
	os.Exit(run())
}

// runKubectl is the main function of k8s.io/kubernetes/cmd/kubectl, which reads -v before its command exists so that
// the construction of the command is logged as well.
func runKubectl() int {
	logs.GlogSetter(cmd.GetLogVerbosity(os.Args)) //nolint:errcheck // as upstream: a bad -v is reported by the command
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		kubectl.CheckErr(err) // prints it and exits
	}
	return 0
}
