//go:build integration

package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

var state = flag.String("state", "", "state directory, below which the jars are kept")

// start starts a cluster that ends with the test, which sees to it that no process is left.
func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	if *state == "" {
		t.Fatal("run these with `make integration`: the flag -state is missing")
	}
	var err error
	if o.ClassPath, err = Find(t.Context(), filepath.Join(*state, "kafka")); err != nil {
		t.Fatal(err)
	}
	o.Dir = t.TempDir()
	began := time.Now()
	c, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d brokers were ready after %v", len(c.Brokers), time.Since(began).Round(10*time.Millisecond))
	t.Cleanup(func() {
		c.Stop()
		for _, b := range c.Brokers {
			if err := syscall.Kill(b.PID(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("broker %d is still there: %v", b.ID, err)
			}
		}
	})
	return c
}

func connect(t *testing.T, c *Cluster, options ...kgo.Opt) *Client {
	t.Helper()
	client, err := c.Connect(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lagOf(t *testing.T, c *Cluster, group string) map[Partition]Described {
	t.Helper()
	lag, err := c.Lag(t.Context(), group)
	must(t, err)
	return lag
}

// One broker, through a day of an operator's: what the tool says, what the client says, and what was done agree.
func TestOneBroker(t *testing.T) {
	c := start(t, Options{})
	client := connect(t, c)
	ctx := within(t, 3*time.Minute)

	must(t, client.CreateTopic(ctx, "orders", 12))
	want := map[Partition]Described{}
	for i := range 100 { // 8 or 9 to each partition
		must(t, client.Produce(ctx, "orders", int32(i%12), 1))
		p := Partition{"orders", int32(i % 12)}
		d := want[p]
		want[p] = Described{Committed: None, End: d.End + 1, Lag: None}
	}
	offsets := map[Partition]int64{}
	for p, d := range want {
		if p.Partition < 6 {
			offsets[p] = int64(p.Partition)
			want[p] = Described{Committed: offsets[p], End: d.End, Lag: d.End - offsets[p]}
		} else {
			delete(want, p) // the tool does not name what a group without members never committed
		}
	}
	must(t, client.Commit(ctx, "hello", offsets))
	if diff := cmp.Diff(want, lagOf(t, c, "hello")); diff != "" {
		t.Errorf("the tool, -want +got\n%s", diff)
	}
	groups, err := client.Admin.Lag(ctx, "hello")
	must(t, err)
	for _, l := range groups["hello"].Lag.Sorted() {
		if w, ok := want[Partition{l.Topic, l.Partition}]; ok && (l.Commit.At != w.Committed || l.Lag != w.Lag) {
			t.Errorf("kadm says committed %d, lag %d of partition %d; want %+v", l.Commit.At, l.Lag, l.Partition, w)
		}
	}

	t.Run("offsets", func(t *testing.T) { offsetsOf(t, c, client) })
	t.Run("group.protocol=consumer", func(t *testing.T) { consumers(t, c, client) })
	t.Run("topics that change", func(t *testing.T) {
		must(t, client.AddPartitions(ctx, "orders", 13))
		must(t, client.Produce(ctx, "orders", 12, 1))
		must(t, client.DeleteTopic(ctx, "orders"))
		must(t, client.CreateTopic(ctx, "orders", 1))
		must(t, client.Produce(ctx, "orders", 0, 3))
	})
	t.Run("paused, stopped, killed", func(t *testing.T) { ends(t, c, client) })
}

// offsetsOf sees which offsets transactions and retention leave.
func offsetsOf(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "payments", 1))
	p := Partition{"payments", 0}
	check := func(when string, start, stable, end int64) {
		t.Helper()
		starts, err1 := client.Admin.ListStartOffsets(ctx, p.Topic)
		stables, err2 := client.Admin.ListCommittedOffsets(ctx, p.Topic)
		ends, err3 := client.Admin.ListEndOffsets(ctx, p.Topic)
		must(t, errors.Join(err1, err2, err3))
		got := []int64{starts[p.Topic][0].Offset, stables[p.Topic][0].Offset, ends[p.Topic][0].Offset}
		if diff := cmp.Diff([]int64{start, stable, end}, got); diff != "" {
			t.Errorf("%s: start, last stable and end offset, -want +got\n%s", when, diff)
		}
	}
	for _, tt := range []struct {
		commit bool
		end    int64
	}{{commit: true, end: 6}, {commit: false, end: 12}} {
		open, err := client.Begin(ctx, "t", p.Topic, 0, 5)
		must(t, err)
		check("open", 0, tt.end-6, tt.end-1)
		must(t, open.End(ctx, tt.commit))
		check("ended", 0, tt.end, tt.end)
	}
	must(t, client.DeleteRecordsBefore(ctx, p, 4))
	check("after retention", 4, 12, 12)
	// Offset 4 is the first that is left, 5 and 11 are markers, and 6 to 10 were aborted.
	must(t, client.Consume(ctx, "readers", p.Topic, 1, kgo.FetchIsolationLevel(kgo.ReadCommitted())))
	if diff := cmp.Diff(map[Partition]Described{p: {Committed: 5, End: 12, Lag: 7}}, lagOf(t, c, "readers")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// consumers sees a group that speaks KIP-848 consume.
func consumers(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, time.Minute)
	must(t, client.CreateTopic(ctx, "events", 2))
	must(t, client.Produce(ctx, "events", 0, 7))
	member, err := client.Join("new", "events", newProtocol()...)
	must(t, err)
	defer member.Close()
	for read := 0; read < 7; {
		got := member.PollRecords(ctx, 7)
		must(t, got.Err())
		must(t, member.CommitRecords(ctx, got.Records()...))
		read += got.NumRecords()
	}
	if got := lagOf(t, c, "new")[Partition{"events", 0}]; got.Committed != 7 || got.Lag != 0 || got.Member == "" {
		t.Errorf("got %+v, want 7 records read by a member", got)
	}
	groups, err := client.Admin.ListGroupsByType(ctx, []string{"consumer"})
	must(t, err)
	if got := groups.Groups(); !slices.Equal(got, []string{"new"}) {
		t.Errorf("groups of type consumer: %q", got)
	}
}

// ends ends the broker in every way, and starts it again.
func ends(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, 2*time.Minute)
	broker := c.Brokers[0]
	broker.Pause()
	silent, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err := client.Admin.ListEndOffsets(silent, "events"); err == nil {
		t.Error("a paused broker answers")
	}
	broker.Resume()
	must(t, c.Ready(ctx))
	before := lagOf(t, c, "new")
	for _, tt := range []struct {
		name string
		end  func()
	}{{"stopped", broker.Stop}, {"killed", broker.Kill}} {
		name, pid := tt.name, broker.PID()
		tt.end()
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s, and still there: %v", name, err)
		}
		began := time.Now()
		must(t, broker.Start(context.Background()))
		t.Logf("%s, ready again after %v", name, time.Since(began).Round(10*time.Millisecond))
		if err := broker.Start(ctx); err == nil {
			t.Error("a broker that runs was started")
		}
		ends, err := client.Admin.ListEndOffsets(ctx, "events")
		must(t, errors.Join(err, ends.Error()))
		if got := ends["events"][0].Offset; got != 7 {
			t.Errorf("%s: end offset %d, want 7", name, got)
		}
	}
	committed, err := client.Admin.FetchOffsets(ctx, "new")
	must(t, errors.Join(err, committed.Error()))
	if at, _ := committed.Lookup("events", 0); at.At != before[Partition{"events", 0}].Committed {
		t.Errorf("committed %d, %d before", at.At, before[Partition{"events", 0}].Committed)
	}
}

