package providers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/providers"
)

// canary is what no error and no print may show.
const canary = "c4n4ry-s3cr3t"

// vault is a Kubernetes API of Secrets. Its answers follow get; it counts.
type vault struct {
	corev1client.SecretInterface
	get func(ctx context.Context, name string) (map[string][]byte, error)

	mu    sync.Mutex // protects following
	reads int
}

func (v *vault) Secrets(string) corev1client.SecretInterface { return v }

func (v *vault) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	v.mu.Lock()
	v.reads++
	v.mu.Unlock()
	data, err := v.get(ctx, name)
	return &corev1.Secret{Data: data}, err
}

func (v *vault) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reads
}

var secretName = types.NamespacedName{Namespace: "default", Name: "auth"}

func value(s providers.Secret) string { return string(s.Data["token"]) }

func TestSecretIsReadOncePerTTLAndRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := "one"
		v := &vault{get: func(context.Context, string) (map[string][]byte, error) {
			return map[string][]byte{"token": []byte(content)}, nil
		}}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v})
		first, err := s.Get(t.Context(), secretName)
		if err != nil || value(first) != "one" {
			t.Fatalf("got %q, %v", value(first), err)
		}
		content = "two"
		for range 100 {
			if got, err := s.Get(t.Context(), secretName); err != nil || value(got) != "one" {
				t.Fatalf("within the TTL: %q, %v", value(got), err)
			}
		}
		if v.count() != 1 {
			t.Errorf("%d reads within the TTL, want 1", v.count())
		}
		<-time.After(providers.DefaultSecretTTL)
		got, err := s.Get(t.Context(), secretName)
		if err != nil || value(got) != "two" || got.Version == first.Version {
			t.Errorf("after the TTL: %q, %v, same version %t", value(got), err, got.Version == first.Version)
		}
	})
}

func TestSecretIsReadOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{get: func(context.Context, string) (map[string][]byte, error) {
			<-time.After(time.Second)
			return map[string][]byte{"token": []byte("x")}, nil
		}}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v})
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if got, err := s.Get(t.Context(), secretName); err != nil || value(got) != "x" {
					t.Errorf("got %q, %v", value(got), err)
				}
			})
		}
		all.Wait()
		if v.count() != 1 {
			t.Errorf("%d reads for 100 callers, want 1", v.count())
		}
	})
}

// The caller that reads is cancelled: those who wait for it neither fail nor wait for ever.
func TestSecretReaderThatIsCancelledIsFollowedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{get: func(ctx context.Context, _ string) (map[string][]byte, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Second):
				return map[string][]byte{"token": []byte("x")}, nil
			}
		}}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v})
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.Get(ctx, secretName); !errors.Is(err, context.Canceled) {
				t.Errorf("the cancelled caller got %v", err)
			}
		})
		synctest.Wait()
		for range 10 {
			all.Go(func() {
				if got, err := s.Get(t.Context(), secretName); err != nil || value(got) != "x" {
					t.Errorf("got %q, %v", value(got), err)
				}
			})
		}
		all.Go(func() {
			short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := s.Get(short, secretName); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a caller whose time is over while it waits got %v", err)
			}
		})
		<-time.After(500 * time.Millisecond)
		cancel()
		all.Wait()
		if v.count() != 2 {
			t.Errorf("%d reads, want 2", v.count())
		}
	})
}

