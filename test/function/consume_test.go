package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fakeMember hands out one batch and writes down what is asked of it.
type fakeMember struct {
	fetch                 kgo.FetchPartition
	produceErr, commitErr error
	calls                 []string
}

func (m *fakeMember) PollRecords(_ context.Context, n int) kgo.Fetches {
	m.calls = append(m.calls, fmt.Sprintf("poll %d", n))
	return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "orders", Partitions: []kgo.FetchPartition{m.fetch}}}}}
}

func (m *fakeMember) AllowRebalance() { m.calls = append(m.calls, "allow rebalance") }

func (m *fakeMember) ProduceSync(_ context.Context, records ...*kgo.Record) kgo.ProduceResults {
	m.calls = append(m.calls, "produce "+keys(records))
	return kgo.ProduceResults{{Err: m.produceErr}}
}

func (m *fakeMember) CommitRecords(_ context.Context, records ...*kgo.Record) error {
	m.calls = append(m.calls, "commit "+keys(records))
	return m.commitErr
}

func keys(records []*kgo.Record) string {
	var all []string
	for _, r := range records {
		all = append(all, string(r.Key))
	}
	return strings.Join(all, " ")
}

// A record counts as done after the work on it, its key is written before the commit, and others get the partition only
// afterwards.
func TestConsumeBatch(t *testing.T) {
	const delay = 100 * time.Millisecond
	away := errors.New("the broker is away")
	tests := []struct {
		name       string
		end, kill  time.Duration // when ctx ends, and alive; 0 is never
		without    bool          // without a topic for keys
		records    []string
		fetchErr   error
		produceErr error
		commitErr  error
		want       []string
		wantCount  int
		wantTook   time.Duration
		wantErr    string
	}{
		{
			name: "all is done", records: []string{"a", "b", "c"},
			want: []string{"poll 10", "produce a b c", "commit a b c", "allow rebalance"}, wantCount: 3, wantTook: 3 * delay,
		},
		{
			name: "no topic for keys", records: []string{"a"}, without: true,
			want: []string{"poll 10", "commit a", "allow rebalance"}, wantCount: 1, wantTook: delay,
		},
		{
			name: "the end comes during the second record", records: []string{"a", "b", "c"}, end: delay * 3 / 2,
			want: []string{"poll 10", "produce a b", "commit a b", "allow rebalance"}, wantCount: 2, wantTook: 2 * delay,
		},
		{
			name: "a record takes longer than there is time after the end", records: []string{"a", "b"}, end: delay * 5 / 4, kill: delay * 3 / 2,
			want: []string{"poll 10", "produce a", "commit a", "allow rebalance"}, wantCount: 1, wantTook: delay * 3 / 2,
		},
		{
			name: "what is not told is not committed", records: []string{"a", "b"}, produceErr: away,
			want: []string{"poll 10", "produce a b", "allow rebalance"}, wantCount: 2, wantTook: 2 * delay,
			wantErr: `write 2 keys to topic "done": the broker is away`,
		},
		{
			name: "the commit fails", records: []string{"a"}, commitErr: away,
			want: []string{"poll 10", "produce a", "commit a", "allow rebalance"}, wantCount: 1, wantTook: delay,
		},
		{
			name: "the poll fails", fetchErr: away,
			want: []string{"poll 10", "allow rebalance"}, wantTook: batchTime,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, alive := endAfter(t, tt.end), endAfter(t, tt.kill)
				opts := KafkaOptions{Servers: "kafka:9092", Topic: "orders", Group: "hello", Delay: delay, Done: "done"}
				if tt.without {
					opts.Done = ""
				}
				m := &fakeMember{fetch: kgo.FetchPartition{Err: tt.fetchErr}, produceErr: tt.produceErr, commitErr: tt.commitErr}
				for _, key := range tt.records {
					m.fetch.Records = append(m.fetch.Records, &kgo.Record{Key: []byte(key)})
				}
				f, began := newFunction(Options{Kafka: opts}), time.Now()
				err := f.consumeBatch(ctx, alive, m)
				if got := fmt.Sprint(err); (err != nil || tt.wantErr != "") && got != tt.wantErr {
					t.Errorf("error %s, want %s", got, tt.wantErr)
				}
				if diff := cmp.Diff(tt.want, m.calls); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if took := time.Since(began); took != tt.wantTook {
					t.Errorf("took %s, want %s", took, tt.wantTook)
				}
				if got := testutil.ToFloat64(f.records); got != float64(tt.wantCount) {
					t.Errorf("function_records_total is %v, want %d", got, tt.wantCount)
				}
				if got := f.recordIDs.report(); got.Distinct != tt.wantCount {
					t.Errorf("/records says %+v, want %d", got, tt.wantCount)
				}
			})
		})
	}
}

// endAfter is a context that ends after d, or with the test.
func endAfter(t *testing.T, d time.Duration) context.Context {
	if d == 0 {
		return t.Context()
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// However long a record takes, a group does not wait for its member for longer than that, or a second.
func TestBatch(t *testing.T) {
	for delay, want := range map[time.Duration]int{0: 500, time.Microsecond: 500, 50 * time.Millisecond: 20, time.Second: 1, time.Minute: 1} {
		if got := (KafkaOptions{Delay: delay}).batch(); got != want {
			t.Errorf("batch of records that take %s = %d, want %d", delay, got, want)
		}
	}
}

// Nobody is at the address of the broker: the function answers calls, and ends when it is told to.
func TestRunWithoutBroker(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	ctx, terminate := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, ln, Options{
			Name: "p1", Drain: 10 * time.Second, // for a connection that is being closed
			Kafka: KafkaOptions{Servers: nobody.Addr().String(), Topic: "orders", Group: "hello"},
		})
	}()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if _, text := do(t, c, "http://"+ln.Addr().String()+"/metrics", "GET", ""); !strings.Contains(text, "function_records_total 0\n") {
		t.Errorf("/metrics lacks function_records_total in\n%s", text)
	}
	terminate()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Run does not end")
	}
}
