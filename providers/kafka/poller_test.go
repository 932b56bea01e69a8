package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

const (
	// interval leaves 4 s to a measurement, of which a round takes 3.5 s where somebody hangs. So one that waits for all of it
	// is told from one that does not, also on a machine that has other things to do.
	interval = 5 * time.Second
	// patient is for where nobody hangs: no second broker is asked because the first one is slow.
	patient = 2 * time.Minute
)

// A round costs as many requests as there are brokers that lead and keep, however many groups there are.
func TestRequestsOfARound(t *testing.T) {
	for _, tt := range []struct {
		name   string
		oldest bool
		first  map[string]int
		later  map[string]int
	}{
		{
			name:  "many groups at once",
			first: map[string]int{"Metadata": 1, "FindCoordinator": 1, "OffsetFetch": 1, "ListOffsets": 4}, // the starts of logs too
			later: map[string]int{"OffsetFetch": 1, "ListOffsets": 2},
		},
		{
			name: "brokers before Kafka 3.0", oldest: true,
			first: map[string]int{"Metadata": 1, "FindCoordinator": 50, "OffsetFetch": 50, "ListOffsets": 4},
			later: map[string]int{"OffsetFetch": 50, "ListOffsets": 2},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, 2)
			f.oldest = tt.oldest
			p := f.poller(patient)
			var subs []subscription
			for i := range 50 {
				topic := fmt.Sprintf("t%02d", i%20)
				f.topics[topic] = 12
				subs = append(subs, sub(fmt.Sprintf("g%02d", i), topic))
			}
			for round, want := range []map[string]int{tt.first, tt.later, tt.later} {
				for name, r := range next(t, p, subs...) {
					if r.Err != "" {
						t.Fatalf("%s: %s", name, r.Err)
					}
				}
				if diff := cmp.Diff(want, f.counted()); diff != "" {
					t.Errorf("round %d, requests (-want +got):\n%s", round, diff)
				}
			}
			if n := f.open(); n != 2 {
				t.Errorf("%d connections to 2 brokers", n)
			}
		})
	}
}

// Those who come within a moment have a round together.
func TestRoundGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoller(&Options{Interval: interval}, []string{"127.0.0.1:9092"}, security{}, nil) // which nobody allows
		defer p.close()
		began := time.Now()
		for _, tt := range []struct{ comes, round time.Duration }{
			{0, gather}, {gather - time.Millisecond, gather}, {gather + time.Millisecond, 2*gather + time.Millisecond},
		} {
			go func() {
				<-time.After(tt.comes)
				ctx, cancel := context.WithTimeout(t.Context(), interval)
				defer cancel()
				_, at, err := p.measure(ctx, sub(tt.comes.String(), "orders"))
				if got := at.Sub(began); err == nil || got != tt.round {
					t.Errorf("who came after %s was told of the round after %s, %v; want that after %s, which failed", tt.comes, got, err, tt.round)
				}
			}()
		}
		<-time.After(4 * gather)
		synctest.Wait()
	})
}

