//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/kafka"
)

// lagInterval is how often the adapter measures groups, by default.
const lagInterval = 2 * time.Second

// kafkaDrains is a function without traffic that wakes for 10,000 records in 12 partitions, to one replica for each of
// them and no more, works them off and sleeps. One of its pods is deleted meanwhile. Every record is worked on, and the
// curve of the lag that is served passes through whatever Kafka's own tool says meanwhile.
func kafkaDrains(s *story) {
	const partitions, records, before = 12, 10_000, 50 * 12
	q := s.topic("drains", partitions)
	fn := q.function("drains", "500")
	fn.Spec.Scale.MaxReplicas = 20
	// So that there is a lag while nobody works it off, and that most records are there when it wakes.
	activation := resource.MustParse("9k")
	fn.Spec.Metrics[0].KafkaLag.Activation = &activation
	s.consumers("drains", q, 80*time.Millisecond) // 67 s, which is long enough for the tool to run a number of times
	s.create(fn)
	s.awaitPhase("drains", v1alpha1.Idle, 30*time.Second)

	q.produce(before)
	s.awaitLag("drains", before)
	if got := q.tool(); got != before {
		s.Errorf("lag at rest: Kafka's own tool says %d, want %d", got, before)
	}
	if n := *s.deployment("drains").Spec.Replicas; n != 0 {
		s.Errorf("%d replicas for a lag below activation", n)
	}

	compare := s.followLag("drains", q)
	began := time.Now()
	q.produce(records - before)
	if n := s.awaitWake("drains"); n != partitions { // of ceil(10,000 / 500) = 20
		s.Errorf("woken to %d replicas; want %d at once", n, partitions)
	}
	s.Logf("from the first of %d records to %d replicas: %s", records-before, partitions, since(began))
	s.change("drains", func(fn *v1alpha1.Function) { fn.Spec.Metrics[0].KafkaLag.Activation = nil })
	s.awaitConditionWithin(60*time.Second, "drains", v1alpha1.ConditionScalingActive, "True", "Scaling", "bound by 12 partitions of kafka_lag")
	var hpa autoscalingv2.HorizontalPodAutoscaler
	s.get(&hpa, fn.OwnedName())
	if hpa.Spec.MaxReplicas != partitions {
		s.Errorf("maxReplicas of its HPA is %d, want %d", hpa.Spec.MaxReplicas, partitions)
	}

	s.awaitLagBelow("drains", records*9/10, 60*time.Second)
	s.Logf("%s after the records, a tenth is done", since(began))
	s.deleteAPod("drains")
	most := int32(0)
	eventually(s.T, 240*time.Second, "every record to be read", func(ctx context.Context) string {
		most = max(most, *s.deployment("drains").Spec.Replicas)
		return s.lagIs(ctx, "drains", 0)
	})
	s.Logf("%s after the records, all are done", since(began))
	compare(records)
	if most != partitions {
		s.Errorf("%d replicas at most; want %d", most, partitions)
	}
	if got := q.tool(); got != 0 {
		s.Errorf("lag at the end: Kafka's own tool says %d, want 0", got)
	}
	s.awaitPhase("drains", v1alpha1.Idle, 60*time.Second)
	if n := *s.deployment("drains").Spec.Replicas; n != 0 {
		s.Errorf("%d replicas of an idle function", n)
	}
	s.Logf("%s after the records, it sleeps", since(began))
	q.mustHaveDone(records)
}

