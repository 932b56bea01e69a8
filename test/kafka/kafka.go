// Package kafka runs a real Apache Kafka for tests: it fetches the jars, runs one or several brokers as processes, stops,
// kills and pauses them, asks Kafka's own tools, and has a client that is not the one under test. Brokers are controllers
// too (KRaft) and have data of their own. Nothing is installed but, as root on Debian, Java and Maven where they are missing.
package kafka

import (
	"context"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/test/port"
)

// startTimeout bounds how long brokers may take until they are ready. On two idle cores one takes two seconds.
const startTimeout = 2 * time.Minute

// Options of a Cluster.
type Options struct {
	// ClassPath of Kafka. Required; see Find.
	ClassPath string
	// Dir takes configuration, data and logs. It is to be empty, and is the caller's to remove. Required.
	Dir string
	// Brokers is their number, 1 or 3. Default 1. Topics have a replica on each unless they say otherwise.
	Brokers int
	// Host is the IP address on which brokers listen and which they advertise. Default 127.0.0.1.
	Host string
	// TLS adds TLSListener.
	TLS *TLS
	// Users add SASLListener, which needs TLS. Each may use PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512. Names and passwords
	// are of letters, digits, - and _: they pass through command lines of Kafka's that do not quote.
	Users []User
	// Config is added to server.properties, and wins.
	Config map[string]string
	// JVM is added to Java's arguments, and wins.
	JVM []string
}

// TLS is a server's, in PEM. Authority makes it.
type TLS struct {
	// Cert and Key (PKCS #8) of all brokers.
	Cert, Key string
	// ClientCA is whose certificates clients of TLSListener must have. Default: they need none. SASLListener never asks.
	ClientCA string
}

// User of SASLListener.
type User struct{ Name, Password string }

// Listener is a port of every broker, by how it speaks.
type Listener string

// The listeners.
const (
	PlaintextListener Listener = "PLAINTEXT" // no encryption, nobody is asked; there always, brokers use it too
	TLSListener       Listener = "TLS"
	SASLListener      Listener = "SASL" // SASL over TLS

	controllerListener Listener = "CONTROLLER"
)

// Cluster is a Kafka cluster that runs. Its methods are not for several goroutines at once, except those that change
// nothing: Addresses, Connect, Tool and Lag.
type Cluster struct {
	// Brokers by their number; the first is 0, with node id 1.
	Brokers []*Broker

	options Options
	id      string
}

// Start formats the storage of new brokers, starts them, and returns when all are ready. They end with ctx, with this
// process (on Linux), or by Stop.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Brokers == 0 {
		o.Brokers = 1
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if len(o.Users) > 0 && o.TLS == nil {
		return nil, errors.New("kafka: Users need TLS")
	}
	id := make([]byte, 16)
	for i := range id {
		id[i] = byte(rand.IntN(256))
	}
	id[0] &= 0x7f // else one in 64 begins with "-", which the tool that formats takes for a flag
	c := &Cluster{options: o, id: base64.RawURLEncoding.EncodeToString(id)}
	listeners := []Listener{PlaintextListener, controllerListener}
	if o.TLS != nil {
		listeners = append(listeners, TLSListener)
	}
	if len(o.Users) > 0 {
		listeners = append(listeners, SASLListener)
	}
	addresses, err := port.Free(ctx, o.Host, o.Brokers*len(listeners))
	if err != nil {
		return nil, err
	}
	for i := range o.Brokers {
		b := &Broker{ID: int32(i + 1), dir: filepath.Join(o.Dir, strconv.Itoa(i+1)), cluster: c, addresses: map[Listener]string{}}
		for _, l := range listeners {
			b.addresses[l], addresses = addresses[0], addresses[1:]
		}
		c.Brokers = append(c.Brokers, b)
	}
	group, formatting := errgroup.WithContext(ctx)
	for _, b := range c.Brokers {
		group.Go(func() error { return b.format(formatting) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := c.startAll(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) startAll(ctx context.Context) error {
	for _, b := range c.Brokers {
		if err := b.launch(ctx); err != nil {
			return err
		}
	}
	return c.Ready(ctx)
}

// Ready waits until every broker answers and knows all brokers and a controller.
func (c *Cluster) Ready(ctx context.Context) error {
	var group errgroup.Group
	for _, b := range c.Brokers {
		group.Go(func() error { return b.ready(ctx, c.Brokers) })
	}
	return group.Wait()
}

// Stop ends every broker at once, in whatever state, and returns when all have ended. What they hold stays in
// Options.Dir. It may be called more than once.
func (c *Cluster) Stop() {
	// In order, the last brokers would wait for a quorum that is gone.
	var ending sync.WaitGroup
	for _, b := range c.Brokers {
		ending.Go(b.Kill)
	}
	ending.Wait()
}

// Addresses of all brokers, host:port.
func (c *Cluster) Addresses(l Listener) []string {
	var all []string
	for _, b := range c.Brokers {
		if address := b.Address(l); address != "" {
			all = append(all, address)
		}
	}
	return all
}