// What an answer leaves out is unknown, and so is what it does not allow; and the rest is not.
func TestAnswersThatLeaveOut(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(protocol.Message)
		want map[string]result
	}{
		{
			name: "a partition's committed offset",
			edit: func(m protocol.Message) {
				if a, ok := m.(*offsetFetchResponse); ok {
					a.Groups[0].Topics[0].Partitions = a.Groups[0].Topics[0].Partitions[:1]
				}
			},
			want: map[string]result{"g orders": {Err: `committed offset of group "g" of topic "orders", partition 1: the coordinator said nothing of it`}},
		},
		{
			name: "a group",
			edit: func(m protocol.Message) {
				if a, ok := m.(*offsetFetchResponse); ok {
					a.Groups[0].GroupID = "another"
				}
			},
			want: map[string]result{"g orders": {Err: `offsets of group "g": the coordinator said nothing of it`}},
		},
		{
			name: "a coordinator",
			edit: func(m protocol.Message) {
				if a, ok := m.(*findCoordinatorResponse); ok {
					a.Coordinators = nil
				}
			},
			want: map[string]result{"g orders": {Err: `coordinator of group "g": nothing was said of it`}},
		},
		{
			name: "a coordinator's address",
			edit: func(m protocol.Message) {
				if a, ok := m.(*findCoordinatorResponse); ok {
					a.Coordinators[0].Host = ""
				}
			},
			want: map[string]result{"g orders": {Err: `coordinator of group "g": broker 0 advertises no usable address`}},
		},
		{
			name: "nothing, and has too many brokers",
			edit: func(m protocol.Message) {
				if a, ok := m.(*metadataResponse); ok {
					a.Brokers = make([]metadataBroker, maxBrokers+1)
				}
			},
			want: map[string]result{"g orders": {Err: `metadata of the cluster: invalid answer: not an answer of a Kafka broker: 1001 brokers and 2 partitions`}},
		},
		{
			name: "an end",
			edit: func(m protocol.Message) {
				if a, ok := m.(*listOffsetsResponse); ok {
					a.Topics[0].Partitions = a.Topics[0].Partitions[1:]
				}
			},
			want: map[string]result{"g orders": {Err: `offsets of topic "orders", partition 0: its leader said nothing of it`}},
		},
		{
			name: "a topic",
			edit: func(m protocol.Message) {
				if a, ok := m.(*metadataResponse); ok {
					a.Topics = nil
				}
			},
			want: map[string]result{"g orders": {Err: `topic "orders": the cluster said nothing of it`}},
		},
		{
			name: "what was asked for, among more than there is room for",
			edit: func(m protocol.Message) {
				if a, ok := m.(*listOffsetsResponse); ok {
					a.Topics = append(a.Topics, listOffsetsAnswers{Topic: "other", Partitions: make([]listOffsetsAnswer, 10_000)})
				}
			},
			want: map[string]result{"g orders": {Err: `offsets of topic "orders", partition 0: broker `}},
		},
		{
			name: "partitions that nobody asked for",
			edit: func(m protocol.Message) {
				if a, ok := m.(*listOffsetsResponse); ok {
					a.Topics = append(a.Topics, listOffsetsAnswers{Topic: "other", Partitions: []listOffsetsAnswer{{Partition: 70000}, {Partition: -1}}},
						listOffsetsAnswers{Topic: "orders", Partitions: []listOffsetsAnswer{{Partition: 70000}, {Partition: -1}}})
				}
			},
			want: map[string]result{"g orders": {Lag: 9}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, 1)
			f.topics["orders"] = 2
			f.ends[partition{"orders", 0}], f.ends[partition{"orders", 1}] = 4, 5
			f.edit = func(_ int, m protocol.Message) { tt.edit(m) }
			p := f.poller(patient)
			got := next(t, p, sub("g", "orders"))
			for name, r := range got {
				if want := tt.want[name]; r.Lag != want.Lag || !strings.HasPrefix(r.Err, want.Err) || (r.Err == "") != (want.Err == "") {
					t.Errorf("got %+v\nwant %+v", r, want)
				}
			}
			f.with(func() { f.edit = nil })
			next(t, p, sub("g", "orders"))
			if diff := cmp.Diff(map[string]result{"g orders": {Lag: 9}}, next(t, p, sub("g", "orders"))); diff != "" {
				t.Errorf("afterwards, -want +got\n%s", diff)
			}
		})
	}
}

// A topic or a group that may not be read is unknown, and costs nobody else anything.
func TestWhatMayNotBeRead(t *testing.T) {
	f := newFake(t, 1)
	f.topics = map[string]int{"orders": 1, "secret": 1}
	f.ends[partition{"orders", 0}] = 4
	f.edit = func(_ int, m protocol.Message) {
		a, ok := m.(*offsetFetchResponse)
		if !ok {
			return
		}
		for i := range a.Groups {
			if a.Groups[i].GroupID == "forbidden" {
				a.Groups[i].ErrorCode, a.Groups[i].Topics = int16(kafka.GroupAuthorizationFailed), nil
			}
			for j := range a.Groups[i].Topics {
				if topic := &a.Groups[i].Topics[j]; topic.Name == "secret" {
					topic.Partitions[0].ErrorCode = int16(kafka.TopicAuthorizationFailed)
				}
			}
		}
	}
	p := f.poller(patient)
	subs := []subscription{sub("g", "orders"), sub("g", "secret"), sub("forbidden", "orders"), sub("h", "orders"), sub("g", "missing")}
	for round := range 2 {
		got := next(t, p, subs...)
		for name, reason := range map[string]string{
			"g secret": "[29] Topic Authorization Failed", "forbidden orders": "[30] Group Authorization Failed", "g missing": "[3] Unknown Topic",
		} {
			if !strings.Contains(got[name].Err, reason) {
				t.Errorf("%s: %+v, want %s", name, got[name], reason)
			}
		}
		if got["g orders"] != (result{Lag: 4}) || got["h orders"] != (result{Lag: 4}) {
			t.Errorf("beside them: %+v", got)
		}
		if requests := f.counted(); round > 0 && !cmp.Equal(requests, map[string]int{"OffsetFetch": 1, "ListOffsets": 1}) {
			t.Errorf("requests of a round: %v", requests)
		}
	}
}

