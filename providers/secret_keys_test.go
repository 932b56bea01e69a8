package providers_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/providers"
)

func TestPickSecret(t *testing.T) {
	data := map[string][]byte{"a": []byte("one\r\n\n"), "b": []byte(" two "), "empty": nil}
	tests := []struct {
		name    string
		keys    [][]string
		want    []providers.SecretEntry
		wantErr string
	}{
		{name: "line ends are no part of it, spaces are", keys: [][]string{{"a"}, {"b"}}, want: []providers.SecretEntry{{Name: "a", Value: []byte("one")}, {Name: "b", Value: []byte(" two ")}}},
		{name: "another name", keys: [][]string{{"other", "a"}}, want: []providers.SecretEntry{{Name: "a", Value: []byte("one")}}},
		{name: "empty is there", keys: [][]string{{"empty"}, {"none"}}, want: []providers.SecretEntry{{Name: "empty"}, {}}},
		{name: "two of the same", keys: [][]string{{"b", "a"}}, wantErr: "it has b and a, which mean the same; remove one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := providers.PickSecret(data, tt.keys...)
			if diff := cmp.Diff(tt.wantErr, textOf(err)); diff != "" {
				t.Errorf("error, -want +got\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestPickLogin(t *testing.T) {
	entry := func(name, value string) providers.SecretEntry {
		return providers.SecretEntry{Name: name, Value: []byte(value)}
	}
	tests := []struct {
		name               string
		username, password providers.SecretEntry
		want               bool
		wantErr            string
	}{
		{name: "none"},
		{name: "both", username: entry("username", "u"), password: entry("password", "p"), want: true},
		{name: "an empty password", username: entry("username", "u"), password: entry("password", ""), want: true},
		{name: "no password", username: entry("username", "u"), wantErr: "it has username and no password; add the key password"},
		{name: "no username", password: entry("password", "p"), wantErr: "it has password and no username; add the key username"},
		{name: "an empty username", username: entry("username", ""), password: entry("password", "p"), wantErr: "key username is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := providers.PickLogin(tt.username, tt.password)
			if got != tt.want || textOf(err) != tt.wantErr {
				t.Errorf("got %t, %v, want %t, %q", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A Secret without data is one that has none of the keys that it should have: who names it does not want to be nobody.
func TestEmptySecretIsNotNone(t *testing.T) {
	s := providers.NewSecrets(providers.SecretsOptions{Client: &vault{get: func(context.Context, string) (map[string][]byte, error) { return nil, nil }}})
	got, err := s.Get(t.Context(), secretName)
	if err != nil || got.Data == nil || got.Version == (providers.SecretVersion{}) {
		t.Errorf("got data %v, a version: %t, %v", got.Data, got.Version != providers.SecretVersion{}, err)
	}
}
