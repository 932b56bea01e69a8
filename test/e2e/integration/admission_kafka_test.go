//go:build integration

package integration

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// consuming adds a kafkaLag, changed.
func consuming(edit func(*v1alpha1.KafkaLagMetric)) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		m := &v1alpha1.KafkaLagMetric{
			BootstrapServers: []string{"kafka:9092"}, Topic: "orders", Group: "hello", Target: resource.MustParse("100"),
		}
		edit(m)
		fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{KafkaLag: m})
	}
}

// all makes each of the edits.
func all(edits ...func(*v1alpha1.Function)) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) {
		for _, edit := range edits {
			edit(fn)
		}
	}
}

func unnamed(*v1alpha1.KafkaLagMetric) {}

func named(name string) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.Name = name }
}

func topic(name string) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.Topic = name }
}

func topics(names ...string) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.Topic, m.Topics = "", names }
}

func servers(addresses ...string) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.BootstrapServers = addresses }
}

func partitions(numbers ...int32) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.Partitions = numbers }
}

func target(quantity string) func(*v1alpha1.KafkaLagMetric) {
	return func(m *v1alpha1.KafkaLagMetric) { m.Target = resource.MustParse(quantity) }
}

var acceptedLags = map[string]func(*v1alpha1.Function){
	"a lag, no traffic, minReplicas 0":   all(func(fn *v1alpha1.Function) { fn.Spec.Traffic = nil }, consuming(unnamed)),
	"a lag beside requests":              all(onRequests, consuming(unnamed)),
	"one lag without a name, others not": all(consuming(unnamed), consuming(named("a")), consuming(named("orders_eu2"))),
	"a lag beside a query":               all(consuming(unnamed), querying(asItIs)),
	"topics":                             consuming(topics("orders", "orders.eu-1_b")),
	"the longest topic":                  consuming(topic(strings.Repeat("o", 249))),
	"servers of all forms":               consuming(servers("kafka:9092", "kafka-0.kafka.ns.svc.cluster.local:9093", "10.0.0.1:9092", "[fd00::1]:9092")),
	"partitions":                         consuming(partitions(0, 7, 11)),
	"a group of any name":                consuming(func(m *v1alpha1.KafkaLagMetric) { m.Group = "team a/orders (eu)" }),
	"resets and isolation": consuming(func(m *v1alpha1.KafkaLagMetric) {
		m.OffsetReset, m.Isolation = v1alpha1.KafkaEarliest, v1alpha1.KafkaReadCommitted
		m.Activation, m.AuthRef = new(resource.MustParse("0")), &v1alpha1.SecretRef{Name: "kafka"}
	}),
	// The rules' real cost is bounded as well as their estimated one.
	"lags as large as may be": func(fn *v1alpha1.Function) {
		for i := range 8 {
			consuming(func(m *v1alpha1.KafkaLagMetric) {
				m.Name, m.Group, m.Topic = strings.Repeat("n", 29)+string(rune('a'+i)), strings.Repeat("g", 255), ""
				m.BootstrapServers = nil
				for j := range 16 {
					m.BootstrapServers = append(m.BootstrapServers, fmt.Sprintf("%s%02d:9092", strings.Repeat("h", 253), j))
				}
				for j := range 64 {
					m.Topics = append(m.Topics, fmt.Sprintf("%s%02d", strings.Repeat("t", 247), j))
				}
				for j := range int32(1024) {
					m.Partitions = append(m.Partitions, j)
				}
			})(fn)
		}
	},
}

func onRequests(fn *v1alpha1.Function) {
	fn.Spec.Metrics = append(fn.Spec.Metrics, v1alpha1.Metric{RequestRate: &v1alpha1.RequestRateMetric{Target: resource.MustParse("50")}})
}

