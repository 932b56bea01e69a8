package prometheus

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/providers"
)

func TestServerThatIsNotAllowedIsNotAsked(t *testing.T) {
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	s, err := New(Options{
		Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}}), Allow: []string{srv.URL + "/tenant"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = measure(t, s, query(srv.URL+"/other"))
	want := "server " + srv.URL + "/other is not in the operator's allow-list (--prometheus-allow)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// It is what a name resolves to that counts.
func TestServerOfTheMachineItself(t *testing.T) {
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked", r.URL) })
	s, err := New(Options{Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = measure(t, s, query(strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)))
	if err == nil || !strings.Contains(err.Error(), "which is asked only if the operator's allow-list (--prometheus-allow) has the server") {
		t.Errorf("got %v from localhost", err)
	}
}

func TestAllowListIsValidated(t *testing.T) {
	_, err := New(Options{Secrets: providers.NewSecrets(providers.SecretsOptions{Client: &vault{}}), Allow: []string{"fine", "*.example"}})
	if err == nil || !strings.HasPrefix(err.Error(), `"*.example": there are no wildcards`) {
		t.Errorf("got %v", err)
	}
}
