package kafka

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/protocol"
)

// What one broker leads or keeps is unknown while it hangs, and nothing else is; when it goes on, so does all.
func TestABrokerThatHangs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		hangs   int
		fresh   bool // nobody was connected before
		unknown map[string]string
	}{
		{name: "a leader", hangs: 1, unknown: map[string]string{"all orders": `topic "orders", partition 1`}},
		{name: "a coordinator", hangs: 2, unknown: map[string]string{"all orders": `topic "orders", partition 2`, "kept alone": `group "kept"`}},
		{name: "who is asked first", hangs: 0, fresh: true, unknown: map[string]string{
			"all orders": "", "kept alone": "", "one alone": "", // partition 0 is led by it, or the groups are kept
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 3)
			f.topics = map[string]int{"orders": 3, "alone": 1}
			f.ends[partition{"orders", 1}], f.ends[partition{"alone", 0}] = 5, 7
			f.keepers["kept"] = 2
			p := f.poller(interval)
			subs := []subscription{sub("all", "orders"), sub("kept", "alone"), sub("one", "alone")}
			known := map[string]result{"all orders": {Lag: 5}, "kept alone": {Lag: 7}, "one alone": {Lag: 7}}
			if !tt.fresh {
				if diff := cmp.Diff(known, measureAll(t, p, subs...)); diff != "" {
					t.Fatalf("-want +got\n%s", diff)
				}
			}
			f.hang(tt.hangs, true)
			for range 2 { // over a connection that there was, and then over a new one
				began := time.Now()
				got := next(t, p, subs...)
				if took := time.Since(began); took >= interval*8/10 {
					t.Errorf("it took %s, all of the time", took)
				}
				for name, r := range got {
					reason, unknown := tt.unknown[name]
					switch {
					case !unknown && r != known[name]:
						t.Errorf("%s: %+v, want %+v", name, r, known[name])
					case unknown && (r.Err == "" || !strings.Contains(r.Err, reason)):
						t.Errorf("%s: %+v, want unknown for %s", name, r, reason)
					}
				}
			}
			f.hang(tt.hangs, false)
			next(t, p, subs...) // who leads is read anew
			if diff := cmp.Diff(known, next(t, p, subs...)); diff != "" {
				t.Errorf("afterwards, -want +got\n%s", diff)
			}
		})
	}
}

// A bootstrap server that hangs, of several, costs a part of the first round.
func TestABootstrapServerThatHangs(t *testing.T) {
	t.Parallel()
	f := newFake(t, 4)
	f.topics = map[string]int{"orders": 1}
	f.keepers["g"] = 1
	f.edit = func(_ int, answer protocol.Message) { // broker 0 leads nothing
		if m, ok := answer.(*metadataResponse); ok {
			for i := range m.Topics[0].Partitions {
				m.Topics[0].Partitions[i].LeaderID = 1
			}
		}
	}
	f.hang(0, true)
	f.hang(2, true)
	f.hang(3, true)
	p := f.poller(interval, f.addresses()[0], f.addresses()[2], f.addresses()[3], f.addresses()[1])
	for range 2 {
		if diff := cmp.Diff(map[string]result{"g orders": {}}, next(t, p, sub("g", "orders"))); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
	}
}

// Of many servers of which none answers, some are told of, on one line.
func TestServersThatAreAway(t *testing.T) {
	f := newFake(t, 16)
	for _, b := range f.brokers {
		_ = b.ln.Close()
	}
	got := next(t, f.poller(patient), sub("g", "orders"))["g orders"].Err
	for _, want := range []string{"metadata of the cluster: broker " + f.addresses()[0] + ": ", "connection refused; broker ", "; and 13 more"} {
		if !strings.Contains(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if strings.Contains(got, "\n") || strings.Contains(got, f.addresses()[15]) {
		t.Errorf("it is of several lines, or tells of all: %s", got)
	}
}

// Two thousand groups that are new are found and asked in one round, although the network is slow.
func TestManyGroupsOnASlowNetwork(t *testing.T) {
	f, subs := manyGroups(t, 2000)
	f.delay = 2 * time.Millisecond
	if known := knownOf(next(t, f.poller(patient), subs...)); known != len(subs) {
		t.Errorf("%d of %d groups are known", known, len(subs))
	}
}

// Where brokers tell of one group at a time, not all are found in a round. Looking for them leaves time for asking those that
// are found.
func TestFindingLeavesTimeForAsking(t *testing.T) {
	t.Parallel()
	f, subs := manyGroups(t, 800)
	f.oldest, f.delay = true, 5*time.Millisecond // 4 s to find all, of 3.5 s that a round has
	if known := knownOf(next(t, f.poller(interval), subs...)); known == 0 || known == len(subs) {
		t.Errorf("%d of %d groups are known", known, len(subs))
	}
}

func manyGroups(t *testing.T, n int) (*fakeCluster, []subscription) {
	t.Helper()
	f := newFake(t, 1)
	f.topics["orders"] = 1
	subs := make([]subscription, n)
	for i := range subs {
		subs[i] = sub(fmt.Sprint("g", i), "orders")
	}
	return f, subs
}

func knownOf(all map[string]result) (known int) {
	for _, r := range all {
		if r.Err == "" {
			known++
		}
	}
	return known
}
