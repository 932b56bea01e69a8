package kafka

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/protocol"
	corev1client "k8s.io/client-go/kubernetes/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

const refusal = " is an address of the adapter's own machine or of its cloud's metadata, " +
	"which is asked only if the operator's allow-list (--kafka-allow) has the server"

// measureBy measures once, by bootstrap servers, with an operator's list.
func measureBy(t *testing.T, servers string, allow ...string) error {
	t.Helper()
	secrets := providers.NewSecrets(providers.SecretsOptions{Client: corev1client.NewClientset().CoreV1()})
	s, err := New(Options{Secrets: secrets, Interval: patient, Allow: allow})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patient*8/10)
	defer cancel()
	_, err = s.Measure(ctx, providers.Target{Kind: providers.Lag, Consumer: providers.Consumer{
		Servers: servers, Group: "g", Topics: "orders", Reset: v1alpha1.KafkaEarliest,
	}})
	return err
}

// Whoever may write a Function may not have the adapter connect to what only its machine can.
func TestBootstrapServersOfTheMachineItself(t *testing.T) {
	f := newFake(t, 1)
	f.topics["orders"] = 1
	address := f.addresses()[0]
	_, port, _ := net.SplitHostPort(address)
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "[fd00:ec2::254]"} {
		err := measureBy(t, host+":"+port)
		if err == nil || !strings.HasPrefix(err.Error(), "metadata of the cluster: broker "+host+":"+port+": dial tcp ") || !strings.HasSuffix(err.Error(), refusal) {
			t.Errorf("%s: got %v\nwant ...%s", host, err, refusal)
		}
	}
	if n := len(f.counted()); n > 0 || f.open() > 0 {
		t.Errorf("the broker was asked: %d APIs, %d connections", n, f.open())
	}
	if err := measureBy(t, address, "127.0.0.1"); err != nil {
		t.Errorf("in the list: %v", err)
	}
}

// With a list, Functions name whom it has, and nobody else besides.
func TestBootstrapServersAndTheList(t *testing.T) {
	f := newFake(t, 1)
	f.topics["orders"] = 1
	address := f.addresses()[0]
	_, port, _ := net.SplitHostPort(address)
	for _, tt := range []struct {
		name    string
		servers string
		allow   []string
		wantErr string
	}{
		{"its host", address, []string{"kafka.streams.svc", "127.0.0.1"}, ""},
		{"its host and port", address, []string{address}, ""},
		{"another port", address, []string{"127.0.0.1:1"}, "server " + address + " is not in the operator's allow-list (--kafka-allow)"},
		{"another name of it", "localhost:" + port, []string{"127.0.0.1"}, "server localhost:" + port + " is not in the operator's allow-list (--kafka-allow)"},
		{"another host", address, []string{"kafka.streams.svc"}, "server " + address + " is not in the operator's allow-list (--kafka-allow)"},
		{"beside one that is", address + ",kafka.evil:9092", []string{"127.0.0.1"}, "server kafka.evil:9092 is not in the operator's allow-list (--kafka-allow)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.counted()
			err := measureBy(t, tt.servers, tt.allow...)
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || err.Error() != "bootstrapServers: "+tt.wantErr) {
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			}
			if n := len(f.counted()); tt.wantErr != "" && n > 0 {
				t.Errorf("it was asked: %d APIs", n)
			}
		})
	}
}

func TestAllowIsValidated(t *testing.T) {
	secrets := providers.NewSecrets(providers.SecretsOptions{Client: corev1client.NewClientset().CoreV1()})
	for entry, want := range map[string]string{
		"https://kafka:9092": `--kafka-allow: "https://kafka:9092": a URL is not taken; write a host (name.namespace.svc), or a host with a port`,
		"*.kafka":            `--kafka-allow: "*.kafka": there are no wildcards; write a host (name.namespace.svc), or a host with a port`,
		"kafka:99999":        `--kafka-allow: "kafka:99999": its port is not between 1 and 65535; write a host (name.namespace.svc), or a host with a port`,
	} {
		if _, err := New(Options{Secrets: secrets, Allow: []string{"fine", entry}}); err == nil || err.Error() != want {
			t.Errorf("%s\ngot  %v\nwant %s", entry, err, want)
		}
	}
}