// kafkaOutage is a broker that is away for a minute while records are worked off. Nothing is scaled meanwhile, the
// condition says why, and nobody has to do anything once it is back.
func kafkaOutage(s *story) {
	const partitions, records, outage = 4, 2_400, 60 * time.Second
	q := s.topic("outage", partitions)
	s.consumers("outage", q, 50*time.Millisecond)
	fn := q.function("outage", "500")
	activation := resource.MustParse("2k") // so that most records are there when it wakes
	fn.Spec.Metrics[0].KafkaLag.Activation = &activation
	s.create(fn)
	s.awaitPhase("outage", v1alpha1.Idle, 30*time.Second)
	q.produce(records)
	if n := s.awaitWake("outage"); n != partitions {
		s.Errorf("woken to %d replicas; want %d", n, partitions)
	}
	s.change("outage", func(fn *v1alpha1.Function) { fn.Spec.Metrics[0].KafkaLag.Activation = nil })
	s.awaitLagBelow("outage", records*3/4, 60*time.Second)

	stopped := time.Now()
	q.Brokers[0].Stop()
	s.Logf("the broker took %s to stop", since(stopped))
	told := "" // what the condition says
	for end := stopped.Add(outage); time.Now().Before(end); {
		always(s.T, 500*time.Millisecond, "replicas while the broker is away", func(context.Context) string {
			if n := *s.deployment("outage").Spec.Replicas; n != partitions {
				return fmt.Sprintf("%d, want %d", n, partitions)
			}
			return ""
		})
		if now := s.condition("outage", v1alpha1.ConditionMetricsAvailable); !sameWords(now, told) {
			told = now
			s.Logf("%s after the broker was told to stop, %s", since(stopped), told)
		}
	}
	s.awaitConditionWithin(60*time.Second, "outage", v1alpha1.ConditionMetricsAvailable, "False", "MetricUnknown", "kafka_lag", q.server(), "connection refused")
	if got, err := s.metric(s.Context(), "outage", v1alpha1.KafkaLag); err == nil {
		s.Errorf("a lag of %v is served of a broker that is away", got)
	}
	if err := q.Brokers[0].Start(context.Background()); err != nil {
		s.Fatal(err)
	}

	back := time.Now()
	s.awaitConditionWithin(60*time.Second, "outage", v1alpha1.ConditionMetricsAvailable, "True", "MetricsKnown")
	s.Logf("%s after the broker was back, the metrics are available", since(back))
	eventually(s.T, 90*time.Second, "every record to be read", func(ctx context.Context) string { return s.lagIs(ctx, "outage", 0) })
	s.awaitPhase("outage", v1alpha1.Idle, 60*time.Second)
	s.Logf("%s after the broker was back, it sleeps", since(back))
	q.mustHaveDone(records)
}

// kafkaAndRate is a function that both requests and lag scale: it has as many replicas as the one asks for that asks for
// more, beyond the number of partitions too, as requests are for any number of replicas. At the end its topic is made anew.
func kafkaAndRate(s *story) {
	const partitions, rate = 2, 60.0
	q := s.topic("both", partitions)
	fn := onRate(q.function("both", "100"), "17")
	activation := resource.MustParse("240") // so that most records are there when it wakes
	fn.Spec.Metrics[0].KafkaLag.Activation = &activation
	fn.Spec.Traffic = proxied("both").Spec.Traffic
	fn.Spec.Scale.MaxReplicas = 8
	s.asleep(fn) // its pods do not consume: the lag is what the story says
	becomes := func(what string, want int32) time.Duration {
		s.Helper()
		began := time.Now()
		eventually(s.T, 90*time.Second, what, func(context.Context) string {
			if n := *s.deployment("both").Spec.Replicas; n != want {
				return fmt.Sprintf("%d replicas, want %d", n, want)
			}
			return ""
		})
		s.Logf("%s: %d replicas after %s", what, want, since(began))
		return since(began)
	}

	q.produce(250)
	// ceil(250 / 100) is more than partitions. The lag is measured every 2 s and read every second.
	if took := becomes("the lag to wake it", 3); took > 5*time.Second {
		s.Errorf("woken after %s, want two periods of the measurement and one of the reading at most", took)
	}
	s.awaitLag("both", 250)
	if got := q.tool(); got != 250 {
		s.Errorf("lag at rest: Kafka's own tool says %d, want 250", got)
	}
	s.awaitPhase("both", v1alpha1.Active, 60*time.Second)
	stop := s.steadyLoad(s.clusterIP("sluice-both"), rate, true)
	defer stop()
	becomes("the rate to ask for more than the lag", 4) // ceil(60 / 17)
	eventually(s.T, 60*time.Second, "the rate to be that of the load", func(ctx context.Context) string {
		if got, err := s.metric(ctx, "both", v1alpha1.RequestsPerSecond); err != nil || math.Abs(got-rate) > 0.05*rate {
			return fmt.Sprintf("%v (%v)", got, err)
		}
		return ""
	})
	q.produce(300)
	becomes("the lag to ask for more than the rate", 6) // ceil(550 / 100)
	s.partitionsAre("both", lagPart{0, new(int64), 275}, lagPart{1, new(int64), 275})
	q.remake()
	q.produce(600) // more than there was
	s.awaitLag("both", 600)
	s.partitionsAre("both", lagPart{0, nil, 300}, lagPart{1, nil, 300})
	s.mustTellOnce("both", "TopicRecreated", `topic "both" was deleted and made anew`)
}

// topic is one on a broker of its own, and the group that consumes it.
type topic struct {
	*kafka.Cluster
	s                *story
	client           *kafka.Client
	name, done       string
	partitions, size int
}