// Three brokers, of which one hangs, comes back, is killed, comes back, and another is killed; and what is known of lag meanwhile.
func TestThreeBrokers(t *testing.T) {
	c := start(t, Options{Brokers: 3})
	client := connect(t, c)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *Cluster, *Client)
	}{
		{"requests", requests},
		{"addresses that are refused", refused},
		{"leaders and coordinators move under load", leadersMove},
		{"one hangs", oneHangs},
		{"one is killed, and starts", killedAndStarted},
		{"one is killed under load", oneIsKilled},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, c, client) })
	}
}

// killedAndStarted: of the broker that leads a partition and keeps a group. Another leads, another keeps.
func killedAndStarted(t *testing.T, c *Cluster, client *Client) {
	ctx := within(t, 3*time.Minute)
	must(t, client.CreateTopic(ctx, "orders", 3))
	for p := range int32(3) {
		must(t, client.Produce(ctx, "orders", p, 4))
	}
	p := Partition{"orders", 0}
	must(t, client.Commit(ctx, "hello", map[Partition]int64{p: 1}))
	leader, err := client.Leader(ctx, p)
	must(t, err)
	c.Brokers[leader-1].Kill()
	began := time.Now()
	must(t, poll(ctx, func() error {
		now, err := client.Leader(ctx, p)
		if err == nil && now == leader {
			err = fmt.Errorf("broker %d still leads", leader)
		}
		return err
	}))
	t.Logf("another leads after %v", time.Since(began).Round(10*time.Millisecond))
	must(t, poll(ctx, func() error {
		committed, err := client.Admin.FetchOffsets(ctx, "hello")
		at, _ := committed.Lookup("orders", 0)
		if err := errors.Join(err, committed.Error()); err != nil || at.At != 1 {
			return fmt.Errorf("committed %d: %w", at.At, err)
		}
		return nil
	}))
	now, err := client.Coordinator(ctx, "hello")
	must(t, err)
	if now == leader {
		t.Errorf("broker %d was killed and keeps the group", now)
	}
	if got, want := lagOf(t, c, "hello")[p], (Described{Committed: 1, End: 4, Lag: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	must(t, c.Brokers[leader-1].Start(context.Background()))
	must(t, c.Ready(ctx))
}

// Each listener lets in whom it is to let in.
func TestListeners(t *testing.T) {
	authority, err := NewAuthority()
	must(t, err)
	cert, key, err := authority.Leaf("broker", "127.0.0.1")
	must(t, err)
	c := start(t, Options{
		TLS:   &TLS{Cert: cert, Key: key, ClientCA: authority.PEM},
		Users: []User{{Name: "alice", Password: "open-sesame"}},
	})
	cert, key, err = authority.Leaf("client")
	must(t, err)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority.PEM))
	trust, mutual := &tls.Config{RootCAs: roots}, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	right, wrong := scram.Auth{User: "alice", Pass: "open-sesame"}, scram.Auth{User: "alice", Pass: "close-sesame"}

	for _, tt := range []struct {
		name     string
		listener Listener
		tls      *tls.Config
		sasl     sasl.Mechanism
		wantErr  string
	}{
		{name: "plaintext", listener: PlaintextListener},
		{name: "client certificate", listener: TLSListener, tls: mutual},
		{name: "no client certificate", listener: TLSListener, tls: trust, wantErr: "remote error: tls: "},
		{name: "unknown authority", listener: SASLListener, tls: &tls.Config{}, sasl: right.AsSha256Mechanism(), wantErr: "x509: "},
		{name: "SCRAM-SHA-256", listener: SASLListener, tls: trust, sasl: right.AsSha256Mechanism()},
		{name: "SCRAM-SHA-512", listener: SASLListener, tls: trust, sasl: right.AsSha512Mechanism()},
		{name: "wrong password", listener: SASLListener, tls: trust, sasl: wrong.AsSha512Mechanism(), wantErr: "SASL_AUTHENTICATION_FAILED"},
		{name: "PLAIN", listener: SASLListener, tls: trust, sasl: plain.Auth{User: "alice", Pass: "open-sesame"}.AsMechanism()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			options := []kgo.Opt{kgo.SeedBrokers(c.Addresses(tt.listener)...), kgo.RequestRetries(0)}
			if tt.tls != nil {
				options = append(options, kgo.DialTLSConfig(tt.tls))
			}
			if tt.sasl != nil {
				options = append(options, kgo.SASL(tt.sasl))
			}
			client := connect(t, c, options...)
			brokers, err := client.Admin.ListBrokers(within(t, 10*time.Second))
			switch {
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("got  %v\nwant %s", err, tt.wantErr)
			case tt.wantErr == "" && (err != nil || len(brokers) != 1):
				t.Errorf("got %v, %v, want one broker", brokers, err)
			case tt.wantErr == "":
				advertised(t, brokers, c.Addresses(tt.listener)[0])
			}
		})
	}
	sideBySide(t, c, authority)
}

func advertised(t *testing.T, brokers kadm.BrokerDetails, address string) {
	t.Helper()
	if got := net.JoinHostPort(brokers[0].Host, fmt.Sprint(brokers[0].Port)); got != address {
		t.Errorf("it advertises %s, want %s", got, address)
	}
}