// A bootstrap server may name any address as that of a broker. Who may be asked is judged as for bootstrap servers, by the
// address; the error says who named it, and costs nobody else anything.
func TestAdvertisedAddresses(t *testing.T) {
	f := newFake(t, 2) // of which the second is one that the list does not have
	f.topics = map[string]int{"orders": 2, "alone": 1}
	f.ends[partition{"orders", 1}], f.ends[partition{"alone", 0}] = 5, 7
	f.keepers["kept"] = 1
	first, second := f.addresses()[0], f.addresses()[1]
	_, port, _ := net.SplitHostPort(second)
	advertise := func(host string, port int32) func(int, protocol.Message) {
		return func(_ int, m protocol.Message) {
			switch a := m.(type) {
			case *metadataResponse:
				a.Brokers[1].Host, a.Brokers[1].Port = host, port
			case *findCoordinatorResponse:
				for i := range a.Coordinators {
					if a.Coordinators[i].Key == "kept" {
						a.Coordinators[i].Host, a.Coordinators[i].Port, a.Coordinators[i].NodeID = host, port, 1
					}
				}
			}
		}
	}
	_, number := hostPort(second)
	by := func(advertised, dialled string) string {
		ip, _, _ := net.SplitHostPort(dialled)
		return "broker " + first + " advertises " + advertised + ": dial tcp " + dialled + ": " + ip + refusal
	}
	const no = "advertises no usable address"
	for _, tt := range []struct {
		name   string
		host   string
		port   int32
		leader string // what is said of what the second leads
		keeper string // and keeps
	}{
		{"loopback", "127.0.0.1", number, by(second, second), by(second, second)},
		{"as a name", "localhost", number, by("localhost:"+port, second), by("localhost:"+port, second)},
		{"metadata of a cloud", "169.254.169.254", 80, by("169.254.169.254:80", "169.254.169.254:80"), by("169.254.169.254:80", "169.254.169.254:80")},
		{"a port that there is not", "127.0.0.1", 70000, "its leader, broker 1, " + no, "broker 1 " + no},
		{"a host that there is not", "a\nb", 9092, "its leader, broker 1, " + no, "broker 1 " + no},
		{"no host", "", 9092, "its leader, broker 1, " + no, "broker 1 " + no},
		{"a host without end", strings.Repeat("a", 1000), 9092, "its leader, broker 1, " + no, "broker 1 " + no},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.with(func() { f.edit = advertise(tt.host, tt.port) })
			p := newPoller(&Options{Interval: patient, MetadataInterval: 30 * time.Second}, []string{first},
				security{allow: allowing(t, first)}, func(protocol.ApiKey) {})
			defer p.close()
			subs := []subscription{sub("g", "orders"), sub("kept", "alone"), sub("g", "alone")}
			want := map[string]result{
				"g orders":   {Err: `offsets of topic "orders", partition 1: ` + tt.leader},
				"kept alone": {Err: `offsets of group "kept": ` + tt.keeper},
				"g alone":    {Lag: 7},
			}
			if strings.HasSuffix(tt.keeper, no) {
				want["kept alone"] = result{Err: `coordinator of group "kept": ` + tt.keeper}
			}
			for range 2 {
				got := next(t, p, subs...)
				if tt.name == "as a name" { // ::1 may be tried too, and be who is told of
					for name, r := range got {
						r.Err = strings.ReplaceAll(strings.ReplaceAll(r.Err, "[::1]:", "127.0.0.1:"), "::1 ", "127.0.0.1 ")
						got[name] = r
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-want +got\n%s", diff)
				}
			}
		})
	}
	if n := f.open(); n > 1 {
		eventually(t, "the second broker was connected to", func() bool { return f.open() <= 1 })
	}
}

// With a list, what Secrets name is in it too.
func TestTokenEndpointAndTheList(t *testing.T) {
	for _, tt := range []struct{ endpoint, allow, wantErr string }{
		{"https://idp.example/" + canary, "idp.example", ""},
		{"https://idp.example/" + canary, "idp.example:443", ""},
		{"https://idp.example/" + canary, "idp.example:8443", "key oauthTokenEndpointUri: server idp.example:443 is not in the operator's allow-list (--kafka-allow)"},
		{"http://idp.example/" + canary, "kafka", "key oauthTokenEndpointUri: server idp.example:80 is not in the operator's allow-list (--kafka-allow)"},
		{"http://idp.example:/" + canary, "idp.example:80", ""},
	} {
		_, err := parseCredentials(bytesOf(map[string]string{
			"sasl": "oauthbearer", "username": "id", "password": canary, "oauthTokenEndpointUri": tt.endpoint,
		}), allowing(t, tt.allow))
		if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || err.Error() != tt.wantErr) {
			t.Errorf("%s with %s\ngot  %v\nwant %s", tt.endpoint, tt.allow, err, tt.wantErr)
		}
	}
}