// topic starts a broker on the node, where pods reach it, with a topic whose group has committed the start, and a topic
// for the keys of records that are done. The broker ends with the story.
func (s *story) topic(name string, partitions int32) *topic {
	s.Helper()
	classPath, err := kafka.Find(s.Context(), filepath.Join(s.root, ".cluster", "kafka"))
	if err != nil {
		s.Fatal(err)
	}
	began := time.Now()
	c, err := kafka.Start(context.Background(), kafka.Options{
		ClassPath: classPath, Dir: s.TempDir(), Host: s.nodeIP(), JVM: []string{"-Xmx128m"},
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("a broker within %s", since(began))
	s.Cleanup(func() {
		c.Stop()
		if log, err := os.ReadFile(c.Brokers[0].Log()); err == nil && s.Failed() {
			s.Logf("kafka: %s", strings.TrimSpace(string(log[max(0, len(log)-2000):])))
		}
	})
	t := &topic{Cluster: c, s: s, name: name, done: name + "-done", partitions: int(partitions)}
	if t.client, err = c.Connect(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(t.client.Close)
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	start := map[kafka.Partition]int64{}
	for p := range partitions {
		start[kafka.Partition{Topic: name, Partition: p}] = 0
	}
	// The tool tells no lag of a partition in which nothing was committed.
	for _, err := range []error{
		t.client.CreateTopic(ctx, t.name, partitions), t.client.CreateTopic(ctx, t.done, 1), t.client.Commit(ctx, t.name, start),
	} {
		if err != nil {
			s.Fatal(err)
		}
	}
	return t
}

// server is the broker's address.
func (t *topic) server() string { return t.Addresses(kafka.PlaintextListener)[0] }

// function of no traffic that scales on the lag.
func (t *topic) function(name, target string) *v1alpha1.Function {
	fn := idleAfter(proxied(name), 5*time.Second)
	fn.Spec.Traffic = nil
	fn.Spec.Metrics = []v1alpha1.Metric{{KafkaLag: &v1alpha1.KafkaLagMetric{
		BootstrapServers: []string{t.server()}, Topic: t.name, Group: t.name,
		Target: resource.MustParse(target), OffsetReset: v1alpha1.KafkaEarliest,
	}}}
	return fn
}

// consumers creates a Deployment, at zero, whose pods take delay for a record, one after the other.
func (s *story) consumers(name string, t *topic, delay time.Duration) {
	s.Helper()
	template, none := s.template(name), int32(0)
	container := &template.Spec.Containers[0]
	container.Args = []string{
		"--kafka-servers=" + t.server(), "--kafka-topic=" + t.name, "--kafka-group=" + t.name, "--kafka-done=" + t.done,
		"--kafka-delay=" + delay.String(),
	}
	container.Lifecycle = nil // nobody sends it anything
	s.create(&appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: &none, Template: template, Selector: &metav1.LabelSelector{MatchLabels: template.Labels}},
	})
}

// produce writes n records more, in turn to each partition. Their keys are their numbers.
func (t *topic) produce(n int) {
	t.s.Helper()
	ctx, cancel := context.WithTimeout(t.s.Context(), time.Minute)
	defer cancel()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: t.name, Partition: int32(t.size % t.partitions), Key: fmt.Append(nil, t.size)}
		t.size++
	}
	if err := t.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.s.Fatalf("produce %d records to %s: %v", n, t.name, err)
	}
}

// tool is the lag that Kafka's own tool tells.
func (t *topic) tool() int64 {
	t.s.Helper()
	told, err := t.askTool(t.s.Context())
	if err != nil {
		t.s.Fatal(err)
	}
	return told.Lag
}

// askTool runs Kafka's own tool.
func (t *topic) askTool(ctx context.Context) (kafka.Told, error) {
	told := kafka.Told{Began: time.Now()}
	described, err := t.Lag(ctx, t.name)
	told.Ended = time.Now()
	if err != nil {
		return told, err
	}
	if len(described) != t.partitions {
		return told, fmt.Errorf("Kafka's own tool tells of %d partitions, want %d", len(described), t.partitions)
	}
	for p, d := range described {
		if d.Lag == kafka.None {
			return told, fmt.Errorf("Kafka's own tool does not know the lag of %v", p)
		}
		told.Lag += d.Lag
	}
	return told, nil
}

// mustHaveDone fails unless each of the first n records was worked on.
func (t *topic) mustHaveDone(n int) {
	t.s.Helper()
	ctx, cancel := context.WithTimeout(t.s.Context(), time.Minute)
	defer cancel()
	ends, err := t.client.Admin.ListEndOffsets(ctx, t.done)
	if err != nil {
		t.s.Fatal(err)
	}
	end, _ := ends.Lookup(t.done, 0)
	reader, err := t.Connect(kgo.ConsumeTopics(t.done), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.s.Fatal(err)
	}
	defer reader.Close()
	done, read := map[string]bool{}, int64(0)
	for read < end.Offset {
		got := reader.PollFetches(ctx)
		if err := got.Err(); err != nil {
			t.s.Fatalf("%d of %d keys of %s: %v", read, end.Offset, t.done, err)
		}
		for _, r := range got.Records() {
			done[string(r.Key)] = true
			read++
		}
	}
	missing := 0
	for i := range n {
		if !done[fmt.Sprint(i)] {
			missing++
		}
	}
	t.s.Logf("%d records, worked on %d times", n, read)
	if missing > 0 {
		t.s.Errorf("%d of %d records were never worked on", missing, n)
	}
}

