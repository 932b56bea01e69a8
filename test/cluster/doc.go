// Package cluster runs a real one-node Kubernetes from published Go modules: etcd, kube-apiserver,
// kube-controller-manager (so the real HorizontalPodAutoscaler controller), kube-scheduler, kubelet, kube-proxy,
// CoreDNS, containerd and runc. It needs no Docker, no image registry and no virtual machine; nothing in it is a mock.
//
// It has two shapes:
//
//   - The full cluster ([Start] as root on Debian) lives in a network namespace of its own, runs pods, routes Services
//     and answers cluster DNS. Everything it owns is named by a hash of its state directory, so that clusters of two
//     clones of the repository can be up on one machine.
//   - The control plane alone ([Options].ControlPlaneOnly) needs no root: etcd, the API server and the controllers on
//     free loopback ports. There is no node; an aggregated API server on the same host is reached through a Service of
//     type ExternalName "localhost".
//
// The tour, from the outside in: cluster.go holds the API; full.go and controlplane.go bring the two shapes up; down.go
// takes either down, also when half of it was killed; config.go and pki.go render what the programs read; process.go
// starts programs and remembers them so that a recycled pid is never mistaken for one of ours; build.go compiles the
// programs from the nested modules kube and containerd, which keep their thousands of packages out of this module.
package cluster