// A topic that is not there is looked for every 5 s, without asking about those that are.
func TestATopicThatIsCreated(t *testing.T) {
	f := newFake(t, 1)
	f.topics["orders"] = 1
	p := f.poller(patient)
	subs := []subscription{sub("g", "orders"), sub("g", "later")}
	measureAll(t, p, subs...)
	f.with(func() { f.topics["later"], f.ends[partition{"later", 0}] = 1, 3 })
	f.counted()
	aged := func(d time.Duration) {
		layout := p.brokers.topics["later"]
		layout.read = time.Now().Add(-d)
		p.brokers.topics["later"] = layout
	}
	aged(missingTTL / 2)
	next(t, p, subs...)
	if got := f.counted()["Metadata"]; got != 0 {
		t.Errorf("%d requests for metadata within %s", got, missingTTL)
	}
	aged(missingTTL)
	read := p.brokers.read
	if diff := cmp.Diff(map[string]result{"g orders": {}, "g later": {Lag: 3}}, next(t, p, subs...)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got := f.counted()["Metadata"]; got != 1 || p.brokers.read != read {
		t.Errorf("%d requests for metadata, of all topics: %v", got, p.brokers.read != read)
	}
}

// A leader that is stopped says nothing of the cluster; another one asks.
func TestALeaderThatIsStopped(t *testing.T) {
	f := newFake(t, 1)
	f.topics["orders"] = 1
	f.ends[partition{"orders", 0}] = 4
	p := f.poller(patient)
	f.hang(0, true)
	ctx, stop := context.WithCancel(t.Context())
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	leader := make(chan error, 1)
	go func() {
		_, _, err := p.measure(ctx, sub("leader", "orders"))
		leader <- err
	}()
	eventually(t, "the leader has not asked", func() (asked bool) {
		f.with(func() { asked = f.requests[protocol.ApiVersions] > 0 })
		return asked
	})
	follower := make(chan map[string]result, 1)
	go func() { follower <- measureAll(t, p, sub("follower", "orders")) }()
	eventually(t, "the follower does not wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.subs[sub("follower", "orders")] != nil
	})
	stop()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("the leader: %v", err)
	}
	f.hang(0, false)
	if diff := cmp.Diff(map[string]result{"follower orders": {Lag: 4}}, <-follower); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// What nobody asks about any more is not asked for, and then forgotten.
func TestForgets(t *testing.T) {
	f := newFake(t, 1)
	f.topics = map[string]int{"orders": 1, "old": 1}
	p := f.poller(patient)
	old := sub("old", "old")
	measureAll(t, p, old, sub("g", "orders"))
	p.subs[old].asked = time.Now().Add(-4 * patient)
	p.brokers.stale = true
	next(t, p, sub("g", "orders"))
	if len(p.brokers.coordinators) != 1 || len(p.brokers.topics) != 1 || len(p.brokers.starts) != 1 {
		t.Errorf("coordinators %v, topics %v, starts %v", p.brokers.coordinators, p.brokers.topics, p.brokers.starts)
	}
	if p.subs[old] == nil {
		t.Error("it is forgotten where a group stood after some rounds")
	}
	p.subs[old].asked = time.Now().Add(-2 * forgetAfter)
	next(t, p, sub("g", "orders"))
	if len(p.subs) != 1 {
		t.Errorf("%d subscriptions", len(p.subs))
	}
	p.close()
	eventually(t, "connections are left", func() bool { return f.open() == 0 })
}

