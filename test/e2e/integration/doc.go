// Package integration tests adapter and scaler against a real etcd, API server, HPA controller and garbage collector,
// which run as plain processes on loopback; it needs no root and no node. The components run in the test's own process
// with the identities and rights that manifests/base gives them. Pods and activators are stood in for: there is no
// node that could run them. `make integration` runs it, behind the build tag integration.
package integration