func TestSecretErrors(t *testing.T) {
	resource := corev1.Resource("secrets")
	tests := []struct {
		name string
		get  func() (map[string][]byte, error)
		want string
	}{
		{
			"not there",
			func() (map[string][]byte, error) { return nil, apierrors.NewNotFound(resource, "auth") },
			`secret default/auth does not exist`,
		},
		{
			"no right",
			func() (map[string][]byte, error) {
				return nil, apierrors.NewForbidden(resource, "auth", errors.New("no"))
			},
			`secret default/auth: the adapter may not read the Secrets of namespace default; allow it by: kubectl -n default ` +
				`create rolebinding sluice-adapter-secrets --clusterrole=sluice-adapter-secrets --serviceaccount=gates:sluice-adapter`,
		},
		{
			"no API server",
			func() (map[string][]byte, error) { return nil, errors.New("connection refused") },
			`read secret default/auth: connection refused`,
		},
		{
			"too large",
			func() (map[string][]byte, error) {
				return map[string][]byte{"x": []byte(strings.Repeat(canary, 1<<16))}, nil
			},
			`secret default/auth has 851969 bytes; 524288 are taken at most`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &vault{get: func(context.Context, string) (map[string][]byte, error) { return tt.get() }}
				s := providers.NewSecrets(providers.SecretsOptions{Client: v, Namespace: "gates"})
				for range 100 {
					_, err := s.Get(t.Context(), secretName)
					if err == nil {
						t.Fatal("no error")
					}
					if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
						t.Fatalf("-want +got\n%s", diff)
					}
				}
				if v.count() != 1 {
					t.Errorf("%d reads for 100 asks of one that fails, want 1", v.count())
				}
			})
		})
	}
}

// While the API server is away, or hangs, the last content is good for a while. A verdict on the Secret, in contrast,
// counts at once: what was revoked is not used.
func TestSecretOutlastsTheAPIServerButNotItsOwnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		get := func(context.Context) (map[string][]byte, error) {
			return map[string][]byte{"token": []byte("x")}, nil
		}
		v := &vault{get: func(ctx context.Context, _ string) (map[string][]byte, error) { return get(ctx) }}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v})
		expect := func(wantErr bool) {
			t.Helper()
			<-time.After(providers.DefaultSecretTTL)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			if got, err := s.Get(ctx, secretName); (err != nil) != wantErr || (value(got) == "x") == wantErr {
				t.Errorf("got %q, %v; want an error: %t", value(got), err, wantErr)
			}
		}
		expect(false)
		get = func(context.Context) (map[string][]byte, error) {
			return nil, apierrors.NewInternalError(errors.New("no"))
		}
		expect(false)
		get = func(ctx context.Context) (map[string][]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		expect(false)
		get = func(context.Context) (map[string][]byte, error) {
			return nil, apierrors.NewForbidden(corev1.Resource("secrets"), "auth", nil)
		}
		expect(true)
		get = func(context.Context) (map[string][]byte, error) {
			return nil, apierrors.NewInternalError(errors.New("no"))
		}
		expect(true)
		get = func(context.Context) (map[string][]byte, error) { return map[string][]byte{"token": []byte("x")}, nil }
		expect(false)
		get = func(context.Context) (map[string][]byte, error) {
			return nil, apierrors.NewInternalError(errors.New("no"))
		}
		for range 50 {
			expect(false)
		}
		<-time.After(time.Minute)
		expect(true)
	})
}

// An API server that hangs leaves time to work with the last content also to those whose time is short, as a scrape
// every two seconds is.
func TestSecretIsThereInTimeWhileTheAPIServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := false
		v := &vault{get: func(ctx context.Context, _ string) (map[string][]byte, error) {
			if hangs {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return map[string][]byte{"token": []byte("x")}, nil
		}}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v})
		for range 30 {
			ctx, cancel := context.WithTimeout(t.Context(), 1600*time.Millisecond)
			got, err := s.Get(ctx, secretName)
			deadline, _ := ctx.Deadline()
			if left := time.Until(deadline); err != nil || value(got) != "x" || left < 500*time.Millisecond {
				t.Fatalf("got %q, %v, with %s left", value(got), err, left)
			}
			cancel()
			hangs = true
			<-time.After(2 * time.Second)
		}
	})
}