// lagIs says what the lag of a function is, unless it is want.
func (s *story) lagIs(ctx context.Context, name string, want float64) string {
	if got, err := s.metric(ctx, name, v1alpha1.KafkaLag); err != nil || got != want {
		return fmt.Sprintf("lag %v (%v), want %v", got, err, want)
	}
	return ""
}

func (s *story) awaitLag(name string, want float64) {
	s.Helper()
	eventually(s.T, 30*time.Second, "the lag to be served", func(ctx context.Context) string { return s.lagIs(ctx, name, want) })
}

func (s *story) awaitLagBelow(name string, limit float64, within time.Duration) {
	s.Helper()
	eventually(s.T, within, fmt.Sprintf("a lag below %v", limit), func(ctx context.Context) string {
		if got, err := s.metric(ctx, name, v1alpha1.KafkaLag); err != nil || got >= limit {
			return fmt.Sprintf("%v (%v)", got, err)
		}
		return ""
	})
}

// awaitWake returns the first replicas that are not 0.
func (s *story) awaitWake(name string) (replicas int32) {
	s.Helper()
	eventually(s.T, 30*time.Second, "records to wake "+name, func(context.Context) string {
		if replicas = *s.deployment(name).Spec.Replicas; replicas == 0 {
			return "0 replicas"
		}
		return ""
	})
	return replicas
}

// followLag begins to read the lag that is served, and to run Kafka's own tool again and again, while records are worked
// off. compare ends that, and fails the story unless the curve of what was served, at most an interval later, passes
// through every value that the tool told; some must be from the drain itself, below from and not yet 0.
func (s *story) followLag(name string, t *topic) (compare func(from int64)) {
	const every, least = 200 * time.Millisecond, 6
	asking, stopAsking := context.WithCancel(s.Context())
	reading, stopReading := context.WithCancel(s.Context())
	var asked, read sync.WaitGroup
	var points []kafka.Told
	var curve kafka.Curve
	asked.Go(func() {
		for asking.Err() == nil {
			told, err := t.askTool(asking)
			if asking.Err() != nil {
				return
			}
			if err != nil {
				s.Errorf("while the lag is worked off: %v", err)
				return
			}
			points = append(points, told)
		}
	})
	read.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for reading.Err() == nil {
			sample := kafka.Sample{Asked: time.Now()}
			var err error
			sample.Lag, err = s.metric(reading, name, v1alpha1.KafkaLag)
			sample.Answered = time.Now()
			if reading.Err() != nil {
				return
			}
			if err != nil {
				s.Errorf("the lag while it is worked off: %v", err)
				return
			}
			curve = append(curve, sample)
			<-tick.C
		}
	})
	s.Cleanup(func() { stopAsking(); stopReading(); asked.Wait(); read.Wait() })
	return func(from int64) {
		s.Helper()
		stopAsking()
		asked.Wait()
		wait(s.Context(), lagInterval) // so that the curve reaches as far as the last point may look
		stopReading()
		read.Wait()
		inDrain := 0
		for _, p := range points {
			if p.Lag > 0 && p.Lag < from {
				inDrain++
			}
		}
		got := curve.Compare(points, lagInterval)
		s.Logf("Kafka's own tool told the lag %d times, %d of them while it was worked off; the curve of %d values that were served is %s late at most, and %v records away at most while the tool ran",
			got.Points, inDrain, len(curve), got.Latest.Round(10*time.Millisecond), got.Largest)
		if inDrain < least {
			s.Errorf("%d points of the drain; want %d", inDrain, least)
		}
		for _, wrong := range got.Wrong {
			s.Error(wrong)
		}
	}
}

// condition is the message of a condition.
func (s *story) condition(name, kind string) string {
	s.Helper()
	for _, c := range s.function(name).Status.Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s is %s: %s", kind, c.Status, c.Message)
		}
	}
	return "no condition " + kind
}

// sameWords tells whether two messages differ in digits only.
func sameWords(a, b string) bool {
	letters := func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}
	return strings.Map(letters, a) == strings.Map(letters, b)
}

// since is the time since t, to be told.
func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }
