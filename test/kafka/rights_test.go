//go:build integration

package kafka

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluice-dev/sluice/providers"
)

// TestRights: a user who may describe a topic and a group, and nothing else, is all that is needed. What it may not describe,
// and what cannot be, is unknown, and costs nobody else anything who asks as the same user.
func TestRights(t *testing.T) {
	authority, err := NewAuthority()
	must(t, err)
	cert, key, err := authority.Leaf("broker", "127.0.0.1")
	must(t, err)
	c := start(t, Options{
		TLS: &TLS{Cert: cert, Key: key}, Users: []User{{Name: "alice", Password: "open-sesame"}},
		Config: map[string]string{
			"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":           "User:ANONYMOUS", // who comes by PlaintextListener
		},
	})
	client := connect(t, c)
	ctx := within(t, time.Minute)
	for _, topic := range []string{"orders", "secret"} {
		must(t, client.CreateTopic(ctx, topic, 2))
		must(t, client.Produce(ctx, topic, 0, 5))
		for _, group := range []string{"readers", "others"} {
			must(t, client.Commit(ctx, group, map[Partition]int64{{topic, 0}: 2}))
		}
	}
	allow := kadm.NewACLs().Topics("orders", "missing", "..").Groups("readers", "later").Allow("User:alice").AllowHosts("*").
		Operations(kadm.OpDescribe).ResourcePatternType(kadm.ACLPatternLiteral)
	must(t, allow.ValidateCreate())
	created, err := client.Admin.CreateACLs(ctx, allow)
	must(t, err)
	for _, a := range created {
		must(t, a.Err)
	}

	m := source(t, c, 0, secretNamed("alice", map[string]string{
		"sasl": "scram_sha512", "username": "alice", "password": "open-sesame", "ca.crt": authority.PEM,
	}))
	m.servers = strings.Join(c.Addresses(SASLListener), ",")
	of := func(group, topics string) providers.Consumer {
		c := m.consumer(group, topics)
		c.AuthSecret = "alice"
		return c
	}
	known := map[string]float64{"allowed": 3, "a group that is not there": 5}
	unknown := map[string]string{
		"another group": "[30] Group Authorization Failed", "another topic": "[29] Topic Authorization Failed",
		"both topics": `topic "secret": [29] Topic Authorization Failed`, "no topic": "[3] Unknown Topic Or Partition",
		"no name of a topic": "[17] Invalid Topic",
	}
	all := map[string]providers.Consumer{
		"allowed": of("readers", "orders"), "a group that is not there": of("later", "orders"), "another group": of("others", "orders"),
		"another topic": of("readers", "secret"), "both topics": of("readers", "orders,secret"), "no topic": of("readers", "missing"),
		"no name of a topic": of("readers", ".."),
	}
	for name, lag := range known {
		m.wantLag(t, name, all[name], lag)
	}
	for range 3 {
		for name, got := range m.round(t, all) {
			switch reason, not := unknown[name]; {
			case !not && (got.err != nil || got.lag != known[name]):
				t.Errorf("%s: %+v, want %v", name, got, known[name])
			case not && (got.err == nil || !strings.Contains(got.err.Error(), reason)):
				t.Errorf("%s: %v, want unknown: %s", name, got, reason)
			}
		}
		wait(t, interval)
	}
	wantNoSecret(t, m, "sesame")
}

// wantNoSecret fails where a metric of the Source has a text in it.
func wantNoSecret(t *testing.T, m *measured, secret string) {
	t.Helper()
	families, err := m.registry.Gather()
	must(t, err)
	if len(families) == 0 {
		t.Error("there are no metrics")
	}
	for _, f := range families {
		if strings.Contains(f.String(), secret) {
			t.Errorf("a secret in %s", f.GetName())
		}
	}
}
