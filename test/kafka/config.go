package kafka

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// properties are the broker's settings: small and quick, for a machine that has other things to do.
func (b *Broker) properties() map[string]string {
	o := b.cluster.options
	copies := strconv.Itoa(o.Brokers)
	var listeners, protocols, voters []string
	for _, l := range []struct {
		name     Listener
		protocol string
	}{{PlaintextListener, "PLAINTEXT"}, {controllerListener, "PLAINTEXT"}, {TLSListener, "SSL"}, {SASLListener, "SASL_SSL"}} {
		if address := b.Address(l.name); address != "" {
			listeners = append(listeners, string(l.name)+"://"+address)
			protocols = append(protocols, string(l.name)+":"+l.protocol)
		}
	}
	for _, other := range b.cluster.Brokers {
		voters = append(voters, fmt.Sprintf("%d@%s", other.ID, other.addresses[controllerListener]))
	}
	p := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(int(b.ID)),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"controller.listener.names":      string(controllerListener),
		"inter.broker.listener.name":     string(PlaintextListener),
		"listeners":                      strings.Join(listeners, ","),
		"listener.security.protocol.map": strings.Join(protocols, ","),
		"log.dirs":                       filepath.Join(b.dir, "data"),

		"auto.create.topics.enable":                        "false",
		"default.replication.factor":                       copies,
		"min.insync.replicas":                              "1",
		"offsets.topic.replication.factor":                 copies,
		"offsets.topic.num.partitions":                     "8",
		"transaction.state.log.replication.factor":         copies,
		"transaction.state.log.min.isr":                    "1",
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.min.isr":            "1",
		"share.coordinator.state.topic.num.partitions":     "1",
		"share.coordinator.state.topic.replication.factor": copies,

		"group.initial.rebalance.delay.ms": "0",
		// A killed broker loses its partitions after this, not after 9 s.
		"broker.session.timeout.ms":    "4000",
		"broker.heartbeat.interval.ms": "1000",
		// Its default allocates 128 MB.
		"log.cleaner.dedupe.buffer.size": "2097152",
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
	}
	if o.TLS != nil {
		p["ssl.keystore.type"], p["ssl.keystore.location"] = "PEM", filepath.Join(b.dir, "server.pem")
		if o.TLS.ClientCA != "" {
			p["ssl.truststore.type"], p["ssl.truststore.location"] = "PEM", filepath.Join(b.dir, "clients.pem")
			p["listener.name.tls.ssl.client.auth"] = "required"
		}
	}
	if len(o.Users) > 0 {
		const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
		plain := []string{"org.apache.kafka.common.security.plain.PlainLoginModule required"}
		for _, u := range o.Users {
			plain = append(plain, fmt.Sprintf("user_%s=%q", u.Name, u.Password))
		}
		p["listener.name.sasl.sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
		p["listener.name.sasl.plain.sasl.jaas.config"] = strings.Join(plain, " ") + ";"
		p["listener.name.sasl.scram-sha-256.sasl.jaas.config"] = scram
		p["listener.name.sasl.scram-sha-512.sasl.jaas.config"] = scram
	}
	maps.Copy(p, o.Config)
	return p
}

// write writes the broker's files.
func (b *Broker) write() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	properties := b.properties()
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(properties)) {
		text.WriteString(k + "=" + strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(properties[k]) + "\n")
	}
	files := map[string]string{"server.properties": text.String()}
	if o := b.cluster.options; o.TLS != nil {
		files["server.pem"], files["clients.pem"] = o.TLS.Key+o.TLS.Cert, o.TLS.ClientCA
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