// What nobody asks for is forgotten, and there is never more in memory than a bound.
func TestSecretsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := make([]byte, 500<<10)
		v := &vault{get: func(context.Context, string) (map[string][]byte, error) {
			return map[string][]byte{"x": big}, nil
		}}
		s := providers.NewSecrets(providers.SecretsOptions{Client: v, TTL: time.Hour})
		ask := func(i int) {
			t.Helper()
			if _, err := s.Get(t.Context(), types.NamespacedName{Namespace: "a", Name: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Millisecond)
		}
		const many = 200 // 100 MB
		for i := range many {
			ask(i)
		}
		ask(many - 1)
		if v.count() != many {
			t.Errorf("%d reads, want %d: the newest is to be kept", v.count(), many)
		}
		ask(0)
		if v.count() != many+1 {
			t.Errorf("%d reads, want %d: the oldest is to be dropped past the bound", v.count(), many+1)
		}
		<-time.After(6 * time.Minute)
		ask(0)
		if v.count() != many+2 {
			t.Errorf("%d reads, want %d: what was not asked for in 5 minutes is to be dropped", v.count(), many+2)
		}
	})
}

func TestSecretVersionIsOfTheContent(t *testing.T) {
	version := func(data map[string][]byte) providers.SecretVersion {
		t.Helper()
		v := &vault{get: func(context.Context, string) (map[string][]byte, error) { return data, nil }}
		s, err := providers.NewSecrets(providers.SecretsOptions{Client: v}).Get(t.Context(), secretName)
		if err != nil {
			t.Fatal(err)
		}
		return s.Version
	}
	base := version(map[string][]byte{"a": []byte("b"), "c": []byte("d")})
	if base != version(map[string][]byte{"c": []byte("d"), "a": []byte("b")}) {
		t.Error("equal contents have two versions")
	}
	for name, data := range map[string]map[string][]byte{
		"a value changed":     {"a": []byte("b"), "c": []byte("e")},
		"a key changed":       {"a": []byte("b"), "d": []byte("d")},
		"a key went":          {"a": []byte("b")},
		"what follows joined": {"a": []byte("bc"), "": []byte("d")},
		"nothing":             {},
	} {
		if version(data) == base || version(data) == (providers.SecretVersion{}) {
			t.Errorf("%s: the version is the same, or zero", name)
		}
	}
}

func TestSecretPrintsAsNothing(t *testing.T) {
	v := &vault{get: func(context.Context, string) (map[string][]byte, error) {
		return map[string][]byte{canary: []byte(canary)}, nil
	}}
	s, err := providers.NewSecrets(providers.SecretsOptions{Client: v}).Get(t.Context(), secretName)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(struct{ S providers.Secret }{s})
	if err != nil {
		t.Fatal(err)
	}
	bytes := fmt.Sprintf("%d", []byte(canary))
	for _, text := range []string{
		fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), fmt.Sprintf("%v %+v %#v", &s, []any{s}, struct{ S any }{s}),
		string(encoded),
	} {
		if strings.Contains(text, canary) || strings.Contains(text, bytes[1:len(bytes)-1]) {
			t.Errorf("it prints as %s", text)
		}
	}
}

// By a real client: one GET of the object itself, from the API server's memory, and its refusal in words.
func TestSecretIsReadByGetAlone(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/refused") {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
			return
		}
		fmt.Fprint(w, `{"kind":"Secret","apiVersion":"v1","data":{"token":"eA=="}}`)
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	s := providers.NewSecrets(providers.SecretsOptions{Client: client.CoreV1()})
	if got, err := s.Get(t.Context(), secretName); err != nil || value(got) != "x" {
		t.Errorf("got %q, %v", value(got), err)
	}
	_, err = s.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: "refused"})
	if err == nil || !strings.Contains(err.Error(), "--serviceaccount=sluice-system:sluice-adapter") {
		t.Errorf("got %v, want the remedy", err)
	}
	want := []string{
		"GET /api/v1/namespaces/default/secrets/auth?resourceVersion=0",
		"GET /api/v1/namespaces/default/secrets/refused?resourceVersion=0",
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
