package providers

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// DefaultSecretTTL is how long a Secret that was read is not read again. A source that asks every 10 s, or more
	// often, notices a rotation within 10 s.
	DefaultSecretTTL = 5 * time.Second

	// secretTimeout bounds one read, besides half of the caller's time, so that an API server that hangs leaves the
	// caller time to work with what it had.
	secretTimeout = 2 * time.Second
	// secretKeep is how long a Secret that nobody asks for stays in memory, and how long its last content is good for
	// while the API server cannot be asked.
	secretKeep = 5 * time.Minute
	// secretLimit is the largest Secret, in bytes; bundles of all public authorities have 220 KiB.
	secretLimit = 512 << 10
	// Most that is kept in memory.
	maxSecrets, maxSecretBytes = 10_000, 64 << 20
)

// Secret is the content of a Kubernetes Secret. It prints as nothing, so that it cannot get into a log by accident.
type Secret struct {
	// Data by key. Not to be written to. Not nil where there is such a Secret.
	Data map[string][]byte
	// Version is comparable: Secrets are equal in all keys and values where their Versions are, whatever their names.
	// So what is built from a Secret has to be built anew only when its Version changes.
	Version SecretVersion
}

// SecretVersion stands for the content of a Secret. It is a digest of it, so it is not for print either.
type SecretVersion [sha256.Size]byte

const hidden = "[hidden]"

// String tells nothing.
func (Secret) String() string { return hidden }

// GoString tells nothing.
func (Secret) GoString() string { return hidden }

// MarshalJSON tells nothing.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// String tells nothing.
func (SecretVersion) String() string { return hidden }

// GoString tells nothing.
func (SecretVersion) GoString() string { return hidden }

// MarshalJSON tells nothing.
func (SecretVersion) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// SecretsOptions are the options of Secrets.
type SecretsOptions struct {
	// Client reads Secrets, by GET alone. Required. A client-side rate limit of it would let one namespace's Secrets
	// delay another's.
	Client corev1client.SecretsGetter
	// TTL is how long an answer of the API server, an error too, is used before it is asked for again. Default
	// DefaultSecretTTL.
	TTL time.Duration
	// Namespace of the adapter's ServiceAccount, for the remedy that an error names. Default v1alpha1.SystemNamespace.
	Namespace string
}

// Secrets reads Secrets for sources. It needs the right to get them, in the namespaces concerned only, and neither to
// list nor to watch them: a namespace decides by a RoleBinding whether its Secrets can be read, and by a Role of its
// own, if it likes, which of them.
//
// Safe for concurrent use. However many ask for a Secret, there is one read of it at a time, and one per TTL. What is
// not asked for any more is forgotten.
type Secrets struct {
	opts SecretsOptions

	mu      sync.Mutex // protects following
	entries map[types.NamespacedName]*secretEntry
	bytes   int
	swept   time.Time
}

// secretEntry is what is known of one Secret.
type secretEntry struct {
	pending chan struct{} // closed when the read that is under way has ended; nil while there is none
	read    time.Time     // when the last read began
	used    time.Time     // when it was last asked for
	good    time.Time     // when the read that gave secret began
	secret  Secret
	size    int
	err     error
}

// NewSecrets makes Secrets. It asks for nothing yet.
func NewSecrets(o SecretsOptions) *Secrets {
	if o.TTL <= 0 {
		o.TTL = DefaultSecretTTL
	}
	if o.Namespace == "" {
		o.Namespace = v1alpha1.SystemNamespace
	}
	return &Secrets{opts: o, entries: map[types.NamespacedName]*secretEntry{}}
}

// Get returns the Secret's content, at most TTL old, before ctx ends. While the API server cannot be asked, it is the
// content as last read, for some minutes. The error names the Secret and what to do, and nothing of its content; the
// caller adds the field that names the Secret.
func (s *Secrets) Get(ctx context.Context, name types.NamespacedName) (Secret, error) {
	for {
		s.mu.Lock()
		e := s.useLocked(name)
		switch {
		case !e.read.IsZero() && time.Since(e.read) < s.opts.TTL:
			secret, err := e.secret, e.err
			s.mu.Unlock()
			return secret, err
		case e.pending == nil:
			e.pending = make(chan struct{})
			s.mu.Unlock()
			return s.lead(ctx, name, e)
		}
		pending := e.pending
		s.mu.Unlock()
		select {
		case <-pending: // look again: the caller that read may have been cancelled, and then it is somebody else's turn
		case <-ctx.Done():
			return Secret{}, fmt.Errorf("read secret %s: %w", name, context.Cause(ctx))
		}
	}
}

