package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority is the cluster's certificate authority. It lives for one bring-up: its key is never written.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	dir  string
}

// leaf is a certificate to issue, for clients by its subject and for servers by its addresses.
type leaf struct {
	file   string // name without extension
	user   string // CommonName, the user name for Kubernetes
	groups []string
	hosts  []string
	ips    []net.IP
}

// validity is how long all certificates last: longer than anybody keeps a test cluster up.
const validity = 365 * 24 * time.Hour

// newAuthority creates the authority and writes its certificate, ca.crt, into dir.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating certificates: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("creating the authority's key: %w", err)
	}
	template := certTemplate("sluice-test-cluster", nil)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("creating the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("creating the authority's certificate: %w", err)
	}
	ca := &authority{cert: cert, key: key, dir: dir}
	return ca, writePEM(dir+"/ca.crt", "CERTIFICATE", der, 0o644)
}

// issue writes the certificate and the key of l. Every certificate serves for both directions, client and server.
func (ca *authority) issue(l leaf) error {
	key, err := newKey(ca.dir + "/" + l.file + ".key")
	if err != nil {
		return err
	}
	template := certTemplate(l.user, l.groups)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.DNSNames, template.IPAddresses = l.hosts, l.ips
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("issuing the certificate of %s: %w", l.user, err)
	}
	return writePEM(ca.dir+"/"+l.file+".crt", "CERTIFICATE", der, 0o644)
}

// newKey creates a key and writes it to path, in SEC 1 form: the API server reads service account keys in that, and not in
// PKCS #8.
func newKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("creating key %s: %w", path, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("creating key %s: %w", path, err)
	}
	return key, writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func certTemplate(user string, groups []string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user, Organization: groups},
		NotBefore:    now.Add(-time.Hour), // a clock that is set back a little must not void them
		NotAfter:     now.Add(validity),
	}
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// nodeName is the one node.
const nodeName = "node0"

// makePKI writes all certificates, the service accounts' key, and the kubeconfigs: the administrator's, "kubeconfig",
// and "kubeconfigs/NAME" of each component, all for the API server at address.
func (l layout) makePKI(address string) error {
	ca, err := newAuthority(l.state("pki"))
	if err != nil {
		return err
	}
	loopback := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	leaves := []leaf{
		{
			file: "apiserver", user: "kube-apiserver",
			hosts: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain},
			ips:   append(loopback, net.ParseIP(serviceIP), net.ParseIP(nodeIP)),
		},
		{file: "kubelet-client", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "proxy-client", user: proxyClient},
		{file: "kubelet", user: nodeName, hosts: []string{nodeName}, ips: append(loopback, net.ParseIP(nodeIP))},
	}
	users := []leaf{
		{file: "admin", user: "admin", groups: []string{"system:masters"}},
		{file: "kube-controller-manager", user: "system:kube-controller-manager"},
		{file: "kube-scheduler", user: "system:kube-scheduler"},
		// The Node authorizer grants each kubelet what its own node needs, by this name and group.
		{file: "node", user: "system:node:" + nodeName, groups: []string{"system:nodes"}},
		{file: "kube-proxy", user: "system:kube-proxy"},
		{file: "coredns", user: corednsUser},
	}
	for _, leaf := range append(leaves, users...) {
		if err := ca.issue(leaf); err != nil {
			return err
		}
	}
	if _, err := newKey(l.state("pki", "sa.key")); err != nil {
		return err
	}
	if err := os.MkdirAll(l.state("kubeconfigs"), 0o755); err != nil {
		return fmt.Errorf("writing kubeconfigs: %w", err)
	}
	for _, user := range users {
		path := l.state("kubeconfigs", user.file)
		if user.file == "admin" {
			path = l.path("kubeconfig")
		}
		if err := writeFile(path, l.kubeconfig(address, user.file), 0o600); err != nil {
			return err
		}
	}
	return nil
}