var refusedLags = []refusal{
	{"neither topic nor topics", consuming(topics()), []string{"spec.metrics[].kafkaLag", "either topic or topics"}},
	{
		"both topic and topics", consuming(func(m *v1alpha1.KafkaLagMetric) { m.Topics = []string{"audit"} }),
		[]string{"spec.metrics[].kafkaLag", "either topic or topics"},
	},
	{"a topic that Kafka has not", consuming(topic("orders/eu")), []string{"spec.metrics[].kafkaLag.topic must be the name of a topic"}},
	{"a topic too long", consuming(topic(strings.Repeat("o", 250))), []string{"spec.metrics[0].kafkaLag.topic", "249"}},
	{"topics that Kafka has not", consuming(topics("orders", "or ders")), []string{"each of spec.metrics[].kafkaLag.topics must be"}},
	{"a topic twice", consuming(topics("orders", "orders")), []string{"spec.metrics[0].kafkaLag.topics[1]", "Duplicate"}},
	{"a lag's name in capitals", consuming(named("Orders")), []string{"spec.metrics[].kafkaLag.name must be of a-z"}},
	{"a lag's name that begins with a digit", consuming(named("1st")), []string{"spec.metrics[].kafkaLag.name must be of a-z"}},
	{"a lag's name that ends with _", consuming(named("orders_")), []string{"spec.metrics[].kafkaLag.name must be of a-z"}},
	{"a lag's name too long", consuming(named(strings.Repeat("n", 31))), []string{"spec.metrics[0].kafkaLag.name", "30"}},
	{"two lags without a name", all(consuming(unnamed), consuming(unnamed)), []string{"spec.metrics[].kafkaLag needs a name of its own"}},
	{"two lags of one name", all(consuming(named("a")), consuming(named("a"))), []string{"spec.metrics[].kafkaLag needs a name of its own"}},
	{"no server", consuming(servers()), []string{"spec.metrics[0].kafkaLag.bootstrapServers"}},
	{"a server without port", consuming(servers("kafka:9092", "kafka")), []string{"each of spec.metrics[].kafkaLag.bootstrapServers must be HOST:PORT"}},
	{"a server as URL", consuming(servers("http://kafka:9092")), []string{"bootstrapServers must be HOST:PORT"}},
	{"servers in one", consuming(servers("a:9092,b:9092")), []string{"bootstrapServers must be HOST:PORT"}},
	{"a server with a user", consuming(servers("me:secret@kafka:9092")), []string{"bootstrapServers must be HOST:PORT"}},
	{"a lag's target zero", consuming(target("0")), []string{"spec.metrics[].kafkaLag.target must be above 0"}},
	{"a lag's target below zero", consuming(target("-5")), []string{"spec.metrics[].kafkaLag.target must be above 0"}},
	{
		"a lag's activation below zero", consuming(func(m *v1alpha1.KafkaLagMetric) { m.Activation = new(resource.MustParse("-1")) }),
		[]string{"spec.metrics[].kafkaLag.activation must not be below 0"},
	},
	{"a partition below zero", consuming(partitions(-1)), []string{"spec.metrics[0].kafkaLag.partitions[0]"}},
	{"a partition twice", consuming(partitions(3, 3)), []string{"spec.metrics[0].kafkaLag.partitions[1]", "Duplicate"}},
	{"no group", consuming(func(m *v1alpha1.KafkaLagMetric) { m.Group = "" }), []string{"spec.metrics[0].kafkaLag.group"}},
	{
		"an unknown reset", consuming(func(m *v1alpha1.KafkaLagMetric) { m.OffsetReset = "None" }),
		[]string{"spec.metrics[0].kafkaLag.offsetReset", `"Latest"`, `"Earliest"`},
	},
	{
		"an unknown isolation", consuming(func(m *v1alpha1.KafkaLagMetric) { m.Isolation = "Serializable" }),
		[]string{"spec.metrics[0].kafkaLag.isolation", `"ReadCommitted"`},
	},
	{
		"a lag's Secret of another namespace", consuming(func(m *v1alpha1.KafkaLagMetric) { m.AuthRef = &v1alpha1.SecretRef{Name: "a/b"} }),
		[]string{"authRef.name", "the Function's own namespace"},
	},
	{
		"two in one metric", func(fn *v1alpha1.Function) {
			consuming(unnamed)(fn)
			fn.Spec.Metrics[0].RequestRate = &v1alpha1.RequestRateMetric{Target: resource.MustParse("1")}
		},
		[]string{"each of spec.metrics sets exactly one of", "kafkaLag"},
	},
}