// lead reads the Secret for all who wait for e. There is no goroutine that would have to be waited for: a caller reads,
// and when its ctx ends before, another one does.
func (s *Secrets) lead(ctx context.Context, name types.NamespacedName, e *secretEntry) (Secret, error) {
	began := time.Now()
	secret, size, err := s.fetch(ctx, name)

	s.mu.Lock()
	defer s.mu.Unlock()
	close(e.pending)
	e.pending = nil
	if err != nil && ctx.Err() != nil {
		return Secret{}, err // says nothing of the Secret
	}
	e.read = began
	if _, unreachable := errors.AsType[*unreachableError](err); unreachable && !e.good.IsZero() && began.Sub(e.good) < secretKeep {
		e.err = nil // the last content stays
		return e.secret, nil
	}
	s.bytes += size - e.size
	e.secret, e.size, e.err, e.good = secret, size, err, time.Time{}
	if err == nil {
		e.good = began
	}
	s.trimLocked(name)
	return secret, err
}

// unreachableError says that the API server gave no verdict on the Secret.
type unreachableError struct{ err error }

func (u *unreachableError) Error() string { return u.err.Error() }
func (u *unreachableError) Unwrap() error { return u.err }

func (s *Secrets) fetch(ctx context.Context, name types.NamespacedName) (Secret, int, error) {
	timeout := secretTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// resourceVersion 0 is answered from the API server's own memory, which is as new as its watch; any other read
	// would go to etcd, for every Secret every few seconds.
	got, err := s.opts.Client.Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{ResourceVersion: "0"})
	switch {
	case apierrors.IsNotFound(err):
		return Secret{}, 0, fmt.Errorf("secret %s does not exist", name)
	case apierrors.IsForbidden(err):
		return Secret{}, 0, fmt.Errorf("secret %s: the adapter may not read the Secrets of namespace %s; allow it by: "+
			"kubectl -n %s create rolebinding sluice-adapter-secrets --clusterrole=sluice-adapter-secrets --serviceaccount=%s:sluice-adapter",
			name, name.Namespace, name.Namespace, s.opts.Namespace)
	case err != nil:
		return Secret{}, 0, &unreachableError{fmt.Errorf("read secret %s: %w", name, err)}
	}
	size := 0
	for k, v := range got.Data {
		size += len(k) + len(v)
	}
	if size > secretLimit {
		return Secret{}, 0, fmt.Errorf("secret %s has %d bytes; %d are taken at most", name, size, secretLimit)
	}
	if got.Data == nil { // an empty one is not none
		got.Data = map[string][]byte{}
	}
	return Secret{Data: got.Data, Version: versionOf(got.Data)}, size, nil
}

// versionOf digests keys and values with their lengths, so that nothing can move from one to the next unnoticed.
func versionOf(data map[string][]byte) (v SecretVersion) {
	h := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		writeWithLength(h, []byte(key))
		writeWithLength(h, data[key])
	}
	h.Sum(v[:0])
	return v
}

func writeWithLength(h hash.Hash, b []byte) {
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b)))) // a hash never fails
	_, _ = h.Write(b)
}

// useLocked returns what is known of a Secret, and drops what nobody has asked for in a while.
func (s *Secrets) useLocked(name types.NamespacedName) *secretEntry {
	now := time.Now()
	if now.Sub(s.swept) >= secretKeep/5 {
		s.swept = now
		for n, e := range s.entries {
			if e.pending == nil && now.Sub(e.used) >= secretKeep {
				s.dropLocked(n)
			}
		}
	}
	e := s.entries[name]
	if e == nil {
		e = &secretEntry{}
		s.entries[name] = e
	}
	e.used = now
	return e
}

// trimLocked keeps within the bounds by dropping what was asked for longest ago; keep is not dropped.
func (s *Secrets) trimLocked(keep types.NamespacedName) {
	for len(s.entries) > maxSecrets || s.bytes > maxSecretBytes {
		var oldest types.NamespacedName
		var used time.Time
		for n, e := range s.entries {
			if n != keep && e.pending == nil && (used.IsZero() || e.used.Before(used)) {
				oldest, used = n, e.used
			}
		}
		if used.IsZero() {
			return
		}
		s.dropLocked(oldest)
	}
}

func (s *Secrets) dropLocked(name types.NamespacedName) {
	s.bytes -= s.entries[name].size
	delete(s.entries, name)
}