// A group without a commit has as much to read after its credentials were rotated as before.
func TestRotationKeepsWhereAGroupStood(t *testing.T) {
	f := newFake(t, 1)
	f.topics["orders"] = 1
	f.ends[partition{"orders", 0}] = 10
	secret := func(note string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kafka"},
			Data:       map[string][]byte{"sasl": []byte("none"), "note": []byte(note)},
		}
	}
	client := fake.NewClientset(secret("old"))
	s, err := New(Options{Secrets: providers.NewSecrets(providers.SecretsOptions{Client: client.CoreV1(), TTL: 1}), Interval: patient, Allow: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	measure := func() float64 {
		t.Helper()
		for _, c := range s.clusters { // that nothing is answered by the round before
			for _, sub := range c.subs {
				sub.at = time.Time{}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), patient*8/10)
		defer cancel()
		got, err := s.Measure(ctx, providers.Target{
			Kind: providers.Lag, Function: types.NamespacedName{Namespace: "default", Name: "hello"}, Consumer: providers.Consumer{
				Servers: strings.Join(f.addresses(), ","), Group: "g", Topics: "orders", Reset: v1alpha1.KafkaLatest, AuthSecret: "kafka",
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return got.Answers[0].Value
	}
	if got := measure(); got != 0 {
		t.Errorf("lag %v, want 0", got)
	}
	f.with(func() { f.ends[partition{"orders", 0}] = 13 })
	if got := measure(); got != 3 {
		t.Errorf("lag %v, want 3", got)
	}
	if _, err := client.CoreV1().Secrets("default").Update(t.Context(), secret("new"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := measure(); got != 3 {
		t.Errorf("lag %v after a rotation, want 3", got)
	}
}

func TestBearable(t *testing.T) {
	for challenge, want := range map[string]bool{
		"r=abc,s=c2FsdA==,i=4096": true, "r=abc,s=c2FsdA==,i=16384": true, "v=dGhlIGVuZA==": true, "": true,
		"r=abc,s=c2FsdA==,i=16385": false, "r=abc,s=c2FsdA==,i=2147483647": false, "i=99999999999999999999": false,
	} {
		if err := bearable([]byte(challenge)); (err == nil) != want {
			t.Errorf("%q: %v", challenge, err)
		}
	}
}

// That a topic is another one is known by its ID, which is asked for when commits have gone.
func TestTopicMadeAnew(t *testing.T) {
	f := newFake(t, 2)
	f.topics["orders"], f.ids["orders"] = 2, 7
	first, second := partition{"orders", 0}, partition{"orders", 1}
	f.ends[first], f.ends[second] = 10, 10
	f.commits["readers"] = map[partition]int64{first: 8, second: 8}
	p := f.poller(patient)
	onlookers := sub("onlookers", "orders")
	onlookers.reset = v1alpha1.KafkaLatest
	readers := sub("readers", "orders")
	want := map[string]result{"readers orders": {Lag: 4}, "onlookers orders": {Lag: 0}}
	if diff := cmp.Diff(want, measureAll(t, p, readers, onlookers)); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
	f.with(func() {
		f.ids["orders"] = 8
		f.ends[first], f.ends[second] = 30, 30
		delete(f.commits, "readers")
	})
	f.counted()
	if got := next(t, p, readers)["readers orders"]; !strings.Contains(got.Err, "what was committed in it, is gone") {
		t.Errorf("the first look: %+v, want unknown", got)
	}
	want = map[string]result{"readers orders": {Lag: 60}, "onlookers orders": {Lag: 0}}
	for range 2 {
		if diff := cmp.Diff(want, next(t, p, readers, onlookers)); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
	if n := f.counted()["Metadata"]; n != 1 {
		t.Errorf("metadata was read %d times, want once", n)
	}
	f.with(func() { f.ends[first] = 33 })
	if got := next(t, p, onlookers)["onlookers orders"]; got.Lag != 3 {
		t.Errorf("then 3 records came: %+v", got)
	}
}
